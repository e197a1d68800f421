//! A new configuration, applied to running sessions: only a change of identity resets one.

use std::collections::BTreeMap;

use super::import::Importer;
use super::{PeerEntry, Speaker, each_family, source_of};
use crate::config::{
    ConfigError, Effect, Impact, Level, PeerConfig, PeerImpact, SessionImpact, SpeakerConfig,
};
use crate::family::Prefix;
use crate::rib::{Import, Path, SourceId, Tables};
use crate::route::Origination;
use crate::time::Time;
use crate::wire::attr::{Attributes, LocalFacts};
use crate::wire::notification::CeaseError;

impl Speaker {
    /// What [`Speaker::configure`] would do, without doing it.
    ///
    /// # Errors
    /// When `config` is none.
    pub fn plan(&self, config: &SpeakerConfig) -> Result<Impact, ConfigError> {
        config.check()?;
        let mut impact = self.config.impact_of(config);
        let all_new = impact.speaker.iter().any(|change| change.effect == Effect::Reset);
        for entry in self.peers.values().filter(|entry| entry.range.is_some()) {
            let before = entry.peer.config();
            match range_peer(config, entry) {
                None => {
                    let removed = PeerImpact::whole(&before.name, SessionImpact::Removed);
                    impact.peers.push(removed);
                }
                Some(after) => {
                    impact.peers.extend(PeerImpact::between(before, &after));
                    if all_new {
                        impact.reset(&before.name);
                    }
                }
            }
        }
        impact.peers.sort_by(|a, b| a.peer.cmp(&b.peer));
        Ok(impact)
    }

    /// Follows `config` from now on.
    ///
    /// # Errors
    /// When it is none; nothing has changed then.
    pub fn configure(&mut self, config: SpeakerConfig, now: Time) -> Result<Impact, ConfigError> {
        let impact = self.plan(&config)?;
        let old = std::mem::replace(&mut self.config, config);
        let link_names_change = self.attrs.note_links(self.config.link_names());
        for peer in &impact.peers {
            let cease = match peer.session {
                SessionImpact::Removed => CeaseError::PeerDeconfigured,
                SessionImpact::Reset => CeaseError::OtherConfigurationChange,
                _ => continue,
            };
            if let Some(index) = self.index_of(&peer.peer) {
                self.remove_peer(index, cease, now);
            }
        }
        for peer in &impact.peers {
            match peer.session {
                SessionImpact::Removed => {}
                SessionImpact::Added | SessionImpact::Reset => {
                    // One of a range comes back by itself.
                    let configured = self.config.peers.iter().find(|wanted| wanted.name == peer.peer);
                    if let Some(wanted) = configured.cloned() {
                        self.add_peer(wanted, now);
                    }
                }
                _ => self.change_peer(peer, now),
            }
        }
        self.apply_speaker_changes(&old);
        if link_names_change {
            self.reimport_all();
        }
        if old.sync_timeout != self.config.sync_timeout {
            self.sync.wait_until(now + self.config.sync_timeout);
        }
        self.regroup();
        self.agenda.stir();
        self.update_sync(now);
        Ok(impact)
    }

    pub(super) fn index_of(&self, name: &str) -> Option<u32> {
        let named = |(_, entry): &(&u32, &PeerEntry)| entry.peer.config().name == name;
        self.peers.iter().find(named).map(|(index, _)| *index)
    }

    fn change_peer(&mut self, impact: &PeerImpact, now: Time) {
        let Some(index) = self.index_of(&impact.peer) else {
            return;
        };
        let configured = self.config.peers.iter().find(|peer| peer.name == impact.peer);
        let Some(entry) = self.peers.get_mut(&index) else {
            return;
        };
        let Some(after) = configured.cloned().or_else(|| range_peer(&self.config, entry)) else {
            return;
        };
        let reflection = entry.peer.config().route_reflector_client != after.route_reflector_client;
        entry.peer.set_config(after, now);
        if let Some(source) = self.sources.get_mut(SourceId::peer(index).index()) {
            let router_id = source.router_id;
            *source = source_of(&entry.peer);
            source.router_id = router_id;
        }
        self.drain(index, now);
        if impact.has(Effect::Refresh) {
            self.forget_limit(index, now);
        }
        if impact.has(Effect::Import) {
            self.reimport(index);
        }
        if impact.has(Effect::Select) {
            self.select_all();
        }
        if reflection {
            // Who may hear the routes of the peer changed too.
            self.reexport_all();
        }
    }

    /// Judges a peer by its new prefix limit; what the old one kept out is asked for again.
    fn forget_limit(&mut self, index: u32, now: Time) {
        let Some(entry) = self.peers.get_mut(&index) else {
            return;
        };
        let name = entry.peer.config().name.clone();
        let mut again = Vec::new();
        for (family, progress) in &mut entry.progress {
            progress.level = Level::Low;
            if std::mem::take(&mut progress.discarded) > 0 {
                again.push(*family);
            }
        }
        self.check_prefix_limit(index, &[], now);
        self.drain(index, now);
        for family in again {
            self.request_refresh(&name, family);
        }
    }

