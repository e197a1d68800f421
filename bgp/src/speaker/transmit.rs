//! What goes out on a connection when its transport has room: what the session itself has to say, then UPDATEs of the peer's update groups.
//!
//! An UPDATE is made when the first peer of a group has room, once for all of them. What is handed out is full when it holds [`CHUNK`] octets;
//! a batch of destinations is never cut, so that the most is bounded by a batch of messages of greatest length.

use std::collections::BTreeMap;

use foldhash::fast::FixedState;
use hashbrown::HashMap;
use smallvec::SmallVec;

use super::groups::Treatment;
use super::{FamilyTables, PeerEntry, Speaker, each_family};
use crate::family::{AfiSafi, Family, Ipv4Unicast, Ipv6Unicast};
use crate::rib::adj_rib_out::{SentPath, SentPaths};
use crate::rib::update_group::{CatchUp, Chunk, Told, UpdateGroup};
use crate::rib::{AttrId, AttrStore, DestId, Destination, LocRib, Path, Source, SourceId};
use crate::session::{ConnId, State};
use crate::time::Time;
use crate::wire::context::EncodeContext;
use crate::wire::nlri::Nlri;
use crate::wire::notification::{CeaseError, Notification, NotificationCode};
use crate::wire::update::{UpdateTemplate, encode_end_of_rib};

/// Octets after which enough is handed out at a time.
const CHUNK: usize = 48 * 1024;

/// Destinations looked at together: enough to share attribute sets, few enough to bound a chunk.
const BATCH: usize = 1024;

/// Destinations without paths that are kept for slow peers, beyond as many as there are destinations with paths; also the withdrawals that may
/// wait for one peer. A peer that needs more is given up: what is kept for it would grow as long as others announce and withdraw.
const MAX_UNREAD_WITHDRAWALS: usize = 65_536;

/// Journal entries from which trimming is worth a look at every reader.
const TRIM_FROM: usize = 256;

impl Speaker {
    /// What to send on `conn` now. `None` when there is nothing, or what was handed out before is not all sent.
    pub fn poll_transmit(&mut self, conn: ConnId, now: Time) -> Option<Vec<u8>> {
        let entry = self.peers.get_mut(&conn.peer)?;
        let connection = entry
            .peer
            .connection_mut(conn)
            .filter(|connection| connection.can_transmit())?;
        let mut out = Vec::new();
        connection.take_transmit(&mut out);
        let mut updates = 0;
        if connection.state() == State::Established {
            updates = self.fill(conn.peer, &mut out);
            self.finish_refreshes(conn.peer);
            let entry = self.peers.get_mut(&conn.peer)?;
            entry.peer.connection_mut(conn)?.take_transmit(&mut out);
        }
        if out.is_empty() {
            return None;
        }
        let entry = self.peers.get_mut(&conn.peer)?;
        entry
            .peer
            .connection_mut(conn)?
            .note_handed_out(out.len(), updates, now);
        self.note_deadline(conn.peer);
        Some(out)
    }

    /// Appends UPDATEs for a peer; returns how many.
    fn fill(&mut self, index: u32, out: &mut Vec<u8>) -> u64 {
        let mut told = [Told::default(); 2];
        let mut outlet = Outlet {
            sources: &self.sources,
            attrs: &mut self.attrs,
            out,
        };
        let [ipv4, ipv6] = &mut told;
        while outlet.out.len() < CHUNK {
            let more =
                outlet.advance(&mut self.ipv4, index, ipv4) | outlet.advance(&mut self.ipv6, index, ipv6);
            if !more {
                break;
            }
        }
        let mut updates = told.iter().map(|told| told.messages).sum();
        if let Some(entry) = self.peers.get_mut(&index) {
            note_told(entry, told);
        }
        let progress = self.peers.get(&index).map(|entry| &entry.progress);
        let owed = progress.is_some_and(|families| families.values().any(|family| !family.end_of_rib_sent));
        if owed && self.may_send_end_of_rib() {
            let has_work = [
                (Ipv4Unicast::AFI_SAFI, self.ipv4.has_work(index)),
                (Ipv6Unicast::AFI_SAFI, self.ipv6.has_work(index)),
            ];
            if let Some(entry) = self.peers.get_mut(&index) {
                updates += send_end_of_rib(entry, has_work, out);
            }
        }
        self.trim();
        each_family!(self, tables => tables.groups.merge(&tables.loc_rib, &mut self.attrs));
        updates
    }

    /// Forgets what every reader of the journals has read.
    fn trim(&mut self) {
        trim(&mut self.ipv4);
        trim(&mut self.ipv6);
    }

