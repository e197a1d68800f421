//! From an UPDATE to the tables: loop checks, import policy, Adj-RIB-In (RFC 4271 §9.1, RFC 4456 §8, RFC 8212).

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr};

use super::{LogEvent, PeerEntry, REPORT_INTERVAL, Speaker};
use crate::config::{OwnAs, PeerConfig, Role, SpeakerConfig};
use crate::family::{AfiSafi, Family, Prefix};
use crate::policy::{Outcome, PeerKind, RouteView, SourceKind, evaluate, matching_terms};
use crate::priority;
use crate::rib::{AttrId, AttrStore, Fate, Import, LocRib, NextHops, Path, Refusal, SourceId, Tables};
use crate::session::Body;
use crate::time::Time;
use crate::wire::attr::{AttributeAction, Attributes, Community, LocalFacts};
use crate::wire::error::WireError;
use crate::wire::nlri::{FamilyNlri, NlriField};
use crate::wire::update::Update;

/// What import has to know of a peer and of us.
pub(super) struct Importer<'a> {
    peer: &'a PeerConfig,
    kind: PeerKind,
    /// What we are to the peer; EBGP only.
    role: Option<Role>,
    local_as: u32,
    router_id: Ipv4Addr,
    cluster_id: Ipv4Addr,
    /// Addresses that are ours for sure.
    own: [Option<IpAddr>; 3],
}

impl<'a> Importer<'a> {
    pub(super) fn new(entry: &'a PeerEntry, config: &SpeakerConfig) -> Self {
        let session = entry.peer.transport().map(|(local, _)| local.ip().to_canonical());
        Self {
            peer: entry.peer.config(),
            kind: entry.peer.kind(),
            role: entry.peer.role(),
            local_as: config.local_as,
            router_id: config.router_id,
            cluster_id: config.cluster_id.unwrap_or(config.router_id),
            own: [
                session,
                config.next_hop_ipv4.map(IpAddr::V4),
                config.next_hop_ipv6.map(IpAddr::V6),
            ],
        }
    }

    /// What becomes of a received route. An accepted result holds a reference of its own.
    pub(super) fn import<F: Family>(
        &self,
        prefix: F::Prefix,
        received: AttrId,
        attrs: &mut AttrStore,
    ) -> Import {
        if let Some(refusal) = self.check(attrs.get(received)) {
            return Import::Refused(refusal);
        }
        let seen = self.seen(attrs.get(received), attrs.next_hops());
        match self.apply_policy(prefix.into(), seen) {
            Err(refusal) => Import::Refused(refusal),
            Ok(accepted) => match self.finish(accepted, attrs.get(received)) {
                Cow::Borrowed(_) => {
                    attrs.retain(received);
                    Import::Accepted(received)
                }
                Cow::Owned(changed) => Import::Accepted(attrs.intern(changed)),
            },
        }
    }

