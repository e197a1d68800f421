//! What a new configuration means for the sessions of the old one: worked out before it is applied, and what is applied follows from it.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::{PeerConfig, SpeakerConfig};

/// What a change of configuration does.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Impact {
    /// Peers to which something happens, by name.
    pub peers: Vec<PeerImpact>,
    /// Changes that concern no single peer.
    pub speaker: Vec<Change>,
}

/// What happens to one peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerImpact {
    /// Its name.
    pub peer: String,
    /// What becomes of its session.
    pub session: SessionImpact,
    /// What changed, and what each change does.
    pub changes: Vec<Change>,
}

/// What becomes of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SessionImpact {
    /// The peer is new.
    Added,
    /// The peer is gone; its session ends with Cease / Peer De-configured.
    Removed,
    /// It ends with Cease / Other Configuration Change and another one begins.
    Reset,
    /// It ends, and there is to be none.
    HeldDown,
    /// There was to be none, and now there is.
    Released,
    /// It goes on.
    Stays,
}

/// One thing that changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// What, in words.
    pub what: String,
    /// What that does.
    pub effect: Effect,
}

/// What one change does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// It counts from the next connection, or the next time that the timer starts.
    NextConnection,
    /// It is said in OPEN, and so counts from the next session.
    NextSession,
    /// It is set on the sockets in use.
    Socket,
    /// Best routes are selected again.
    Select,
    /// What peers are told is worked out again, and differences are sent.
    Export,
    /// What was received is judged again, from memory.
    Import,
    /// What was discarded is asked for again (route refresh).
    Refresh,
    /// The session ends, or may begin.
    Hold,
    /// The session is with somebody else, or over another transport.
    Reset,
}

impl Impact {
    /// Whether nothing happens.
    pub fn is_empty(&self) -> bool {
        self.peers.is_empty() && self.speaker.is_empty()
    }

    /// Names of the peers whose session is to be so.
    pub fn with_session(&self, session: SessionImpact) -> Vec<&str> {
        let peers = self.peers.iter().filter(|peer| peer.session == session);
        peers.map(|peer| peer.peer.as_str()).collect()
    }

    /// Names of the peers to which a change has this effect.
    pub fn with_effect(&self, effect: Effect) -> Vec<&str> {
        let peers = self.peers.iter().filter(|peer| peer.has(effect));
        peers.map(|peer| peer.peer.as_str()).collect()
    }
}

impl PeerImpact {
    /// What becomes of a peer that is configured before and after; `None` for nothing.
    pub fn between(before: &PeerConfig, after: &PeerConfig) -> Option<Self> {
        let changes = compare(before, after);
        let session = match changes.iter().map(|change| change.effect).max()? {
            Effect::Reset => SessionImpact::Reset,
            Effect::Hold if after.held_down().is_some() => SessionImpact::HeldDown,
            Effect::Hold => SessionImpact::Released,
            _ => SessionImpact::Stays,
        };
        Some(Self {
            peer: before.name.clone(),
            session,
            changes,
        })
    }

    /// Of a peer that is there on one side only.
    pub fn whole(peer: &str, session: SessionImpact) -> Self {
        Self {
            peer: peer.to_owned(),
            session,
            changes: Vec::new(),
        }
    }

    /// Whether a change has this effect.
    pub fn has(&self, effect: Effect) -> bool {
        self.changes.iter().any(|change| change.effect == effect)
    }
}

impl SpeakerConfig {
    /// What becomes of the configured peers when `new` takes the place of this configuration. See [`crate::Speaker::plan`] for all peers.
    #[must_use]
    pub fn impact_of(&self, new: &Self) -> Impact {
        let named = |config: &Self| -> BTreeMap<String, PeerConfig> {
            let peers = config.peers.iter();
            peers.map(|peer| (peer.name.clone(), peer.clone())).collect()
        };
        let (before, mut wanted) = (named(self), named(new));
        let mut peers = Vec::new();
        for (name, peer) in &before {
            match wanted.remove(name) {
                None => peers.push(PeerImpact::whole(name, SessionImpact::Removed)),
                Some(after) => peers.extend(PeerImpact::between(peer, &after)),
            }
        }
        peers.extend(
            wanted
                .keys()
                .map(|name| PeerImpact::whole(name, SessionImpact::Added)),
        );
        let mut impact = Impact {
            peers,
            speaker: self.speaker_changes(new),
        };
        let all_new = impact.speaker.iter().any(|change| change.effect == Effect::Reset);
        for name in before.keys().filter(|_| all_new) {
            impact.reset(name);
        }
        impact.peers.sort_by(|a, b| a.peer.cmp(&b.peer));
        impact
    }