    /// Ends the sessions of peers that read so slowly that withdrawals nobody else needs any more pile up for them.
    pub(super) fn relieve(&mut self, now: Time) {
        if laggards(&self.ipv4).is_empty() && laggards(&self.ipv6).is_empty() {
            return;
        }
        self.trim();
        let mut slow = laggards(&self.ipv4);
        slow.extend(laggards(&self.ipv6));
        let notification = Notification::bare(NotificationCode::Cease(CeaseError::OutOfResources));
        for index in slow {
            if let Some(entry) = self.peers.get_mut(&index) {
                entry
                    .peer
                    .reset(&notification, "the peer takes UPDATEs too slowly");
                self.drain(index, now);
            }
        }
        self.trim();
    }
}

/// The peers for which too much is kept: those with too many withdrawals of their own, and those of groups behind all others, when
/// withdrawals nobody has read are too many.
fn laggards<F: Family>(tables: &FamilyTables<F>) -> Vec<u32> {
    let mut slow: Vec<u32> = tables
        .groups
        .iter()
        .flat_map(|group| group.updates.overloaded(MAX_UNREAD_WITHDRAWALS))
        .collect();
    if tables.loc_rib.unread_withdrawals() > MAX_UNREAD_WITHDRAWALS + tables.loc_rib.len() {
        let groups = tables.groups.iter().map(|group| &group.updates);
        let behind = groups.filter(|group| group.has_changes(&tables.loc_rib));
        if let Some(slowest) = behind.clone().map(UpdateGroup::cursor).min() {
            let slowest = behind.filter(|group| group.cursor() == slowest);
            slow.extend(slowest.flat_map(UpdateGroup::members));
        }
    }
    slow
}

/// Where UPDATEs for one peer go, and what making them needs.
struct Outlet<'a> {
    sources: &'a [Source],
    attrs: &'a mut AttrStore,
    out: &'a mut Vec<u8>,
}

impl Outlet<'_> {
    /// Does the next thing there is to do for a peer in a family, and adds up what it is told; `false` when there is none.
    fn advance<F: Family>(&mut self, tables: &mut FamilyTables<F>, index: u32, told: &mut Told) -> bool {
        let FamilyTables { loc_rib, groups, .. } = tables;
        let Some(group) = groups.of_mut(index) else {
            return false;
        };
        if let Some(more) = group.updates.take_chunk(index, self.out) {
            *told = told.plus(more);
            return true;
        }
        if let Some(missed) = group.updates.catch_up(index, BATCH) {
            let mut batch = Batch::new(&group.treatment.context, self.attrs);
            batch.catch_up(&missed, index, &group.updates, loc_rib);
            let chunk = batch.finish(false);
            *told = told.plus(chunk.append_for(SourceId::peer(index), self.out));
            return true;
        }
        let mut dests = Vec::new();
        if !group.updates.next_batch(loc_rib, BATCH, &mut dests) {
            return false;
        }
        let mut batch = Batch::new(&group.treatment.context, self.attrs);
        for dest in dests {
            batch.compare(
                dest,
                loc_rib,
                (&group.treatment, &mut group.updates),
                self.sources,
            );
        }
        if batch.has_withdrawn && group.treatment.has_room(&group.updates.sent) {
            group.updates.note_room();
        }
        let chunk = batch.finish(group.updates.len() > 1);
        group.updates.push(chunk, loc_rib);
        true
    }
}

/// What became of a set from a source: the place among the templates; `None` is not told.
type ExportCache = HashMap<(AttrId, SourceId), Option<usize>, FixedState>;

/// Something to tell.
#[derive(Clone, Copy)]
struct Change<F: Family> {
    /// Whose route it is.
    source: SourceId,
    /// The place among the templates; `None` for a withdrawal.
    template: Option<usize>,
    route: Nlri<F>,
}

/// Destinations looked at together, and what there is to tell of them.
struct Batch<'a, F: Family> {
    context: &'a EncodeContext,
    attrs: &'a mut AttrStore,
    /// Each with a reference to its set, so that no handle changes its meaning meanwhile.
    templates: Vec<(AttrId, UpdateTemplate<F>)>,
    places: HashMap<AttrId, usize, FixedState>,
    cache: ExportCache,
    changes: Vec<Change<F>>,
    /// For single members: those whose own route comes into the place of another one, or the other way round.
    extras: BTreeMap<SourceId, Vec<Change<F>>>,
    has_withdrawn: bool,
}

impl<'a, F: Family> Batch<'a, F> {
    fn new(context: &'a EncodeContext, attrs: &'a mut AttrStore) -> Self {
        Self {
            context,
            attrs,
            templates: Vec::new(),
            places: HashMap::default(),
            cache: ExportCache::default(),
            changes: Vec::new(),
            extras: BTreeMap::new(),
            has_withdrawn: false,
        }
    }