    /// A received route as policies see it: with what is said in no message.
    fn seen<'b>(&self, received: &'b Attributes, next_hops: &NextHops) -> Cow<'b, Attributes> {
        let local = LocalFacts {
            priority: self.priority(received),
            interface: self.link(received, next_hops).map(Into::into),
        };
        if local == received.local {
            return Cow::Borrowed(received);
        }
        Cow::Owned(Attributes {
            local,
            ..received.clone()
        })
    }

    /// The priority that the peer says.
    fn priority(&self, received: &Attributes) -> Option<u32> {
        let said = received.local_pref.filter(|_| self.peer.priority_in_local_pref);
        said.map(priority::from_local_pref)
    }

    /// The link that a route leaves by, if anybody asks.
    fn link<'b>(&'b self, received: &Attributes, next_hops: &'b NextHops) -> Option<&'b str> {
        let unnumbered = self.peer.interface.as_deref();
        unnumbered
            .filter(|_| next_hops.notes_links())
            .or_else(|| next_hops.link(received.next_hop?.address()))
    }

    /// What becomes of a path that is judged again.
    pub(super) fn judge<F: Family>(&self, prefix: F::Prefix, path: &Path, attrs: &mut AttrStore) -> Fate {
        attrs.retain(path.received);
        let import = self.import::<F>(prefix, path.received, attrs);
        Fate::Replace(Path { import, ..*path })
    }

    fn apply_policy<'b>(
        &self,
        prefix: Prefix,
        attributes: Cow<'b, Attributes>,
    ) -> Result<Cow<'b, Attributes>, Refusal> {
        let Some(policy) = &self.peer.import else {
            return match self.kind {
                PeerKind::Ebgp => Err(Refusal::NoPolicy),
                PeerKind::Ibgp => Ok(attributes),
            };
        };
        match evaluate(policy, &self.view(prefix), attributes) {
            Outcome::Reject { term } => Err(Refusal::Policy(term)),
            Outcome::Accept(accepted) => Ok(accepted),
        }
    }

    /// What the speaker does to a route whatever the policy: what well-known communities ask of the one who receives them, unless the policy took
    /// them off, and the mark of a route from above.
    fn finish<'b>(&self, mut attributes: Cow<'b, Attributes>, received: &Attributes) -> Cow<'b, Attributes> {
        // RFC 9494 §4.3: no policy takes it off.
        let stale = Community::LLGR_STALE;
        if received.communities.contains(stale) && !attributes.communities.contains(stale) {
            attributes.to_mut().communities.insert(stale);
        }
        let ebgp = self.kind == PeerKind::Ebgp;
        // RFC 7705 §3.1: who hears of the route sees that it came through the AS we are to this peer. Inside that AS nobody adds to paths (§4.2).
        if let Some(local) = self
            .peer
            .local_as
            .filter(|local| ebgp && local.received == OwnAs::Shown)
        {
            let path = attributes.as_path.prepend(local.asn, 1);
            attributes.to_mut().as_path = path;
        }
        let priority = attributes.local.priority;
        if self.peer.priority_in_local_pref && priority != self.priority(received) {
            attributes.to_mut().local_pref = priority.map(priority::to_local_pref);
        }
        let has = |community| attributes.communities.contains(community);
        let blackhole = self.peer.blackhole && has(Community::BLACKHOLE);
        // RFC 8326 §4.1, and §4.2 for the side that goes away.
        if self.peer.graceful_shutdown || (ebgp && has(Community::GRACEFUL_SHUTDOWN)) {
            attributes.to_mut().local_pref = Some(0);
        }
        // RFC 9234 §5, ingress 3.
        let from_above = matches!(
            self.role,
            Some(Role::Customer | Role::Peer | Role::RouteServerClient)
        );
        if from_above && attributes.otc.is_none() {
            attributes.to_mut().otc = Some(self.peer.remote_as);
        }
        // RFC 7999 §3.2: not beyond our AS.
        if blackhole {
            attributes.to_mut().communities.insert(Community::NO_EXPORT);
        }
        attributes
    }

    /// The terms of the import policy that match a received route.
    pub(super) fn matching_terms(&self, prefix: Prefix, received: AttrId, attrs: &AttrStore) -> Vec<String> {
        let seen = self.seen(attrs.get(received), attrs.next_hops());
        let policy = self.peer.import.as_ref();
        policy.map_or_else(Vec::new, |policy| {
            matching_terms(policy, &self.view(prefix), &seen)
        })
    }

    fn view(&self, prefix: Prefix) -> RouteView<'_> {
        RouteView {
            prefix,
            source: SourceKind::from(self.kind),
            peer: &self.peer.name,
            peer_kind: self.kind,
        }
    }

    /// Whether all prefixes of an attribute set fare alike.
    fn is_uniform(&self) -> bool {
        self.peer
            .import
            .as_ref()
            .is_none_or(|policy| !policy.depends_on_prefix())
    }

    /// The checks no policy can switch off.
    fn check(&self, attributes: &Attributes) -> Option<Refusal> {
        let allowed = usize::from(self.peer.allow_own_as);
        // Both are us: the speaker's AS, and the one this peer knows us by.
        let own = [self.local_as, self.peer.local_as(self.local_as)];
        if own.iter().any(|asn| attributes.as_path.count(*asn) > allowed) {
            return Some(Refusal::OwnAsInPath);
        }
        let enforced = self.kind == PeerKind::Ebgp && self.peer.enforce_first_as;
        if enforced && attributes.as_path.neighbor_as() != Some(self.peer.remote_as) {
            return Some(Refusal::FirstAsIsNotThePeers);
        }
        // RFC 9234 §5, ingress 1 and 2.
        let leaked = match self.role {
            Some(Role::Provider | Role::RouteServer) => attributes.otc.is_some(),
            Some(Role::Peer) => attributes.otc.is_some_and(|asn| asn != self.peer.remote_as),
            _ => false,
        };
        if leaked {
            return Some(Refusal::RouteLeak);
        }
        if attributes.originator_id == Some(self.router_id) {
            return Some(Refusal::OwnOriginatorId);
        }
        if attributes.cluster_list.contains(&self.cluster_id) {
            return Some(Refusal::OwnClusterId);
        }
        let next_hop = attributes.next_hop?.address();
        if self.own.contains(&Some(next_hop)) {
            return Some(Refusal::NextHopIsUs);
        }
        // A peer on this machine may well be reached by a loopback address.
        let loopback = next_hop.is_loopback() && !self.peer.address.is_loopback();
        (next_hop.is_unspecified() || loopback || next_hop.is_multicast()).then_some(Refusal::NextHopInvalid)
    }
}

