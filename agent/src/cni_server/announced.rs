//! The end of ADD: the pod's address block is announced, and where it is asked for, the route was heard back.
//!
//! A peer that gives our own route back has taken it and passed it on. Most never do: a route is not sent to whom it came from.
//! A reflector does that has it from another one; its copy carries our ORIGINATOR_ID (RFC 4456 §8), or our AS in its path,
//! and is refused for that, which is what is looked for.

use std::collections::{BTreeMap, BTreeSet};
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
}

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
        if !assigned.claimed_blocks.is_empty()
            && !announcements.all(&prefixes, ANNOUNCED_WITHIN, is_own).await
        {
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
