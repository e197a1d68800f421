//! Answers for operators, made from the live state.

use super::{FamilyTables, PeerEntry, Speaker};
use crate::family::{AfiSafi, Family, FamilyPrefix, Ipv4Unicast, Ipv6Unicast, Prefix};
use crate::policy::Policy;
use crate::rib::{Comparison, DestId, Import, PathCounts, Refusal, Source, SourceId, decide};
use crate::status::{
    AttributesSummary, CandidateStatus, FamilyStatus, LastError, NegotiatedStatus, PeerStatus, RouteFilter,
    RouteStatus, SpeakerStatus, Standing,
};
use crate::time::Time;
use crate::wire::frame::MessageLimit;

impl Speaker {
    /// The speaker and its peers.
    pub fn status(&self, now: Time) -> SpeakerStatus {
        let mut peers: Vec<PeerStatus> = self
            .peers
            .iter()
            .map(|(index, entry)| self.peer_status(*index, entry, now))
            .collect();
        peers.sort_by(|a, b| a.name.cmp(&b.name));
        SpeakerStatus {
            local_as: self.config.local_as,
            router_id: self.config.router_id,
            in_sync: self.sync.is_done(),
            restarting: self.sync.restarting(),
            prefixes: self.ipv4.loc_rib.len() + self.ipv6.loc_rib.len(),
            attribute_sets: self.attrs.len(),
            peers,
        }
    }

    /// Routes with all candidates, by prefix.
    pub fn routes(&self, filter: &RouteFilter, now: Time) -> Vec<RouteStatus> {
        let limit = match filter.limit {
            0 => RouteFilter::MAX,
            limit => limit.min(RouteFilter::MAX),
        };
        let from = filter.from.as_ref().map(|name| {
            let found = self
                .peers
                .iter()
                .find(|(_, entry)| entry.peer.config().name == *name);
            found.map(|(index, _)| SourceId::peer(*index))
        });
        let mut routes = self.family_routes(&self.ipv4, filter, from, now);
        routes.extend(self.family_routes(&self.ipv6, filter, from, now));
        routes.sort_by_key(|route| route.prefix);
        routes.truncate(limit);
        routes
    }

    fn peer_status(&self, index: u32, entry: &PeerEntry, now: Time) -> PeerStatus {
        let peer = &entry.peer;
        let mut timers = peer.running_timers(now);
        timers.extend(entry.timers.running(now));
        PeerStatus {
            name: peer.config().name.clone(),
            address: peer.config().address,
            remote_as: peer.config().remote_as,
            kind: peer.kind(),
            state: peer.state(),
            since: now.since(peer.since()),
            established_count: peer.established_count(),
            transport: peer.transport(),
            negotiated: entry.session.as_ref().map(|terms| NegotiatedStatus {
                router_id: terms.router_id,
                hold_time: terms.hold_time,
                keepalive: terms.keepalive,
                families: terms.families.iter().copied().collect(),
                four_octet_as: terms.four_octet_as,
                route_refresh: terms.route_refresh,
                extended_message: terms.message_limit == MessageLimit::Extended,
                graceful_restart: terms
                    .graceful_restart
                    .as_ref()
                    .map(|restart| restart.restart_time),
            }),
            last_error: peer.last_error().map(|(closed, at)| LastError {
                by: closed.reason.by(),
                text: closed.reason.to_string(),
                age: now.since(*at),
            }),
            counters: peer.counters(),
            timers,
            families: self.family_statuses(index, entry),
        }
    }

    fn family_statuses(&self, index: u32, entry: &PeerEntry) -> Vec<FamilyStatus> {
        let source = SourceId::peer(index);
        let families = [
            (
                Ipv4Unicast::AFI_SAFI,
                self.ipv4.loc_rib.count(source),
                announced(&self.ipv4, index),
            ),
            (
                Ipv6Unicast::AFI_SAFI,
                self.ipv6.loc_rib.count(source),
                announced(&self.ipv6, index),
            ),
        ];
        let shown = |(family, counts, announced): (AfiSafi, PathCounts, usize)| {
            let progress = entry.progress.get(&family);
            (progress.is_some() || counts.received > 0).then(|| FamilyStatus {
                family,
                received: counts.received,
                accepted: counts.accepted,
                stale: counts.stale,
                beyond_limit: progress.map_or(0, |progress| progress.discarded),
                announced,
                end_of_rib_received: progress.is_some_and(|progress| progress.end_of_rib_received),
                end_of_rib_sent: progress.is_some_and(|progress| progress.end_of_rib_sent),
            })
        };
        families.into_iter().filter_map(shown).collect()
    }