    fn speaker_changes(&self, new: &Self) -> Vec<Change> {
        let next_hops = (self.next_hop_ipv4, self.next_hop_ipv6) != (new.next_hop_ipv4, new.next_hop_ipv6);
        let rows = [
            ("our AS", Effect::Reset, self.local_as != new.local_as),
            (
                "router identifier",
                Effect::Reset,
                self.router_id != new.router_id,
            ),
            (
                "cluster identifier",
                Effect::Import,
                self.cluster_id != new.cluster_id,
            ),
            ("our next hops", Effect::Import, next_hops),
            (
                "how the best route is chosen",
                Effect::Select,
                self.decision != new.decision,
            ),
            (
                "ranges of peers",
                Effect::NextConnection,
                self.dynamic != new.dynamic,
            ),
            (
                "wait for peers",
                Effect::NextConnection,
                self.sync_timeout != new.sync_timeout,
            ),
        ];
        changed(&rows)
    }
}

impl Impact {
    /// The session of a peer that stays configured must begin anew because of the speaker itself.
    pub(crate) fn reset(&mut self, name: &str) {
        match self.peers.iter_mut().find(|peer| peer.peer == name) {
            Some(peer) if peer.session != SessionImpact::Removed => peer.session = SessionImpact::Reset,
            Some(_) => {}
            None => self.peers.push(PeerImpact::whole(name, SessionImpact::Reset)),
        }
    }
}

/// Everything in which two configurations of a peer differ.
fn compare(before: &PeerConfig, after: &PeerConfig) -> Vec<Change> {
    let mut changes = of_session(before, after);
    changes.extend(of_routes(before, after));
    changes
}

/// What concerns the session. A field that is new must be sorted in here to compile, if only as one of [`of_routes`].
fn of_session(before: &PeerConfig, after: &PeerConfig) -> Vec<Change> {
    // Of routes:
    let PeerConfig {
        name: _,
        route_reflector_client: _,
        route_server_client: _,
        next_hop: _,
        import: _,
        export: _,
        weight: _,
        allow_own_as: _,
        as_override: _,
        remove_private_as: _,
        enforce_first_as: _,
        priority_in_local_pref: _,
        graceful_shutdown: _,
        blackhole: _,
        prefix_limit_in: _,
        prefix_limit_out: _,
        address,
        scope_id,
        interface,
        port,
        remote_as,
        open_as,
        local_address,
        connect,
        families,
        add_path,
        extended_next_hop,
        enhanced_refresh,
        hold_time,
        connect_retry,
        delay_open,
        idle_hold,
        idle_hold_max,
        send_hold_time,
        local_as,
        role,
        shutdown,
        graceful_restart,
        transport,
    } = before;
    let timers = (connect_retry, delay_open, send_hold_time)
        != (&after.connect_retry, &after.delay_open, &after.send_hold_time);
    let waits = (idle_hold, idle_hold_max) != (&after.idle_hold, &after.idle_hold_max);
    let secrets = (&transport.md5_password, &transport.missing_secret)
        != (&after.transport.md5_password, &after.transport.missing_secret);
    let signed = transport.is_signed() != after.transport.is_signed();
    let missing = transport.missing_secret.is_some() != after.transport.missing_secret.is_some();
    let place = (address, scope_id) != (&after.address, &after.scope_id);
    let asn = (remote_as, open_as) != (&after.remote_as, &after.open_as);
    let spoken_as = local_as.map(|local| local.asn) != after.local_as.map(|local| local.asn);
    let down = shutdown.is_some() != after.shutdown.is_some();
    let next_hops = *extended_next_hop != after.extended_next_hop;
    changed(&[
        ("address", Effect::Reset, place),
        ("interface", Effect::Reset, *interface != after.interface),
        ("AS", Effect::Reset, asn),
        ("our AS towards it", Effect::Reset, spoken_as),
        (
            "our address",
            Effect::Reset,
            *local_address != after.local_address,
        ),
        ("whether segments are signed (TCP-MD5)", Effect::Reset, signed),
        ("shutdown", Effect::Hold, down),
        ("a missing TCP-MD5 password", Effect::Hold, missing && !signed),
        (
            "words for the shutdown",
            Effect::NextConnection,
            !down && *shutdown != after.shutdown,
        ),
        ("TCP-MD5 password", Effect::Socket, secrets && !signed && !missing),
        (
            "TTL",
            Effect::Socket,
            transport.distance != after.transport.distance,
        ),
        ("port", Effect::NextConnection, *port != after.port),
        ("who connects", Effect::NextConnection, *connect != after.connect),
        ("timers", Effect::NextConnection, timers || waits),
        ("hold time", Effect::NextSession, *hold_time != after.hold_time),
        (
            "several paths to a prefix",
            Effect::NextSession,
            add_path.direction() != after.add_path.direction(),
        ),
        ("families", Effect::NextSession, *families != after.families),
        ("IPv6 next hops of IPv4 routes", Effect::NextSession, next_hops),
        (
            "enhanced route refresh",
            Effect::NextSession,
            *enhanced_refresh != after.enhanced_refresh,
        ),
        (
            "graceful restart",
            Effect::NextSession,
            *graceful_restart != after.graceful_restart,
        ),
        ("role", Effect::NextSession, *role != after.role),
    ])
}

