//! Best routes for whoever puts them into a forwarding table: a full set at first, then what changed, each prefix with its latest state.

use super::{FamilyTables, Speaker};
use crate::attributes_summary::AttributesSummary;
use crate::family::Family;
use crate::rib::{DestId, Destination, LocRib};
use crate::route::{BestRoute, NextHop, RouteChange};
use crate::wire::attr::Community;

/// How far best routes were taken.
#[derive(Debug)]
pub(super) struct Reader {
    cursor: u64,
    /// The next destination of the first full set.
    walk: Option<usize>,
}

impl Reader {
    fn new<F: Family>(loc_rib: &LocRib<F>) -> Self {
        Self {
            cursor: loc_rib.journal_end(),
            walk: Some(0),
        }
    }

    pub(super) fn cursor(&self) -> u64 {
        self.cursor
    }

    fn next<F: Family>(&mut self, loc_rib: &LocRib<F>) -> Option<DestId> {
        if let Some(next) = self.walk {
            let found = loc_rib.next_with_best(next);
            self.walk = found.map(|dest| dest.index() + 1);
            if found.is_some() {
                return found;
            }
        }
        loc_rib.next_change(&mut self.cursor)
    }
}

impl Speaker {
    /// Takes at most `limit` changed best routes. The first calls hand out all there are.
    pub fn take_changes(&mut self, limit: usize) -> Vec<RouteChange> {
        let ipv4 = take(&mut self.ipv4, limit);
        let ipv6 = take(&mut self.ipv6, limit.saturating_sub(ipv4.len()));
        let ipv4 = ipv4.into_iter().map(|dest| self.change(&self.ipv4.loc_rib, dest));
        let ipv6 = ipv6.into_iter().map(|dest| self.change(&self.ipv6.loc_rib, dest));
        ipv4.chain(ipv6).collect()
    }

    /// Whether [`Speaker::take_changes`] would return something.
    pub fn has_changes(&self) -> bool {
        waits(&self.ipv4) || waits(&self.ipv6)
    }

    /// All best routes learnt from peers.
    pub fn best_routes(&self) -> Vec<RouteChange> {
        let ipv4 = self
            .ipv4
            .loc_rib
            .iter()
            .map(|(dest, _)| self.change(&self.ipv4.loc_rib, dest));
        let ipv6 = self
            .ipv6
            .loc_rib
            .iter()
            .map(|(dest, _)| self.change(&self.ipv6.loc_rib, dest));
        ipv4.chain(ipv6).filter(|change| change.best.is_some()).collect()
    }

    fn change<F: Family>(&self, loc_rib: &LocRib<F>, dest: DestId) -> RouteChange {
        let destination = loc_rib.get(dest);
        RouteChange {
            prefix: destination.prefix.into(),
            best: self.best_route(destination),
        }
    }

    fn best_route<P>(&self, destination: &Destination<P>) -> Option<BestRoute> {
        let best = destination.best()?;
        let entry = self.peers.get(&best.source.peer_index()?)?;
        let mut next_hops: Vec<NextHop> = destination
            .best_set()
            .iter()
            .flat_map(|path| self.via(path))
            .collect();
        next_hops.sort_unstable();
        next_hops.dedup();
        let (config, attributes) = (entry.peer.config(), self.attrs.get(best.accepted()?));
        Some(BestRoute {
            next_hops,
            from: config.name.clone(),
            source: entry.peer.kind().into(),
            attributes: AttributesSummary::of(attributes),
            blackhole: config.blackhole && attributes.communities.contains(Community::BLACKHOLE),
        })
    }
}

fn take<F: Family>(tables: &mut FamilyTables<F>, limit: usize) -> Vec<DestId> {
    let loc_rib = &tables.loc_rib;
    let reader = tables.reader.get_or_insert_with(|| Reader::new(loc_rib));
    std::iter::from_fn(|| reader.next(loc_rib)).take(limit).collect()
}

fn waits<F: Family>(tables: &FamilyTables<F>) -> bool {
    match &tables.reader {
        Some(reader) => reader.walk.is_some() || tables.loc_rib.has_changes(reader.cursor),
        None => !tables.loc_rib.is_empty(),
    }
}
