//! What goes out on a connection when its transport has room: what the session itself has to say, then UPDATEs made from the tables.
//!
//! A chunk is filled until it holds [`CHUNK`] octets; a batch of destinations is never cut, so that the largest chunk is
//! bounded by a batch of messages of greatest length.

use std::collections::BTreeMap;

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use super::export::Exporter;
use super::{FamilyTables, PeerEntry, Speaker};
use crate::family::{AfiSafi, Family, Ipv4Unicast, Ipv6Unicast};
use crate::rib::{AdjRibOut, AttrId, AttrStore, DestId, Source, SourceId};
use crate::session::{ConnId, State};
use crate::time::Time;
use crate::wire::context::EncodeContext;
use crate::wire::nlri::Nlri;
use crate::wire::notification::{CeaseError, Notification, NotificationCode};
use crate::wire::update::{UpdateTemplate, encode_end_of_rib};

/// Octets after which a chunk is full.
const CHUNK: usize = 48 * 1024;

/// Destinations looked at together: enough to share attribute sets, few enough to bound a chunk.
const BATCH: usize = 1024;

/// Destinations without paths that are kept for slow peers, beyond as many as there are destinations with paths. A peer that
/// needs more is given up: what is kept for it would grow as long as others announce and withdraw.
const MAX_UNREAD_WITHDRAWALS: usize = 65_536;

/// Journal entries from which trimming is worth a look at every reader.
const TRIM_FROM: usize = 256;

/// What became of a set from a source, within one batch; `None` is not announced.
type ExportCache = HashMap<(AttrId, SourceId), Option<AttrId>, FixedState>;

/// Destinations to announce with one attribute set.
type Announced<F> = (AttrId, Vec<(DestId, <F as Family>::Prefix)>);