/// What concerns routes.
fn of_routes(before: &PeerConfig, after: &PeerConfig) -> Vec<Change> {
    let own_as = before.local_as != after.local_as;
    let soon_down = before.graceful_shutdown != after.graceful_shutdown;
    let reflection = before.route_reflector_client != after.route_reflector_client;
    let route_server = before.route_server_client != after.route_server_client;
    let limit_out = before.prefix_limit_out != after.prefix_limit_out;
    let limit_in = before.prefix_limit_in != after.prefix_limit_in;
    let first_as = before.enforce_first_as != after.enforce_first_as;
    let private = before.remove_private_as != after.remove_private_as;
    let role = before.role != after.role;
    let priority = before.priority_in_local_pref != after.priority_in_local_pref;
    changed(&[
        ("import policy", Effect::Import, before.import != after.import),
        (
            "own AS allowed in paths",
            Effect::Import,
            before.allow_own_as != after.allow_own_as,
        ),
        ("first AS of paths", Effect::Import, first_as),
        ("rules of the role", Effect::Import, role),
        ("priorities in LOCAL_PREF", Effect::Import, priority),
        ("graceful shutdown", Effect::Import, soon_down),
        ("BLACKHOLE", Effect::Import, before.blackhole != after.blackhole),
        ("prefix limit", Effect::Refresh, limit_in),
        ("weight", Effect::Select, before.weight != after.weight),
        ("export policy", Effect::Export, before.export != after.export),
        (
            "paths to a prefix that it is told",
            Effect::Export,
            before.add_path.send != after.add_path.send,
        ),
        ("next hop", Effect::Export, before.next_hop != after.next_hop),
        ("reflection", Effect::Export, reflection),
        ("route server", Effect::Export, route_server),
        ("our other AS in its paths", Effect::Import, own_as),
        ("what it sees of our AS", Effect::Export, own_as),
        (
            "AS override",
            Effect::Export,
            before.as_override != after.as_override,
        ),
        ("private AS numbers", Effect::Export, private),
        ("rules of the role", Effect::Export, role),
        ("priorities in LOCAL_PREF", Effect::Export, priority),
        ("graceful shutdown", Effect::Export, soon_down),
        ("prefix limit of what it is told", Effect::Export, limit_out),
    ])
}

fn changed(rows: &[(&str, Effect, bool)]) -> Vec<Change> {
    let rows = rows.iter().filter(|(_, _, differs)| *differs);
    rows.map(|(what, effect, _)| Change {
        what: (*what).to_owned(),
        effect: *effect,
    })
    .collect()
}

impl fmt::Display for PeerImpact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "peer {}: {}", self.peer, self.session)?;
        self.changes.iter().try_for_each(|change| write!(f, "; {change}"))
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.effect)
    }
}

impl fmt::Display for SessionImpact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Added => "added",
            Self::Removed => "removed, its session ends",
            Self::Reset => "its session is RESET",
            Self::HeldDown => "its session ends, and there is to be none",
            Self::Released => "it may have a session again",
            Self::Stays => "its session stays",
        })
    }
}

impl fmt::Display for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NextConnection => "from the next time on",
            Self::NextSession => "said in OPEN, so from the next session on",
            Self::Socket => "set on the connection in use",
            Self::Select => "best routes are selected again",
            Self::Export => "what is told is worked out again",
            Self::Import => "what was received is judged again",
            Self::Refresh => "judged again; what was discarded is asked for (route refresh)",
            Self::Hold => "changes whether there is a session",
            Self::Reset => "another session",
        })
    }
}
