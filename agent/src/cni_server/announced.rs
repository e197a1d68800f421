//! The end of ADD: the pod's address block is announced, and where it is asked for, the route was heard back.
//!
//! A peer that gives our own route back has taken it and passed it on. Most never do: a route is not sent to whom it came from.
//! A reflector does that has it from another one; its copy carries our ORIGINATOR_ID (RFC 4456 §8), or our AS in its path,
//! and is refused for that, which is what is looked for.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use calidris_bgp::family::Prefix;
use calidris_bgp::rib::Refusal;
use calidris_bgp::status::{CandidateStatus, RouteCursor, RouteFilter, Standing};
use calidris_bgp_driver::BgpHandle;
use calidris_cni::error::{CniError, ErrorCode};
use calidris_ipam::{Assigned, Store};
use ipnetwork::IpNetwork;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::warn;

use super::CniServer;
use super::stages::{Stage, Stages};
use crate::clock;
use crate::config::NotHeardBack;
use crate::desired::Announcement;

/// How long the speaker may take to announce a block: it needs less than a millisecond.
const ANNOUNCED_WITHIN: Duration = Duration::from_secs(2);
/// Time between two looks at the speaker's tables.
const LOOK: Duration = Duration::from_millis(2);

/// Where announcements can be followed.
#[derive(Debug, Clone)]
pub struct Announcements {
    /// What the node wants announced.
    pub wanted: watch::Receiver<Option<BTreeMap<IpNetwork, Announcement>>>,
    /// Who announces it.
    pub speaker: BgpHandle,
    /// How long ADD waits for the route to come back; zero: not at all.
    pub heard_back_timeout: Duration,
    /// What becomes of it if it does not.
    pub not_heard_back: NotHeardBack,
    /// What the speaker was seen to announce.
    pub confirmed: Confirmed,
}

/// Prefixes that the speaker was seen to announce: pods after the first of a block need not ask.
#[derive(Debug, Clone, Default)]
pub struct Confirmed(Arc<Mutex<BTreeSet<IpNetwork>>>);

impl<S: Store + 'static> CniServer<S> {
    /// Waits until what covers the addresses is announced, and was heard back if that is asked for.
    pub(super) async fn wait_for_announcement(
        &self,
        assigned: &Assigned,
        stages: &mut Stages,
    ) -> Result<(), CniError> {
        let Some(announcements) = &self.announcements else {
            return Ok(());
        };
        let prefixes = announcements.of(assigned);
        let since = clock::now();
        if !announcements.announced(&prefixes, &assigned.claimed_blocks).await {
            warn!(?prefixes, "the BGP speaker does not announce what it should");
        }
        if announcements.heard_back_timeout.is_zero() {
            return Ok(());
        }
        let limit = announcements.heard_back_timeout;
        let heard = announcements.all(&prefixes, limit, is_ours_come_back).await;
        stages.over(Stage::HeardBack, since);
        match announcements.not_heard_back {
            _ if heard => Ok(()),
            NotHeardBack::Warn => {
                warn!(?prefixes, ?limit, "no peer has given the pod's route back");
                Ok(())
            }
            NotHeardBack::Fail => Err(CniError::new(
                ErrorCode::TRY_AGAIN_LATER,
                format!("no BGP peer has given the pod's route back within {limit:?}; everything was undone"),
            )),
        }
    }
}

impl Announcements {
    /// Which announced prefixes cover the addresses: blocks, or single addresses borrowed from another node's block. None for
    /// addresses of pools that are kept out of BGP.
    fn of(&self, assigned: &Assigned) -> BTreeSet<IpNetwork> {
        let wanted = self.wanted.borrow();
        let is_wanted =
            |prefix: &IpNetwork| wanted.as_ref().is_some_and(|wanted| wanted.contains_key(prefix));
        let covering = assigned
            .addresses
            .iter()
            .filter_map(|assigned| [assigned.network(), assigned.block].into_iter().find(is_wanted));
        covering.collect()
    }

    /// Whether the speaker announces each prefix in time. Those that were confirmed before are believed, unless they were
    /// claimed anew.
    async fn announced(&self, prefixes: &BTreeSet<IpNetwork>, claimed: &[IpNetwork]) -> bool {
        let unconfirmed: BTreeSet<IpNetwork> = {
            let confirmed = self.confirmed.0.lock().unwrap_or_else(PoisonError::into_inner);
            let is_new = |prefix: &&IpNetwork| !confirmed.contains(prefix) || claimed.contains(prefix);
            prefixes.iter().filter(is_new).copied().collect()
        };
        if unconfirmed.is_empty() {
            return true;
        }
        if !self.all(&unconfirmed, ANNOUNCED_WITHIN, is_own).await {
            return false;
        }
        let wanted = self.wanted.borrow();
        let is_wanted =
            |prefix: &IpNetwork| wanted.as_ref().is_some_and(|wanted| wanted.contains_key(prefix));
        let mut confirmed = self.confirmed.0.lock().unwrap_or_else(PoisonError::into_inner);
        confirmed.extend(unconfirmed);
        confirmed.retain(is_wanted);
        true
    }

