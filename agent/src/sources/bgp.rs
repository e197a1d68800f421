//! The BGP speaker: tells it what to announce, and the node what it found best.
//!
//! Invariant: the node hears that BGP is in sync only after it was given every route known at that moment.

use std::collections::BTreeMap;

use calidris_bgp::family::Prefix;
use calidris_bgp::route::{BestRoute, Origination, RouteChange};
use calidris_bgp_driver::{BgpHandle, Stopped};
use ipnetwork::IpNetwork;
use tokio::sync::{mpsc, watch};
use tracing::{error, info};

use crate::desired::Announcement;
use crate::inbox::Message;
use crate::model::{Input, Learned, LearnedPath, NextHop};
use crate::sources::interface_name;

/// What is announced, always the latest. Both together; configured routes win where both name a prefix.
#[derive(Debug)]
pub struct Announcements {
    /// Routes of the configuration; `None` until all peers are known, which are not to take the first word for the last.
    pub configured: watch::Receiver<Option<BTreeMap<Prefix, Origination>>>,
    /// What the node wants announced; `None` until it knows.
    pub wanted: watch::Receiver<Option<BTreeMap<IpNetwork, Announcement>>>,
}

/// Runs until the speaker or the node's thread is gone.
pub async fn run(speaker: BgpHandle, announcements: Announcements, inbox: mpsc::Sender<Message>) {
    // The speaker is its own process as far as the node is concerned: without it routes stay as they are.
    if tokio::try_join!(announce(speaker.clone(), announcements), learn(speaker, inbox)).is_err() {
        error!("the BGP speaker has stopped; routes stay as they are");
    }
}

async fn announce(
    speaker: BgpHandle,
    Announcements {
        mut configured,
        wanted: mut announcements,
    }: Announcements,
) -> Result<(), Stopped> {
    loop {
        let wanted = announcements.borrow_and_update().clone();
        let routes = configured.borrow_and_update().clone();
        if let (Some(prefixes), Some(configured)) = (wanted, routes) {
            info!(prefixes = prefixes.len(), "announcing");
            let mut routes: BTreeMap<Prefix, Origination> = prefixes
                .into_iter()
                .map(|(prefix, announcement)| (Prefix::from(prefix), origination(announcement)))
                .collect();
            routes.extend(configured);
            speaker.originate(routes).await?;
        }
        let changed = tokio::select! {
            changed = announcements.changed() => changed,
            changed = configured.changed() => changed,
        };
        if changed.is_err() {
            return Ok(());
        }
    }
}

fn origination(announcement: Announcement) -> Origination {
    Origination {
        interface: announcement.interface,
        priority: Some(announcement.priority),
        ..Origination::default()
    }
}

async fn learn(speaker: BgpHandle, inbox: mpsc::Sender<Message>) -> Result<(), Stopped> {
    let mut changes = speaker.clone();
    let mut sync = speaker.clone();
    let mut is_told = false;
    loop {
        let is_synced = tokio::select! {
            changed = changes.changed() => changed.map(|()| false),
            synced = sync.in_sync(), if !is_told => synced.map(|()| true),
        }?;
        loop {
            let batch = speaker.take_changes().await?;
            if batch.is_empty() {
                break;
            }
            if inbox
                .send(Message::Input(Input::Learned(learned(batch))))
                .await
                .is_err()
            {
                return Ok(());
            }
        }
        if is_synced {
            is_told = true;
            if inbox.send(Message::Input(Input::BgpInSync)).await.is_err() {
                return Ok(());
            }
        }
    }
}

fn learned(changes: Vec<RouteChange>) -> BTreeMap<IpNetwork, Option<Learned>> {
    let changes = changes.into_iter();
    changes
        .map(|change| (IpNetwork::from(change.prefix), change.best.and_then(route)))
        .collect()
}

/// `None` when no packet could go anywhere.
fn route(best: BestRoute) -> Option<Learned> {
    let priority = best.attributes.priority;
    if best.blackhole {
        let path = LearnedPath::Blackhole;
        return Some(Learned { path, priority });
    }
    let learned = Learned::via(best.next_hops.into_iter().filter_map(next_hop).collect())?;
    Some(Learned { priority, ..learned })
}

/// `None` for a link-local next hop on an interface that is gone.
fn next_hop(next_hop: calidris_bgp::route::NextHop) -> Option<NextHop> {
    let interface = match next_hop.scope_id {
        Some(index) => Some(interface_name(index)?),
        None => None,
    };
    Some(NextHop {
        address: next_hop.address,
        interface,
    })
}
