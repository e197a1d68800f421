//! Update groups: which peers are treated alike, so that what they are told is computed and encoded once.
//!
//! A [`Treatment`] is everything that the messages to a peer depend on, besides the routes themselves. Peers with equal treatments share a group. When a
//! configuration makes treatments differ, members that part take along what they know; when it makes them equal again, groups come together as
//! soon as both are at rest.

use std::collections::BTreeMap;

use super::export::Exporter;
use super::{FamilyTables, PeerEntry, Speaker, each_family};
use crate::config::{AddPathSend, SpeakerConfig};
use crate::family::{AfiSafi, Family};
use crate::rib::adj_rib_out::{AdjRibOut, PathsPerPrefix, SentPaths};
use crate::rib::update_group::UpdateGroup;
use crate::rib::{AttrStore, DestId, LocRib, Source, SourceId, Withheld};
use crate::wire::attr::Attributes;
use crate::wire::context::EncodeContext;

/// All that the UPDATEs of a family to a peer depend on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Treatment {
    pub(super) exporter: Exporter,
    pub(super) context: EncodeContext,
    /// Which of several paths are told (RFC 7911); `None`: the best.
    pub(super) add_path: Option<AddPathSend>,
    /// The most this peer is told of. What it hears then depends on what it heard: it is in a group alone.
    limit: Option<(SourceId, usize)>,
}

impl Treatment {
    /// What holds for a family of a peer with a session.
    pub(super) fn new(
        index: u32,
        entry: &PeerEntry,
        config: &SpeakerConfig,
        family: AfiSafi,
    ) -> Option<Self> {
        let terms = entry.session.as_ref()?;
        let peer = entry.peer.config();
        let limit = peer.prefix_limit_out;
        Some(Self {
            exporter: Exporter::new(entry, config),
            context: terms.encode_context(),
            add_path: peer
                .add_path
                .send
                .filter(|_| terms.add_path_out.contains(&family)),
            limit: limit.map(|limit| {
                (
                    SourceId::peer(index),
                    usize::try_from(limit).unwrap_or(usize::MAX),
                )
            }),
        })
    }

    /// What is told of a route with `attributes` from `source`, or why nothing is told.
    pub(super) fn export<F: Family>(
        &self,
        prefix: F::Prefix,
        from: SourceId,
        source: &Source,
        attributes: &Attributes,
    ) -> Result<Attributes, Withheld> {
        if self.limit.is_some_and(|(peer, _)| peer == from) {
            return Err(Withheld::FromThisPeer);
        }
        self.exporter.export::<F>(prefix, source, attributes)
    }

    /// How many paths are too many when `new` come into the place of `old`.
    pub(super) fn excess(&self, sent: &AdjRibOut, new: usize, old: usize) -> usize {
        let after = |peer| sent.announced_to(peer) + new - old;
        self.limit
            .map_or(0, |(peer, limit)| after(peer).saturating_sub(limit))
    }

    /// Whether another path may be told.
    pub(super) fn has_room(&self, sent: &AdjRibOut) -> bool {
        self.limit
            .is_none_or(|(peer, limit)| sent.announced_to(peer) < limit)
    }

    fn paths_per_prefix(&self) -> PathsPerPrefix {
        match self.add_path {
            None => PathsPerPrefix::One,
            Some(_) => PathsPerPrefix::Several,
        }
    }
}

/// Peers treated alike.
#[derive(Debug)]
pub(super) struct Group<F: Family> {
    pub(super) treatment: Treatment,
    pub(super) updates: UpdateGroup<F>,
}

/// All groups of a family.
#[derive(Debug)]
pub(super) struct Groups<F: Family> {
    groups: BTreeMap<u32, Group<F>>,
    /// The group of each peer with a session.
    by_peer: BTreeMap<u32, u32>,
    next: u32,
    /// There may be groups with equal treatments.
    scattered: bool,
}

