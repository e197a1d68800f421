//! What lies below BGP: next hops are resolved through it and through best routes (RFC 4271 §9.1.2.1), and routes whose next hops come, go or
//! cost something else are decided again.

use std::collections::BTreeMap;

use super::import::Importer;
use super::{PeerEntry, Speaker, each_family};
use crate::family::{Family, Ipv4Unicast, Ipv6Unicast, Prefix};
use crate::rib::attrs::Affected;
use crate::rib::{AttrStore, Comparison, Fate, Links, LocRib, Path, Tables, Underlay};
use crate::route::NextHop;

/// How often routes are decided again within one call when each decision moves next hops of others; the rest waits for the next call.
const ROUNDS: usize = 8;

/// What is known of the peers.
type Peers = BTreeMap<u32, PeerEntry>;

impl Speaker {
    /// Says how this machine reaches other addresses without BGP: its links and whatever else is in its routing table that did not come from us, all
    /// of it each time. Whether a default route counts is for the caller to say. `None`, as at the beginning: every next hop is reachable.
    pub fn handle_underlay(&mut self, underlay: Option<Underlay>) {
        let was_active = self.attrs.next_hops().is_active();
        self.attrs.set_underlay(underlay);
        let is_active = self.attrs.next_hops().is_active();
        each_family!(self, tables => {
            tables.underlay_cursor = is_active.then(|| tables.loc_rib.journal_end());
        });
        if is_active != was_active {
            // All were reachable, or are again.
            let all = Affected::all(&self.attrs);
            self.resolve_next_hops();
            self.judge_again(&all);
            self.decide_again(&all);
        }
        self.settle_next_hops();
    }

    /// Names the subnets on this machine's links, all of them each time, for policies that ask by which link a route leaves. For a caller who says
    /// no underlay; with one this is not looked at.
    pub fn handle_links(&mut self, links: Links) {
        if self.attrs.set_links(links) {
            self.reimport_all();
        }
    }

    /// Follows what the latest changes of best routes mean for next hops.
    pub(super) fn settle_next_hops(&mut self) {
        if !self.attrs.next_hops().is_active() {
            return;
        }
        for _ in 0..ROUNDS {
            if !(self.best_routes_moved() || self.attrs.next_hops().is_pending()) {
                return;
            }
            let Some(affected) = self.resolve_next_hops() else {
                return;
            };
            self.judge_again(&affected);
            self.decide_again(&affected);
        }
    }

    /// Runs import again over what leaves by another link now, where policies ask for that.
    fn judge_again(&mut self, affected: &Affected) {
        if !self.attrs.next_hops().notes_links() {
            return;
        }
        let mut tables = Tables {
            attrs: &mut self.attrs,
            sources: &self.sources,
            decision: &self.config.decision,
        };
        let importer = |path: &Path| {
            let entry = self.peers.get(&path.source.peer_index()?)?;
            Some(Importer::new(entry, &self.config))
        };
        let is_meant = |path: &Path| affected.contains(path.received);
        self.ipv4
            .loc_rib
            .rewrite_where(is_meant, &mut tables, |prefix, path, attrs| {
                importer(path).map_or(Fate::Keep, |importer| {
                    importer.judge::<Ipv4Unicast>(prefix, path, attrs)
                })
            });
        self.ipv6
            .loc_rib
            .rewrite_where(is_meant, &mut tables, |prefix, path, attrs| {
                importer(path).map_or(Fate::Keep, |importer| {
                    importer.judge::<Ipv6Unicast>(prefix, path, attrs)
                })
            });
    }

    /// Whether a best route changed that next hops may be resolved through.
    fn best_routes_moved(&mut self) -> bool {
        let next_hops = self.attrs.next_hops();
        let mut moved = false;
        each_family!(self, tables => {
            if let Some(cursor) = &mut tables.underlay_cursor {
                while let Some(dest) = tables.loc_rib.next_change(cursor) {
                    moved = moved || next_hops.depend_on(tables.loc_rib.get(dest).prefix.into());
                }
            }
        });
        moved
    }

    fn resolve_next_hops(&mut self) -> Option<Affected> {
        let (ipv4, ipv6, peers) = (&self.ipv4.loc_rib, &self.ipv6.loc_rib, &self.peers);
        self.attrs.resolve_next_hops(|prefix, attrs| match prefix {
            Prefix::V4(prefix) => best_next_hops(ipv4, prefix, peers, attrs),
            Prefix::V6(prefix) => best_next_hops(ipv6, prefix, peers, attrs),
        })
    }

    fn decide_again(&mut self, affected: &Affected) {
        let by = Comparison {
            attrs: &self.attrs,
            sources: &self.sources,
            config: &self.config.decision,
        };
        each_family!(self, tables => tables.loc_rib.select_affected(affected, &by));
    }

    /// Where packets of a path go.
    pub(super) fn via(&self, path: &Path) -> Vec<NextHop> {
        next_hop(path, &self.peers, &self.attrs)
            .map_or_else(Vec::new, |next_hop| self.attrs.next_hops().via(next_hop))
    }
}

fn best_next_hops<F: Family>(
    loc_rib: &LocRib<F>,
    prefix: F::Prefix,
    peers: &Peers,
    attrs: &AttrStore,
) -> Option<Vec<NextHop>> {
    let destination = loc_rib.get(loc_rib.find(prefix)?);
    // To a prefix of our own BGP knows no way.
    destination.best()?.source.peer_index()?;
    let next_hops = destination.best_set().iter();
    Some(
        next_hops
            .filter_map(|path| next_hop(path, peers, attrs))
            .collect(),
    )
}

/// The next hop as the path names it.
fn next_hop(path: &Path, peers: &Peers, attrs: &AttrStore) -> Option<NextHop> {
    let entry = peers.get(&path.source.peer_index()?)?;
    let next_hop = attrs.get(path.accepted()?).next_hop?;
    // A neighbour on an unnumbered link is reached there, whatever global address it has.
    let on_link = next_hop
        .link_local()
        .filter(|_| entry.peer.config().interface.is_some());
    let address = on_link.map_or(next_hop.address(), Into::into);
    let link_local = matches!(address, std::net::IpAddr::V6(v6) if v6.is_unicast_link_local());
    Some(NextHop {
        address,
        scope_id: link_local.then_some(entry.peer.config().scope_id),
    })
}