/// What an UPDATE leaves to do once its routes are in the tables.
struct Applied {
    end_of_rib: Option<AfiSafi>,
    treated_as_withdraw: u64,
    discarded: u64,
    /// Prefixes beyond the limit, which were not stored.
    beyond_limit: Vec<(AfiSafi, u64)>,
    /// Prefixes announced and withdrawn.
    counted: Vec<(AfiSafi, [u64; 2])>,
    first_error: Option<String>,
}

impl Speaker {
    pub(super) fn handle_update(&mut self, index: u32, body: Body, now: Time) {
        let applied = match self.apply_update(index, body, now) {
            Some(Ok(applied)) => applied,
            Some(Err(error)) => {
                if let Some(connection) = self
                    .peers
                    .get_mut(&index)
                    .and_then(|entry| entry.peer.established_mut())
                {
                    connection.refuse(&error);
                }
                return;
            }
            None => return,
        };
        if let Some(text) = applied.first_error {
            self.note_update_errors(index, (applied.treated_as_withdraw, applied.discarded), text, now);
        }
        if let Some(entry) = self.peers.get_mut(&index) {
            for (family, [announced, withdrawn]) in applied.counted {
                let progress = entry.progress.entry(family).or_default();
                progress.announcements += announced;
                progress.withdrawals += withdrawn;
            }
        }
        self.check_prefix_limit(index, &applied.beyond_limit, now);
        if let Some(family) = applied.end_of_rib {
            self.handle_end_of_rib(index, family, now);
        }
    }