/// What making UPDATEs for one peer needs besides the tables.
struct Outlet<'a> {
    index: u32,
    exporter: Exporter<'a>,
    context: EncodeContext,
    sources: &'a [Source],
    attrs: &'a mut AttrStore,
}

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
        Some(out)
    }

    /// Appends UPDATEs for a peer; returns how many.
    fn fill(&mut self, index: u32, out: &mut Vec<u8>) -> u64 {
        let end_of_rib = self.may_send_end_of_rib();
        let Some(entry) = self.peers.get(&index) else {
            return 0;
        };
        let Some(terms) = &entry.session else {
            return 0;
        };
        let mut outlet = Outlet {
            index,
            exporter: Exporter::new(index, entry, &self.config),
            context: terms.encode_context(),
            sources: &self.sources,
            attrs: &mut self.attrs,
        };
        let mut updates = 0;
        while out.len() < CHUNK {
            let before = out.len();
            let more = outlet.fill_family(&mut self.ipv4, out, &mut updates)
                | outlet.fill_family(&mut self.ipv6, out, &mut updates);
            if !more && out.len() == before {
                break;
            }
        }
        if end_of_rib && let Some(entry) = self.peers.get_mut(&index) {
            let walked = [
                (Ipv4Unicast::AFI_SAFI, has_work(&self.ipv4, index)),
                (Ipv6Unicast::AFI_SAFI, has_work(&self.ipv6, index)),
            ];
            updates += send_end_of_rib(entry, walked, out);
        }
        self.trim();
        updates
    }

    /// Forgets what every reader of the journals has read.
    fn trim(&mut self) {
        trim(&mut self.ipv4);
        trim(&mut self.ipv6);
    }

    /// Ends the sessions of peers that read so slowly that withdrawals nobody else needs any more pile up for them.
    pub(super) fn relieve(&mut self, now: Time) {
        let mut slow = laggards(&self.ipv4);
        slow.extend(laggards(&self.ipv6));
        if slow.is_empty() {
            return;
        }
        self.trim();
        slow.retain(|index| laggards(&self.ipv4).contains(index) || laggards(&self.ipv6).contains(index));
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

/// The peers that are behind all others, when too much is kept for them.
fn laggards<F: Family>(tables: &FamilyTables<F>) -> Vec<u32> {
    if tables.loc_rib.unread_withdrawals() <= MAX_UNREAD_WITHDRAWALS + tables.loc_rib.len() {
        return Vec::new();
    }
    let behind = |out: &AdjRibOut| tables.loc_rib.has_changes(out.cursor());
    let cursors = tables.adj_ribs_out.iter().filter(|(_, out)| behind(out));
    let Some(slowest) = cursors.clone().map(|(_, out)| out.cursor()).min() else {
        return Vec::new();
    };
    cursors
        .filter(|(_, out)| out.cursor() == slowest)
        .map(|(index, _)| *index)
        .collect()
}

impl Outlet<'_> {
    /// Appends the UPDATEs of one batch; returns whether there was one.
    fn fill_family<F: Family>(
        &mut self,
        tables: &mut FamilyTables<F>,
        out: &mut Vec<u8>,
        updates: &mut u64,
    ) -> bool {
        let Some(mut adj_rib_out) = tables.adj_ribs_out.remove(&self.index) else {
            return false;
        };
        let mut dests = Vec::new();
        let batch = adj_rib_out.next_batch(&tables.loc_rib, BATCH, &mut dests);
        let mut cache = ExportCache::default();
        let mut withdrawn: Vec<F::Prefix> = Vec::new();
        let mut announced: Vec<Announced<F>> = Vec::new();
        let mut places: BTreeMap<AttrId, usize> = BTreeMap::new();
        let resend = batch.is_some_and(|batch| batch.resend);
        for dest in dests {
            let mut new = self.wanted(tables, dest, &mut cache);
            let old = adj_rib_out.sent(dest);
            let over = adj_rib_out.announced() + usize::from(old.is_none()) > self.exporter.limit();
            if let Some(id) = new.filter(|_| over) {
                self.attrs.release(id);
                new = None;
                adj_rib_out.hold_back();
            }
            let prefix = tables.loc_rib.get(dest).prefix;
            match new {
                Some(id) if resend || old != Some(id) => {
                    let place = *places.entry(id).or_insert_with(|| {
                        announced.push((id, Vec::new()));
                        announced.len() - 1
                    });
                    announced[place].1.push((dest, prefix));
                }
                None if old.is_some() => withdrawn.push(prefix),
                _ => {}
            }
            if old != new {
                adj_rib_out.set_sent(dest, new, self.attrs);
            } else if let Some(id) = new {
                self.attrs.release(id);
            }
        }
        for (id, routes) in announced {
            match UpdateTemplate::<F>::announce(self.attrs.get(id), &self.context) {
                Ok(template) => {
                    let nlri = routes.into_iter().map(|(_, prefix)| Nlri::new(prefix));
                    *updates += template.encode_all(nlri, out) as u64;
                }
                // These attributes cannot be told to this peer: it must not keep what it had (RFC 4271 §9.2).
                Err(_) => {
                    for (dest, prefix) in routes {
                        adj_rib_out.set_sent(dest, None, self.attrs);
                        withdrawn.push(prefix);
                    }
                }
            }
        }
        if !withdrawn.is_empty() {
            if adj_rib_out.announced() < self.exporter.limit() {
                adj_rib_out.note_room();
            }
            let nlri = withdrawn.into_iter().map(Nlri::new);
            *updates += UpdateTemplate::<F>::withdraw(&self.context).encode_all(nlri, out) as u64;
        }
        for id in cache.into_values().flatten() {
            self.attrs.release(id);
        }
        tables.adj_ribs_out.insert(self.index, adj_rib_out);
        batch.is_some()
    }

    /// What the peer should know of a destination; the caller gets a reference of its own.
    fn wanted<F: Family>(
        &mut self,
        tables: &FamilyTables<F>,
        dest: DestId,
        cache: &mut ExportCache,
    ) -> Option<AttrId> {
        let destination = tables.loc_rib.get(dest);
        let best = destination.best()?;
        let key = (best.accepted()?, best.source);
        if let Some(known) = cache.get(&key).copied() {
            known.inspect(|id| self.attrs.retain(*id))
        } else {
            let source = self.sources.get(best.source.index())?;
            let exported =
                self.exporter
                    .export::<F>(destination.prefix, best.source, source, self.attrs.get(key.0));
            let id = exported.ok().map(|attributes| self.attrs.intern(attributes));
            if self.exporter.is_uniform() {
                id.inspect(|id| self.attrs.retain(*id));
                cache.insert(key, id);
            }
            id
        }
    }
}

fn has_work<F: Family>(tables: &FamilyTables<F>, index: u32) -> bool {
    tables
        .adj_ribs_out
        .get(&index)
        .is_some_and(|out| out.has_work(&tables.loc_rib))
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
    let readers = tables.adj_ribs_out.values().map(|out| out.cursor());
    let readers = readers.chain(tables.reader.as_ref().map(|reader| reader.cursor()));
    let slowest = readers.min().unwrap_or_else(|| tables.loc_rib.journal_end());
    tables.loc_rib.trim(slowest);
}
