//! Attachments that the runtime has forgotten: ADD came, and DEL never does.
//!
//! A pod's link goes with its network namespace, and nobody can use what is left: whoever starts the container again adds
//! it anew. So an attachment that had no link at every look during the grace period, and at least at two, is detached as
//! DEL would do it.
//!
//! Invariants: a link that is there protects its attachment; before the datastore is in sync, and while it is away, nothing
//! is looked at; that there is no link is made sure of once more when no other request can be about the attachment.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use calidris_cni::error::CniError;
use calidris_ipam::Store;
use tokio::time::MissedTickBehavior;
use tracing::{info, warn};

use super::detach::attachment_of;
use super::stages::Stages;
use super::{CniServer, request};
use crate::clock;
use crate::model::{Endpoint, EndpointId, Model};

/// Looks without a link, at least, before an attachment is detached.
const MIN_LOOKS: u32 = 2;
/// Attachments detached after one look, at most; the others wait for the next.
const MAX_DETACHED: usize = 64;

impl<S: Store + 'static> CniServer<S> {
    /// Looks every `interval` and detaches what has had no link for `grace`, until the task is dropped.
    pub async fn free_orphans(self: Arc<Self>, interval: Duration, grace: Duration) {
        let mut orphans = Orphans::new(grace);
        let mut ticks = tokio::time::interval(interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if self.require_datastore().is_err() {
                continue;
            }
            let Ok(model) = self.model().await else {
                return;
            };
            for (id, endpoint) in orphans.look(clock::now(), &model) {
                let (network, container) = (id.network.as_str(), id.container_id.as_str());
                match self.detach_orphan(&id, &endpoint).await {
                    Ok(true) => info!(
                        network,
                        container,
                        addresses = ?endpoint.addresses,
                        without_link_for = ?grace,
                        "detached: its link has gone, and nobody called DEL"
                    ),
                    Ok(false) => {}
                    Err(error) => {
                        warn!(network, container, %error, "cannot detach what nobody called DEL for; trying again");
                    }
                }
            }
        }
    }

    /// Whether it was still there, and without a link.
    async fn detach_orphan(&self, id: &EndpointId, endpoint: &Endpoint) -> Result<bool, CniError> {
        let subject = request::subject_in(&id.network, &attachment_of(id, endpoint))?;
        let mut stages = Stages::default();
        let claimed = self.claim(&subject, &mut stages).await?;
        let Some(known) = &claimed.found.endpoint else {
            return Ok(false);
        };
        if self.has_link(known).await? {
            return Ok(false);
        }
        self.tear_down(&subject, Some(known), &mut stages).await?;
        Ok(true)
    }
}

/// Attachments without link, and since when.
#[derive(Debug)]
struct Orphans {
    grace: Duration,
    suspects: BTreeMap<EndpointId, Suspicion>,
}

#[derive(Debug)]
struct Suspicion {
    since: Instant,
    looks: u32,
}

impl Orphans {
    fn new(grace: Duration) -> Self {
        Self {
            grace,
            suspects: BTreeMap::new(),
        }
    }

    /// One look; what is to be detached now.
    fn look(&mut self, now: Instant, model: &Model) -> Vec<(EndpointId, Endpoint)> {
        let is_known = model.in_sync.datastore;
        let without_link = |endpoint: &Endpoint| !model.links.contains(&endpoint.host_interface);
        let suspects: BTreeSet<&EndpointId> = model
            .endpoints
            .iter()
            .filter(|(_, endpoint)| is_known && without_link(endpoint))
            .map(|(id, _)| id)
            .collect();
        self.suspects.retain(|id, _| suspects.contains(id));
        for id in suspects {
            let known = self
                .suspects
                .entry(id.clone())
                .or_insert(Suspicion { since: now, looks: 0 });
            known.looks = known.looks.saturating_add(1);
        }
        let due = self.suspects.iter().filter(|(_, suspicion)| {
            suspicion.looks >= MIN_LOOKS && now.saturating_duration_since(suspicion.since) >= self.grace
        });
        due.filter_map(|(id, _)| Some((id.clone(), model.endpoints.get(id)?.clone())))
            .take(MAX_DETACHED)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(60);

    fn model(with_link: &[&str], without: &[&str]) -> Model {
        let mut model = Model::new("node-a".to_owned());
        model.in_sync.datastore = true;
        for name in with_link.iter().chain(without) {
            let id = EndpointId {
                network: "net".to_owned(),
                container_id: (*name).to_owned(),
                ifname: "eth0".to_owned(),
            };
            let endpoint = Endpoint {
                host_interface: format!("cali{name}"),
                ..Endpoint::default()
            };
            model.endpoints.insert(id, endpoint);
        }
        model.links = with_link.iter().map(|name| format!("cali{name}")).collect();
        model
    }

    /// Looks at so many seconds; the containers to be detached after the last one.
    fn after(looks: &[(u64, Model)]) -> Vec<String> {
        let start = clock::now();
        let mut orphans = Orphans::new(GRACE);
        let mut due = Vec::new();
        for (seconds, model) in looks {
            due = orphans.look(start + Duration::from_secs(*seconds), model);
        }
        due.into_iter().map(|(id, _)| id.container_id).collect()
    }

    #[test]
    fn what_had_no_link_all_through_the_grace_period_is_detached() {
        let both = || model(&["a"], &["b"]);
        assert_eq!(after(&[(0, both()), (30, both()), (60, both())]), ["b"]);
        assert_eq!(after(&[(0, both()), (59, both())]), [""; 0]);
    }

    #[test]
    fn a_link_in_between_begins_it_anew_and_one_look_is_never_enough() {
        let (with, without) = (|| model(&["a"], &[]), || model(&[], &["a"]));
        assert_eq!(
            after(&[(0, without()), (50, with()), (60, without()), (119, without())]),
            [""; 0]
        );
        assert_eq!(after(&[(100, without())]), [""; 0]);
        assert_eq!(after(&[(0, without()), (100, without())]), ["a"]);
    }

    #[test]
    fn before_the_datastore_is_in_sync_nothing_is_suspected() {
        let mut unknown = model(&[], &["a"]);
        unknown.in_sync.datastore = false;
        let known = || model(&[], &["a"]);
        assert_eq!(after(&[(0, unknown.clone()), (60, known())]), [""; 0]);
        assert_eq!(
            after(&[(0, known()), (30, unknown), (60, known()), (119, known())]),
            [""; 0]
        );
    }
}
