//! Why a route is where it is: all candidates of a prefix, the step that chose the best, what policy did, what each peer is told.
//!
//! Everything is worked out again from the live tables by the code that decides in earnest, so that an explanation cannot
//! differ from what happened.

use std::net::IpAddr;
use std::ops::Range;
use std::time::Duration;

use super::import::Importer;
use super::{FamilyTables, PeerEntry, Speaker};
use crate::family::{Family, FamilyPrefix, Ipv4Prefix, Ipv6Prefix, Prefix};
use crate::policy::Policy;
use crate::rib::{
    Comparison, DestId, Destination, Import, Path, Refusal, Source, SourceId, Withheld, decide,
};
use crate::status::{
    AnnouncedPath, AttributesSummary, CandidateStatus, ExportStatus, Place, RouteCursor, RouteFilter,
    RoutePage, RouteStatus, Standing,
};
use crate::time::Time;

/// Slots looked at for one page: it bounds how long peers wait while somebody reads the table.
const SLOTS: usize = 4096;
/// Routes after which a page is full.
const PAGE: usize = 512;

/// Whose exports to show.
#[derive(Clone, Copy)]
enum Exports {
    None,
    To(u32),
    ToAll,
}

/// A filter with names resolved.
struct Query<'a> {
    filter: &'a RouteFilter,
    from: Option<Option<SourceId>>,
    to: Option<Option<u32>>,
}

impl Speaker {
    /// Routes with all candidates, by prefix, in one go.
    pub fn routes(&self, filter: &RouteFilter, now: Time) -> Vec<RouteStatus> {
        let limit = match filter.limit {
            0 => RouteFilter::MAX,
            limit => limit.min(RouteFilter::MAX),
        };
        let mut routes = Vec::new();
        let mut next = Some(RouteCursor::START);
        while let Some(cursor) = next
            && routes.len() < limit
        {
            let page = self.routes_page(filter, cursor, now);
            routes.extend(page.routes);
            next = page.next;
        }
        routes.sort_by_key(|route| route.prefix);
        routes.truncate(limit);
        routes
    }

    /// Routes with all candidates, some hundreds at a time, so that somebody who reads a large table keeps no peer
    /// waiting. A prefix that is there during the whole walk is in exactly one page.
    pub fn routes_page(&self, filter: &RouteFilter, cursor: RouteCursor, now: Time) -> RoutePage {
        if let Some(wanted) = filter.prefix.or_else(|| self.longest_match(filter.address?)) {
            return self.single(wanted, filter, now);
        }
        if filter.address.is_some() {
            return RoutePage::EMPTY;
        }
        let query = self.query(filter);
        let (routes, next) = match cursor.0 {
            Place::Ipv4(slot) => {
                let (routes, next) = self.walk(&self.ipv4, &query, slot, now);
                (routes, Some(next.map_or(Place::Ipv6(0), Place::Ipv4)))
            }
            Place::Ipv6(slot) => {
                let (routes, next) = self.walk(&self.ipv6, &query, slot, now);
                (routes, next.map(Place::Ipv6))
            }
        };
        RoutePage {
            routes,
            next: next.map(RouteCursor),
        }
    }