impl<F: Family> Groups<F> {
    pub(super) const fn new() -> Self {
        Self {
            groups: BTreeMap::new(),
            by_peer: BTreeMap::new(),
            next: 0,
            scattered: false,
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Group<F>> + Clone {
        self.groups.values()
    }

    /// The peers that are told of the family.
    pub(super) fn peers(&self) -> impl Iterator<Item = u32> + '_ {
        self.by_peer.keys().copied()
    }

    /// The group of a peer.
    pub(super) fn of(&self, peer: u32) -> Option<&Group<F>> {
        self.groups.get(self.by_peer.get(&peer)?)
    }

    /// The group of a peer.
    pub(super) fn of_mut(&mut self, peer: u32) -> Option<&mut Group<F>> {
        self.groups.get_mut(self.by_peer.get(&peer)?)
    }

    /// What a peer is told of a destination.
    pub(super) fn told(&self, peer: u32, dest: DestId) -> SentPaths {
        let mut sent = self
            .of(peer)
            .map_or_else(SentPaths::new, |group| group.updates.sent.get(dest));
        sent.retain(|path| path.source != SourceId::peer(peer));
        sent
    }

    /// How many paths a peer is told of.
    pub(super) fn announced_to(&self, peer: u32) -> usize {
        let group = self.of(peer);
        group.map_or(0, |group| group.updates.sent.announced_to(SourceId::peer(peer)))
    }

    /// Everything is to be compared with what was told.
    pub(super) fn start_walk(&mut self) {
        for group in self.groups.values_mut() {
            group.updates.start_walk();
        }
    }

    /// A peer with a new session gets its place.
    fn join(&mut self, peer: u32, treatment: Treatment, loc_rib: &LocRib<F>) {
        let alike = self.groups.iter().find(|(_, group)| group.treatment == treatment);
        let id = match alike {
            Some((id, _)) => *id,
            None => {
                let updates = UpdateGroup::new(loc_rib, treatment.paths_per_prefix());
                self.add(Group { treatment, updates })
            }
        };
        self.by_peer.insert(peer, id);
        if let Some(group) = self.groups.get_mut(&id) {
            group.updates.join(peer);
        }
    }

    fn add(&mut self, group: Group<F>) -> u32 {
        let id = self.next;
        self.next += 1;
        self.groups.insert(id, group);
        id
    }

    /// A peer's session is over.
    pub(super) fn leave(&mut self, peer: u32, attrs: &mut AttrStore) {
        let Some(id) = self.by_peer.remove(&peer) else {
            return;
        };
        if let Some(group) = self.groups.get_mut(&id) {
            group.updates.leave(peer);
            if group.updates.is_empty() {
                group.updates.sent.clear(attrs);
                self.groups.remove(&id);
            }
        }
    }

    /// Groups the peers by new treatments. Who is treated otherwise than before is told the difference.
    fn regroup(
        &mut self,
        loc_rib: &LocRib<F>,
        attrs: &mut AttrStore,
        treatment_of: impl Fn(u32) -> Option<Treatment>,
    ) {
        let mut parted = Vec::new();
        for group in self.groups.values_mut() {
            let mut parts: Vec<(Treatment, Vec<u32>)> = Vec::new();
            for peer in group.updates.members() {
                let treatment = treatment_of(peer).unwrap_or_else(|| group.treatment.clone());
                match parts.iter_mut().find(|(other, _)| *other == treatment) {
                    Some((_, peers)) => peers.push(peer),
                    None => parts.push((treatment, vec![peer])),
                }
            }
            parts.sort_by_key(|(_, peers)| peers.len());
            let Some((most, _)) = parts.pop() else {
                continue;
            };
            for (treatment, peers) in parts {
                let mut updates = group.updates.split(&peers, loc_rib, attrs);
                if treatment != group.treatment {
                    updates.start_walk();
                }
                parted.push((peers, Group { treatment, updates }));
            }
            if most != group.treatment {
                group.treatment = most;
                group.updates.start_walk();
                self.scattered = true;
            }
        }
        for (peers, group) in parted {
            let id = self.add(group);
            self.by_peer.extend(peers.into_iter().map(|peer| (peer, id)));
            self.scattered = true;
        }
    }

    /// Brings groups together that treat their members alike, where both are at rest.
    pub(super) fn merge(&mut self, loc_rib: &LocRib<F>, attrs: &mut AttrStore) {
        if !self.scattered {
            return;
        }
        self.scattered = false;
        let ids: Vec<u32> = self.groups.keys().copied().collect();
        for id in ids {
            let Some(mut group) = self.groups.remove(&id) else {
                continue;
            };
            let alike = self
                .groups
                .values_mut()
                .find(|other| other.treatment == group.treatment);
            match alike {
                Some(other) => {
                    let peers: Vec<u32> = group.updates.members().collect();
                    if other.updates.merge(&mut group.updates, loc_rib) {
                        group.updates.sent.clear(attrs);
                        let of = self
                            .groups
                            .iter()
                            .find(|(_, other)| other.treatment == group.treatment);
                        let target = of.map_or(id, |(target, _)| *target);
                        self.by_peer.extend(peers.into_iter().map(|peer| (peer, target)));
                    } else {
                        self.scattered = true;
                        self.groups.insert(id, group);
                    }
                }
                None => {
                    self.groups.insert(id, group);
                }
            }
        }
    }
}

impl<F: Family> FamilyTables<F> {
    /// Whether there may be something to tell a peer.
    pub(super) fn has_work(&self, peer: u32) -> bool {
        let group = self.groups.of(peer);
        group.is_some_and(|group| group.updates.has_work(peer, &self.loc_rib))
    }