    /// Compares what is to be told of a destination with what was told.
    fn compare(
        &mut self,
        dest: DestId,
        loc_rib: &LocRib<F>,
        (treatment, group): (&Treatment, &mut UpdateGroup<F>),
        sources: &[Source],
    ) {
        let destination = loc_rib.get(dest);
        let mut new = self.wanted(destination, treatment, sources);
        let old = group.sent.get(dest);
        let excess = treatment.excess(&group.sent, new.len(), old.len());
        if excess > 0 {
            new.truncate(new.len().saturating_sub(excess));
            group.hold_back();
        }
        let unchanged = new.iter().map(|(_, path)| path).eq(&old);
        if unchanged {
            return;
        }
        for path in &old {
            if !new.iter().any(|(_, now)| now.path_id == path.path_id) {
                self.tell(destination.prefix, Some(*path), None, group);
            }
        }
        for (place, path) in &new {
            let before = old.iter().find(|old| old.path_id == path.path_id);
            self.tell(destination.prefix, before.copied(), Some((*place, *path)), group);
        }
        let told: SentPaths = new.into_iter().map(|(_, path)| path).collect();
        for path in &told {
            self.attrs.retain(path.attrs);
        }
        group.sent.replace(dest, &told, self.attrs);
    }

    /// What peers should know of a destination, with places of templates. The sets are held by the templates.
    fn wanted(
        &mut self,
        destination: &Destination<F::Prefix>,
        treatment: &Treatment,
        sources: &[Source],
    ) -> SmallVec<[(usize, SentPath); 1]> {
        let paths = match treatment.add_path {
            None => destination.best().map_or(&[][..], std::slice::from_ref),
            Some(send) => destination.usable_paths(send.limit()),
        };
        let told = paths.iter().filter_map(|path| {
            let place = self.exported(destination.prefix, path, treatment, sources)?;
            let (attrs, _) = self.templates.get(place)?;
            let sent = SentPath {
                path_id: treatment.add_path.map_or(0, |_| path.local_id.into()),
                attrs: *attrs,
                source: path.source,
            };
            Some((place, sent))
        });
        told.collect()
    }

    /// The template for a path, if peers may hear of it.
    fn exported(
        &mut self,
        prefix: F::Prefix,
        path: &Path,
        treatment: &Treatment,
        sources: &[Source],
    ) -> Option<usize> {
        let key = (path.accepted()?, path.source);
        if let Some(known) = self.cache.get(&key) {
            return *known;
        }
        let source = sources.get(path.source.index())?;
        let exported = treatment.export::<F>(prefix, path.source, source, self.attrs.get(key.0));
        let place = exported.ok().and_then(|attributes| {
            let id = self.attrs.intern(attributes);
            let place = self.template(id);
            self.attrs.release(id);
            place
        });
        if treatment.exporter.is_uniform() {
            self.cache.insert(key, place);
        }
        place
    }

    /// The place of the template for a set; `None` when no message can carry it (RFC 4271 §9.2: then peers must not keep what they had).
    fn template(&mut self, id: AttrId) -> Option<usize> {
        if let Some(place) = self.places.get(&id) {
            return Some(*place);
        }
        let template = UpdateTemplate::announce(self.attrs.get(id), self.context).ok()?;
        self.attrs.retain(id);
        self.templates.push((id, template));
        let place = self.templates.len() - 1;
        self.places.insert(id, place);
        Some(place)
    }

    /// Notes what a change of one path means: to all members, to the one it came from, and to the one it comes from now.
    fn tell(
        &mut self,
        prefix: F::Prefix,
        old: Option<SentPath>,
        new: Option<(usize, SentPath)>,
        group: &UpdateGroup<F>,
    ) {
        let sent = old.or(new.map(|(_, path)| path));
        let route = Nlri {
            prefix,
            path_id: sent.map_or(0, |path| path.path_id),
        };
        let change = |source, template| Change {
            source,
            template,
            route,
        };
        match (old, new) {
            (Some(old), None) => {
                self.has_withdrawn = true;
                self.changes.push(change(old.source, None));
            }
            (Some(old), Some((place, new))) => {
                if old.attrs != new.attrs {
                    self.changes.push(change(new.source, Some(place)));
                } else if old.source != new.source && group.has_member(old.source) {
                    let extra = change(old.source, Some(place));
                    self.extras.entry(old.source).or_default().push(extra);
                }
                if old.source != new.source && group.has_member(new.source) {
                    let extra = change(new.source, None);
                    self.extras.entry(new.source).or_default().push(extra);
                }
            }
            (None, Some((place, new))) => self.changes.push(change(new.source, Some(place))),
            (None, None) => {}
        }
    }