    fn query<'a>(&self, filter: &'a RouteFilter) -> Query<'a> {
        Query {
            filter,
            from: filter
                .from
                .as_ref()
                .map(|name| self.index_of(name).map(SourceId::peer)),
            to: filter.to.as_ref().map(|name| self.index_of(name)),
        }
    }

    /// The longest prefix with a best route that covers an address.
    fn longest_match(&self, address: IpAddr) -> Option<Prefix> {
        match address.to_canonical() {
            IpAddr::V4(address) => longest(&self.ipv4, |length| Ipv4Prefix::new(address, length)),
            IpAddr::V6(address) => longest(&self.ipv6, |length| Ipv6Prefix::new(address, length)),
        }
    }

    fn single(&self, wanted: Prefix, filter: &RouteFilter, now: Time) -> RoutePage {
        let query = self.query(filter);
        let route = match wanted {
            Prefix::V4(prefix) => self.look_up(&self.ipv4, &query, prefix, now),
            Prefix::V6(prefix) => self.look_up(&self.ipv6, &query, prefix, now),
        };
        RoutePage {
            routes: route.into_iter().collect(),
            next: None,
        }
    }

    fn look_up<F: Family>(
        &self,
        tables: &FamilyTables<F>,
        query: &Query<'_>,
        prefix: F::Prefix,
        now: Time,
    ) -> Option<RouteStatus> {
        let dest = tables.loc_rib.find(prefix)?;
        let shown = query.lets_through(tables, dest, tables.loc_rib.get(dest));
        shown.then(|| self.route_status(tables, dest, Exports::ToAll, now))
    }

    /// Routes from `slot` on, and the slot behind the last one looked at.
    fn walk<F: Family>(
        &self,
        tables: &FamilyTables<F>,
        query: &Query<'_>,
        slot: usize,
        now: Time,
    ) -> (Vec<RouteStatus>, Option<usize>) {
        let end = tables.loc_rib.slots().min(slot.saturating_add(SLOTS));
        let exports = query.to.flatten().map_or(Exports::None, Exports::To);
        let mut routes = Vec::new();
        let slots: Range<usize> = slot..end;
        for slot in slots {
            if routes.len() == PAGE {
                return (routes, Some(slot));
            }
            let dest = DestId::at(slot);
            if query.lets_through(tables, dest, tables.loc_rib.get(dest)) {
                routes.push(self.route_status(tables, dest, exports, now));
            }
        }
        (routes, (end < tables.loc_rib.slots()).then_some(end))
    }

    fn route_status<F: Family>(
        &self,
        tables: &FamilyTables<F>,
        dest: DestId,
        exports: Exports,
        now: Time,
    ) -> RouteStatus {
        let destination = tables.loc_rib.get(dest);
        let by = Comparison {
            attrs: &self.attrs,
            sources: &self.sources,
            config: &self.config.decision,
        };
        let lost_at = decide::explain(destination.paths(), &by);
        let multipath = destination.best_set().len();
        let standing = |rank: usize, path: &Path| match (path.import, lost_at.get(rank).copied().flatten()) {
            (Import::Refused(reason), _) => Standing::Refused {
                reason,
                term: term_name(reason, self.import_policy(path)),
            },
            _ if rank >= destination.usable() => Standing::Unreachable,
            (_, None) => Standing::Best,
            (_, Some(_)) if rank < multipath => Standing::Multipath,
            (_, Some(step)) => Standing::Lost(step),
        };
        let paths = destination.paths().iter().enumerate();
        let is_told = |index: &u32| !tables.groups.told(*index, dest).is_empty();
        let told = tables.groups.peers().filter(is_told);
        let asked = tables.groups.peers().filter(|index| match exports {
            Exports::None => false,
            Exports::To(peer) => *index == peer,
            Exports::ToAll => true,
        });
        RouteStatus {
            prefix: destination.prefix.into(),
            candidates: paths
                .map(|(rank, path)| self.candidate(destination.prefix, path, standing(rank, path), now))
                .collect(),
            decided_by: destination.best().map(|_| destination.decided_by()),
            announced_to: told
                .filter_map(|index| Some(self.peers.get(&index)?.peer.config().name.clone()))
                .collect(),
            exports: asked
                .filter_map(|index| self.export_status(tables, dest, index))
                .collect(),
        }
    }

    fn candidate<P: FamilyPrefix>(
        &self,
        prefix: P,
        path: &Path,
        standing: Standing,
        now: Time,
    ) -> CandidateStatus {
        let entry = self.entry_of(path);
        let received = self.attrs.get(path.received);
        let changed = path.accepted().filter(|accepted| *accepted != path.received);
        let source = self.sources.get(path.source.index());
        CandidateStatus {
            from: entry.map(|entry| entry.peer.config().name.clone()),
            path_id: path.path_id,
            local_id: path.local_id,
            source: source.unwrap_or(&Source::ORIGINATED).kind,
            standing,
            next_hop_cost: path
                .accepted()
                .filter(|_| self.attrs.next_hops().is_active())
                .and_then(|id| self.attrs.rank(id).next_hop_cost),
            via: path.accepted().map_or_else(Vec::new, |_| self.via(path)),
            weight: source.map_or(0, |source| source.weight),
            peer_router_id: source.filter(|_| entry.is_some()).map(|source| source.router_id),
            attributes: AttributesSummary::of(changed.map_or(received, |id| self.attrs.get(id))),
            received: changed
                .filter(|id| !self.attrs.get(*id).is_said_like(received))
                .map(|_| AttributesSummary::of(received)),
            terms: entry.map_or_else(Vec::new, |entry| {
                Importer::new(entry, &self.config).matching_terms(prefix.into(), path.received, &self.attrs)
            }),
            age: Duration::from_secs(now.seconds().saturating_sub(path.learnt).into()),
            stale: path.stale,
        }
    }

    fn export_status<F: Family>(
        &self,
        tables: &FamilyTables<F>,
        dest: DestId,
        index: u32,
    ) -> Option<ExportStatus> {
        let entry = self.peers.get(&index)?;
        let group = tables.groups.of(index)?;
        let destination = tables.loc_rib.get(dest);
        let exporter = &group.treatment.exporter;
        let best = destination.best().and_then(|best| {
            let source = self.sources.get(best.source.index())?;
            Some((best.source, source, self.attrs.get(best.accepted()?)))
        });
        let withheld = best.and_then(|(from, source, attributes)| {
            if from == SourceId::peer(index) {
                return Some(Withheld::FromThisPeer);
            }
            exporter.export::<F>(destination.prefix, source, attributes).err()
        });
        let told = tables.groups.told(index, dest);
        let told = told.iter().map(|path| AnnouncedPath {
            path_id: group.treatment.add_path.map(|_| path.path_id),
            attributes: AttributesSummary::of(self.attrs.get(path.attrs)),
        });
        Some(ExportStatus {
            to: entry.peer.config().name.clone(),
            announced: told.collect(),
            withheld,
            terms: best.map_or_else(Vec::new, |(_, source, attributes)| {
                exporter.matching_terms::<F>(destination.prefix, source, attributes)
            }),
        })
    }

    fn entry_of(&self, path: &Path) -> Option<&PeerEntry> {
        self.peers.get(&path.source.peer_index()?)
    }

    fn import_policy(&self, path: &Path) -> Option<&Policy> {
        self.entry_of(path)?.peer.config().import.as_ref()
    }
}

impl RoutePage {
    const EMPTY: Self = Self {
        routes: Vec::new(),
        next: None,
    };
}

impl Query<'_> {
    fn lets_through<F: Family>(
        &self,
        tables: &FamilyTables<F>,
        dest: DestId,
        destination: &Destination<F::Prefix>,
    ) -> bool {
        let prefix: Prefix = destination.prefix.into();
        let told = |index: u32| !tables.groups.told(index, dest).is_empty();
        let known = |source: SourceId| destination.paths().iter().any(|path| path.source == source);
        !destination.paths().is_empty()
            && self.filter.within.is_none_or(|within| within.covers(prefix))
            && self.from.is_none_or(|source| source.is_some_and(known))
            && self.to.is_none_or(|index| index.is_some_and(told))
    }
}

fn longest<F: Family>(
    tables: &FamilyTables<F>,
    prefix_of: impl Fn(u8) -> Option<F::Prefix>,
) -> Option<Prefix> {
    (0..=F::Prefix::MAX_LENGTH)
        .rev()
        .filter_map(prefix_of)
        .find(|prefix| {
            let dest = tables.loc_rib.find(*prefix);
            dest.is_some_and(|dest| tables.loc_rib.get(dest).best().is_some())
        })
        .map(Into::into)
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