    /// Whether each prefix gets a candidate of this kind in time.
    async fn all(
        &self,
        prefixes: &BTreeSet<IpNetwork>,
        within: Duration,
        kind: fn(&CandidateStatus) -> bool,
    ) -> bool {
        let deadline = Instant::now() + within;
        for prefix in prefixes {
            if timeout_at(deadline, self.until(*prefix, kind)).await.is_err() {
                return false;
            }
        }
        true
    }

    async fn until(&self, prefix: IpNetwork, kind: fn(&CandidateStatus) -> bool) {
        let filter = RouteFilter {
            prefix: Some(Prefix::from(prefix)),
            ..RouteFilter::default()
        };
        loop {
            let page = self.speaker.routes(filter.clone(), RouteCursor::START).await;
            let has =
                page.is_ok_and(|page| page.routes.iter().any(|route| route.candidates.iter().any(kind)));
            if has {
                return;
            }
            sleep(LOOK).await;
        }
    }
}

/// The speaker has it from us.
fn is_own(candidate: &CandidateStatus) -> bool {
    candidate.from.is_none()
}

/// A peer has it from us, through somebody else.
fn is_ours_come_back(candidate: &CandidateStatus) -> bool {
    let Standing::Refused { reason, .. } = &candidate.standing else {
        return false;
    };
    candidate.from.is_some() && matches!(reason, Refusal::OwnOriginatorId | Refusal::OwnAsInPath)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use calidris_bgp::SpeakerConfig;
    use calidris_bgp::route::Origination;
    use calidris_bgp_driver::{DriverConfig, Shutdown};
    use calidris_ipam::AssignedAddress;

    use super::*;
    use crate::desired::Announcement;

    const SOON: Duration = Duration::from_millis(50);
    const LONG: Duration = Duration::from_secs(30);

    fn prefix(text: &str) -> IpNetwork {
        text.parse().unwrap()
    }

    async fn announcements(wanted: &[&str]) -> Announcements {
        let speaker = calidris_bgp_driver::start(DriverConfig {
            listen: Vec::new(),
            speaker: SpeakerConfig::new(64512, [192, 0, 2, 1].into()),
            restarting: false,
            seed: 7,
        });
        let announcement = |text: &&str| {
            let announcement = Announcement {
                interface: None,
                priority: 1024,
            };
            (prefix(text), announcement)
        };
        let wanted = wanted.iter().map(announcement).collect();
        Announcements {
            wanted: watch::channel(Some(wanted)).1,
            speaker: speaker.await.unwrap(),
            heard_back_timeout: Duration::ZERO,
            not_heard_back: NotHeardBack::Warn,
            confirmed: Confirmed::default(),
        }
    }

    async fn originate(announcements: &Announcements, prefixes: &[&str]) {
        let routes: BTreeMap<_, _> = prefixes
            .iter()
            .map(|text| (Prefix::from(prefix(text)), Origination::default()))
            .collect();
        announcements.speaker.originate(routes).await.unwrap();
    }

    #[tokio::test]
    async fn what_the_speaker_does_not_have_yet_is_waited_for_once() {
        let announcements = announcements(&["10.65.0.0/26"]).await;
        let block = BTreeSet::from([prefix("10.65.0.0/26")]);
        assert!(!announcements.all(&block, SOON, is_own).await);
        let waiting = {
            let (announcements, block) = (announcements.clone(), block.clone());
            tokio::spawn(async move { announcements.all(&block, LONG, is_own).await })
        };
        originate(&announcements, &["10.65.0.0/26"]).await;
        assert!(waiting.await.unwrap());
        assert!(
            !announcements.all(&block, SOON, is_ours_come_back).await,
            "our own is not one that came back"
        );
        assert!(announcements.announced(&block, &[]).await);

        // Believed from now on, but for a block that was given back and claimed anew.
        originate(&announcements, &[]).await;
        assert!(announcements.announced(&block, &[]).await);
        let claimed = [prefix("10.65.0.0/26")];
        let anew = tokio::time::timeout(SOON, announcements.announced(&block, &claimed)).await;
        assert!(anew.is_err(), "{anew:?}");
        announcements
            .speaker
            .shutdown(Shutdown::ForRestart)
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn the_block_counts_or_the_single_address_whatever_is_wanted() {
        let announcements = announcements(&["10.65.0.0/26", "10.66.0.70/32"]).await;
        let of = |address: &str, block: &str| {
            let assigned = Assigned {
                addresses: vec![AssignedAddress {
                    address: address.parse().unwrap(),
                    block: prefix(block),
                    sequence_number: 0,
                }],
                claimed_blocks: Vec::new(),
            };
            let covering = announcements.of(&assigned).into_iter();
            covering.map(|prefix| prefix.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(of("10.65.0.7", "10.65.0.0/26"), ["10.65.0.0/26"]);
        assert_eq!(of("10.66.0.70", "10.66.0.64/26"), ["10.66.0.70/32"], "borrowed");
        assert_eq!(of("10.67.0.1", "10.67.0.0/26"), [""; 0], "kept out of BGP");
        announcements
            .speaker
            .shutdown(Shutdown::ForRestart)
            .await
            .unwrap();
    }
}