    /// Notes the latest state of what a member missed.
    fn catch_up(&mut self, missed: &CatchUp<F>, member: u32, group: &UpdateGroup<F>, loc_rib: &LocRib<F>) {
        let member = SourceId::peer(member);
        match missed {
            CatchUp::Walk(dests) => {
                for dest in dests {
                    let prefix = loc_rib.get(*dest).prefix;
                    for path in group.sent.get(*dest) {
                        self.tell_again(prefix, path);
                    }
                }
            }
            CatchUp::Overdue(routes) => {
                for route in routes {
                    let told = loc_rib.find(route.prefix).map(|dest| group.sent.get(dest));
                    let path = told
                        .into_iter()
                        .flatten()
                        .find(|path| path.path_id == route.path_id);
                    match path.filter(|path| path.source != member) {
                        Some(path) => self.tell_again(route.prefix, path),
                        None => self.changes.push(Change {
                            source: SourceId::ORIGINATED,
                            template: None,
                            route: *route,
                        }),
                    }
                }
            }
        }
    }

    fn tell_again(&mut self, prefix: F::Prefix, path: SentPath) {
        let template = self.template(path.attrs);
        let path_id = path.path_id;
        self.changes.push(Change {
            source: path.source,
            template,
            route: Nlri { prefix, path_id },
        });
    }

    /// The messages; with notes of what they are about when others than the maker get them too.
    fn finish(mut self, is_shared: bool) -> Chunk<F> {
        let mut chunk = Chunk::default();
        if is_shared {
            let extras = self.extras.values().flatten();
            for change in self.changes.iter().chain(extras) {
                chunk.note(change.route);
            }
        }
        self.changes
            .sort_unstable_by_key(|change| (change.source, change.template));
        let withdraw = UpdateTemplate::withdraw(self.context);
        let told = |template: Option<usize>, count| match template {
            Some(_) => Told::announcements(count),
            None => Told::withdrawals(count),
        };
        let template_of = |place: Option<usize>| match place {
            Some(place) => self
                .templates
                .get(place)
                .map_or(&withdraw, |(_, template)| template),
            None => &withdraw,
        };
        for run in self
            .changes
            .chunk_by(|a, b| (a.source, a.template) == (b.source, b.template))
        {
            let Some(first) = run.first() else {
                continue;
            };
            let routes = run.iter().map(|change| change.route);
            let template = template_of(first.template);
            let count = told(first.template, run.len());
            chunk.write(first.source, count, |out| template.encode_all(routes, out));
        }
        for (member, changes) in &mut self.extras {
            changes.sort_unstable_by_key(|change| change.template);
            for run in changes.chunk_by(|a, b| a.template == b.template) {
                let Some(first) = run.first() else {
                    continue;
                };
                let routes = run.iter().map(|change| change.route);
                let template = template_of(first.template);
                let count = told(first.template, run.len());
                chunk.write_extra(*member, count, |out| template.encode_all(routes, out));
            }
        }
        for (id, _) in &self.templates {
            self.attrs.release(*id);
        }
        chunk
    }
}

/// Counts what a peer was told.
fn note_told(entry: &mut PeerEntry, told: [Told; 2]) {
    for (family, told) in [Ipv4Unicast::AFI_SAFI, Ipv6Unicast::AFI_SAFI].iter().zip(told) {
        if let Some(progress) = entry.progress.get_mut(family) {
            progress.told = progress.told.plus(told);
        }
    }
}

/// Appends End-of-RIB for the families of which everything was told.
fn send_end_of_rib(entry: &mut PeerEntry, walked: [(AfiSafi, bool); 2], out: &mut Vec<u8>) -> u64 {
    let mut count = 0;
    for (family, has_work) in walked {
        if let Some(progress) = entry.progress.get_mut(&family)
            && !has_work
            && !progress.end_of_rib_sent
        {
            encode_end_of_rib(family, out);
            progress.end_of_rib_sent = true;
            count += 1;
        }
    }
    count
}

fn trim<F: Family>(tables: &mut FamilyTables<F>) {
    if tables.loc_rib.journal_len() < TRIM_FROM {
        return;
    }
    let readers = tables.groups.iter().map(|group| group.updates.cursor());
    let readers = readers
        .chain(tables.reader.as_ref().map(|reader| reader.cursor()))
        .chain(tables.underlay_cursor);
    let slowest = readers.min().unwrap_or_else(|| tables.loc_rib.journal_end());
    tables.loc_rib.trim(slowest);
}
