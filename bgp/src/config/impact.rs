//! What a new configuration means for the sessions of the old one.

use std::collections::BTreeMap;

use super::{PeerConfig, SpeakerConfig};

/// What a change of configuration does to the sessions.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Impact {
    /// Peers that are new.
    pub added: Vec<String>,
    /// Peers that are gone; their sessions end with Cease / Peer De-configured.
    pub removed: Vec<String>,
    /// Peers whose session must start anew.
    pub reset: Vec<String>,
    /// Peers to which the change applies without touching the session.
    pub applied: Vec<String>,
    /// Peers for which part of the change is a matter of OPEN (hold time, families, graceful restart) and holds from the next session on.
    pub next_session: Vec<String>,
}

impl SpeakerConfig {
    /// What becomes of the sessions when `new` takes the place of this configuration.
    #[must_use]
    pub fn impact_of(&self, new: &Self) -> Impact {
        let mut impact = Impact::default();
        let mut wanted: BTreeMap<&str, &PeerConfig> =
            new.peers.iter().map(|peer| (peer.name.as_str(), peer)).collect();
        let all_new = self.local_as != new.local_as || self.router_id != new.router_id;
        for before in &self.peers {
            let name = before.name.clone();
            match wanted.remove(name.as_str()) {
                None => impact.removed.push(name),
                Some(after) if all_new || needs_new_session(before, after) => impact.reset.push(name),
                Some(after) if after != before => {
                    if is_said_in_open(before, after) {
                        impact.next_session.push(name.clone());
                    }
                    impact.applied.push(name);
                }
                Some(_) => {}
            }
        }
        impact.added = wanted.into_keys().map(str::to_owned).collect();
        impact
    }
}

/// Whether a session is with somebody else, or over another transport, than before.
fn needs_new_session(before: &PeerConfig, after: &PeerConfig) -> bool {
    let identity = |peer: &PeerConfig| {
        (
            peer.address,
            peer.scope_id,
            peer.port,
            peer.remote_as,
            peer.local_as.map(|local| local.asn),
            peer.local_address,
            peer.transport.distance,
        )
    };
    identity(before) != identity(after)
}

/// Whether a change is told to the peer only when the next session begins.
fn is_said_in_open(before: &PeerConfig, after: &PeerConfig) -> bool {
    let said = |peer: &PeerConfig| (peer.hold_time, peer.role, peer.graceful_restart.clone());
    said(before) != said(after)
        || before.families != after.families
        || before.add_path.direction() != after.add_path.direction()
}