    fn apply_speaker_changes(&mut self, old: &SpeakerConfig) {
        let next_hops =
            |config: &SpeakerConfig| (config.cluster_id, config.next_hop_ipv4, config.next_hop_ipv6);
        if next_hops(old) != next_hops(&self.config) {
            self.reimport_all();
            self.reexport_all();
        }
        if old.decision != self.config.decision {
            self.select_all();
            self.reexport_all();
        }
    }

    /// Runs import again over everything that was received.
    pub(super) fn reimport_all(&mut self) {
        for index in self.peers.keys().copied().collect::<Vec<_>>() {
            self.reimport(index);
        }
    }

    /// Runs import again over what a peer announced.
    fn reimport(&mut self, index: u32) {
        let Some(entry) = self.peers.get(&index) else {
            return;
        };
        let importer = Importer::new(entry, &self.config);
        let source = SourceId::peer(index);
        let mut tables = Tables {
            attrs: &mut self.attrs,
            sources: &self.sources,
            decision: &self.config.decision,
        };
        self.ipv4
            .loc_rib
            .reimport(source, &mut tables, |prefix, received, attrs| {
                importer.import::<crate::family::Ipv4Unicast>(prefix, received, attrs)
            });
        self.ipv6
            .loc_rib
            .reimport(source, &mut tables, |prefix, received, attrs| {
                importer.import::<crate::family::Ipv6Unicast>(prefix, received, attrs)
            });
    }

    fn select_all(&mut self) {
        let tables = Tables {
            attrs: &mut self.attrs,
            sources: &self.sources,
            decision: &self.config.decision,
        };
        each_family!(self, family => family.loc_rib.select_all(&tables.comparison()));
    }

    /// Compares everything with what peers were told: something changed that is not in what their groups are made of.
    fn reexport_all(&mut self) {
        each_family!(self, tables => tables.groups.start_walk());
        self.agenda.stir();
    }

    /// Makes the originated routes exactly `routes`.
    pub(super) fn set_originations(&mut self, routes: BTreeMap<Prefix, Origination>, now: Time) {
        let old = std::mem::replace(&mut self.originations, routes);
        let mut tables = Tables {
            attrs: &mut self.attrs,
            sources: &self.sources,
            decision: &self.config.decision,
        };
        for prefix in old
            .keys()
            .filter(|prefix| !self.originations.contains_key(prefix))
        {
            match prefix {
                Prefix::V4(prefix) => {
                    self.ipv4
                        .loc_rib
                        .withdraw(*prefix, SourceId::ORIGINATED, 0, &mut tables);
                }
                Prefix::V6(prefix) => {
                    self.ipv6
                        .loc_rib
                        .withdraw(*prefix, SourceId::ORIGINATED, 0, &mut tables);
                }
            }
        }
        for (prefix, origination) in self
            .originations
            .iter()
            .filter(|(prefix, new)| old.get(*prefix) != Some(*new))
        {
            let id = tables.attrs.intern(attributes_of(origination));
            let source = SourceId::ORIGINATED;
            let path = Path {
                source,
                path_id: 0,
                local_id: 0,
                received: id,
                import: Import::Accepted(id),
                learnt: now.seconds(),
                stale: false,
            };
            // There is always room for the one path of ours.
            let _stored = match prefix {
                Prefix::V4(prefix) => self.ipv4.loc_rib.announce(*prefix, path, &mut tables),
                Prefix::V6(prefix) => self.ipv6.loc_rib.announce(*prefix, path, &mut tables),
            };
            tables.attrs.release(id);
        }
    }
}

fn attributes_of(origination: &Origination) -> Attributes {
    Attributes {
        next_hop: origination.next_hop.map(Into::into),
        local_pref: origination.local_pref,
        med: origination.med,
        communities: origination.communities.iter().copied().collect(),
        large_communities: origination.large_communities.iter().copied().collect(),
        local: LocalFacts {
            priority: origination.priority,
            interface: origination.interface.as_deref().map(Into::into),
        },
        ..Attributes::default()
    }
}

/// What `config` makes of a peer that a range has made; `None` when it is not of that range any more.
fn range_peer(config: &SpeakerConfig, entry: &PeerEntry) -> Option<PeerConfig> {
    let peer = entry.peer.config();
    if config.peers.iter().any(|other| other.address == peer.address) {
        return None;
    }
    let range = config.dynamic_at(peer.address)?;
    if entry.range.as_ref() != Some(&range.name) {
        return None;
    }
    let mut after = range.peer(peer.address, peer.scope_id);
    if after.open_as == peer.open_as && peer.open_as.is_some() {
        after.remote_as = peer.remote_as;
    }
    Some(after)
}