    /// Tells a peer everything again, if `family` is this one (RFC 2918).
    pub(super) fn tell_again(&mut self, peer: u32, family: AfiSafi) {
        if let Some(group) = self.groups.of_mut(peer).filter(|_| family == F::AFI_SAFI) {
            group.updates.tell_again(peer);
        }
    }

    /// Whether a peer is being told everything and has not heard all.
    pub(super) fn is_walking(&self, peer: u32) -> bool {
        let group = self.groups.of(peer);
        group.is_some_and(|group| group.updates.is_walking(peer))
    }

    /// A peer with a new session is to be told of the family, if its session carries it.
    fn join_group(&mut self, peer: u32, entry: &PeerEntry, config: &SpeakerConfig) {
        let carried = entry
            .session
            .as_ref()
            .is_some_and(|terms| terms.families.contains(&F::AFI_SAFI));
        if let Some(treatment) = Treatment::new(peer, entry, config, F::AFI_SAFI).filter(|_| carried) {
            if treatment.add_path.is_some() {
                self.loc_rib.watch_all_paths();
            }
            self.groups.join(peer, treatment, &self.loc_rib);
        }
    }

    fn regroup(&mut self, attrs: &mut AttrStore, peers: &BTreeMap<u32, PeerEntry>, config: &SpeakerConfig) {
        self.groups.regroup(&self.loc_rib, attrs, |peer| {
            Treatment::new(peer, peers.get(&peer)?, config, F::AFI_SAFI)
        });
    }
}

impl Speaker {
    /// A peer's session is new: it is to be told everything.
    pub(super) fn join_groups(&mut self, index: u32) {
        let Some(entry) = self.peers.get(&index) else {
            return;
        };
        each_family!(self, tables => tables.join_group(index, entry, &self.config));
    }

    /// A peer's session is over.
    pub(super) fn leave_groups(&mut self, index: u32) {
        each_family!(self, tables => tables.groups.leave(index, &mut self.attrs));
    }

    /// The configuration has changed: who is to be told something else by it is.
    pub(super) fn regroup(&mut self) {
        each_family!(self, tables => tables.regroup(&mut self.attrs, &self.peers, &self.config));
    }
}