    fn family_routes<F: Family>(
        &self,
        tables: &FamilyTables<F>,
        filter: &RouteFilter,
        from: Option<Option<SourceId>>,
        now: Time,
    ) -> Vec<RouteStatus> {
        let matches = |prefix: Prefix, paths: &[crate::rib::Path]| {
            filter.prefix.is_none_or(|wanted| wanted == prefix)
                && filter.within.is_none_or(|within| within.covers(prefix))
                && from.is_none_or(|source| paths.iter().any(|path| Some(path.source) == source))
        };
        if let Some(wanted) = filter.prefix {
            let found = F::Prefix::from_prefix(wanted).and_then(|prefix| tables.loc_rib.find(prefix));
            let found = found.filter(|dest| matches(wanted, tables.loc_rib.get(*dest).paths()));
            let shown = found.filter(|dest| !tables.loc_rib.get(*dest).paths().is_empty());
            return shown
                .map(|dest| self.route_status(tables, dest, now))
                .into_iter()
                .collect();
        }
        let all = tables
            .loc_rib
            .iter()
            .filter(|(_, dest)| matches(dest.prefix.into(), dest.paths()));
        all.map(|(dest, _)| self.route_status(tables, dest, now))
            .collect()
    }

    fn route_status<F: Family>(&self, tables: &FamilyTables<F>, dest: DestId, now: Time) -> RouteStatus {
        let destination = tables.loc_rib.get(dest);
        let by = Comparison {
            attrs: &self.attrs,
            sources: &self.sources,
            config: &self.config.decision,
        };
        let lost_at = decide::explain(destination.paths(), &by);
        let multipath = destination.best_set().len();
        let candidates = destination.paths().iter().enumerate().map(|(rank, path)| {
            let peer = path.source.peer_index().and_then(|index| self.peers.get(&index));
            let import = peer.and_then(|entry| entry.peer.config().import.as_ref());
            let standing = match (path.import, lost_at.get(rank).copied().flatten()) {
                (Import::Refused(reason), _) => Standing::Refused {
                    reason,
                    term: term_name(reason, import),
                },
                (_, None) => Standing::Best,
                (_, Some(_)) if rank < multipath => Standing::Multipath,
                (_, Some(step)) => Standing::Lost(step),
            };
            CandidateStatus {
                from: peer.map(|entry| entry.peer.config().name.clone()),
                source: self
                    .sources
                    .get(path.source.index())
                    .unwrap_or(&Source::ORIGINATED)
                    .kind,
                standing,
                attributes: AttributesSummary::of(self.attrs.get(path.accepted().unwrap_or(path.received))),
                age: std::time::Duration::from_secs(now.seconds().saturating_sub(path.learnt).into()),
                stale: path.stale,
            }
        });
        let told = tables
            .adj_ribs_out
            .iter()
            .filter(|(_, out)| out.sent(dest).is_some());
        RouteStatus {
            prefix: destination.prefix.into(),
            candidates: candidates.collect(),
            decided_by: destination.best().map(|_| destination.decided_by()),
            announced_to: told
                .filter_map(|(index, _)| Some(self.peers.get(index)?.peer.config().name.clone()))
                .collect(),
        }
    }
}

fn announced<F: Family>(tables: &FamilyTables<F>, index: u32) -> usize {
    tables.adj_ribs_out.get(&index).map_or(0, |out| out.announced())
}

fn term_name(reason: Refusal, import: Option<&Policy>) -> Option<String> {
    match reason {
        Refusal::Policy(Some(number)) => import?
            .terms
            .get(usize::from(number))
            .map(|term| term.name.clone()),
        _ => None,
    }
}