    fn apply_update(&mut self, index: u32, body: Body, now: Time) -> Option<Result<Applied, WireError>> {
        let entry = self.peers.get(&index)?;
        let terms = entry.session.as_ref()?;
        let update = match Update::decode(entry.peer.body(body), &terms.decode_context()) {
            Ok(update) => update,
            Err(error) => return Some(Err(error)),
        };
        let source = SourceId::peer(index);
        let mut tables = Tables {
            attrs: &mut self.attrs,
            sources: &self.sources,
            decision: &self.config.decision,
        };
        let mut counted = Vec::new();
        for nlri in &update.unreach {
            let withdrawn = match nlri {
                FamilyNlri::Ipv4(field) => withdraw(&mut self.ipv4.loc_rib, *field, source, &mut tables),
                FamilyNlri::Ipv6(field) => withdraw(&mut self.ipv6.loc_rib, *field, source, &mut tables),
            };
            counted.push((nlri.family(), [0, withdrawn]));
        }
        let importer = Importer::new(entry, &self.config);
        let mut beyond_limit = Vec::new();
        for reach in update.reach {
            let received = tables.attrs.intern(reach.attributes);
            let import = Import::Refused(Refusal::NoPolicy);
            let path = Path {
                source,
                path_id: 0,
                local_id: 0,
                received,
                import,
                learnt: now.seconds(),
                stale: false,
            };
            let (announced, beyond) = match reach.nlri {
                FamilyNlri::Ipv4(field) => {
                    announce(&mut self.ipv4.loc_rib, field, path, &importer, &mut tables)
                }
                FamilyNlri::Ipv6(field) => {
                    announce(&mut self.ipv6.loc_rib, field, path, &importer, &mut tables)
                }
            };
            counted.push((reach.nlri.family(), [announced, 0]));
            if beyond > 0 {
                beyond_limit.push((reach.nlri.family(), beyond));
            }
            tables.attrs.release(received);
        }
        let discarded = update
            .errors
            .iter()
            .filter(|error| error.action == AttributeAction::Discard)
            .count();
        Some(Ok(Applied {
            end_of_rib: update.end_of_rib,
            treated_as_withdraw: update.treat_as_withdraw.into(),
            discarded: discarded as u64,
            beyond_limit,
            counted,
            first_error: update.errors.first().map(ToString::to_string),
        }))
    }

    fn note_update_errors(&mut self, index: u32, counts: (u64, u64), text: String, now: Time) {
        let Some(entry) = self.peers.get_mut(&index) else {
            return;
        };
        if let Some(connection) = entry.peer.established_mut() {
            connection.note_update_errors(counts.0, counts.1);
        }
        if now >= entry.quiet_until {
            entry.quiet_until = now + REPORT_INTERVAL;
            let peer = entry.peer.config().name.clone();
            self.log(LogEvent::UpdateErrors { peer, text });
        }
    }
}

fn withdraw<F: Family>(
    loc_rib: &mut LocRib<F>,
    field: NlriField<'_, F>,
    source: SourceId,
    tables: &mut Tables<'_>,
) -> u64 {
    let mut count = 0;
    for nlri in field {
        loc_rib.withdraw(nlri.prefix, source, nlri.path_id, tables);
        count += 1;
    }
    count
}

/// Stores a path to each prefix; returns how many there were, and for how many there was no room.
fn announce<F: Family>(
    loc_rib: &mut LocRib<F>,
    field: NlriField<'_, F>,
    mut path: Path,
    importer: &Importer<'_>,
    tables: &mut Tables<'_>,
) -> (u64, u64) {
    let uniform = importer.is_uniform();
    let stored = importer.peer.prefix_limit_in.and_then(|limit| limit.stored());
    let (mut count, mut beyond) = (0, 0);
    let mut done = false;
    for nlri in field {
        count += 1;
        let full = stored.is_some_and(|stored| loc_rib.held(path.source) >= stored);
        if full && !loc_rib.has_path(nlri.prefix, path.source, nlri.path_id) {
            beyond += 1;
            continue;
        }
        if !(uniform && done) {
            release(path.import, tables.attrs);
            path.import = importer.import::<F>(nlri.prefix, path.received, tables.attrs);
            done = true;
        }
        path.path_id = nlri.path_id;
        beyond += u64::from(!loc_rib.announce(nlri.prefix, path, tables));
    }
    release(path.import, tables.attrs);
    (count, beyond)
}

fn release(import: Import, attrs: &mut AttrStore) {
    if let Import::Accepted(id) = import {
        attrs.release(id);
    }
}
