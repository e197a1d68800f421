//! The addresses of this node's tunnels: allocated from the pools whose packets go through them, as Calico does
//! (`allocateip.go`: one handle a node and kind, a note of the kind with the allocation).
//!
//! Invariants: an address that a restart finds is kept if it is of a right pool; one that no pool needs any more is
//! kept for [`LINGER`], so that nodes which have not heard of the change still reach us, and released after its device has gone.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use calidris_ipam::{Ipam, Store, Tunnel};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tracing::{info, warn};

use crate::clock;
use crate::desired::TunnelPools;
use crate::inbox::Message;
use crate::model::{Input, TunnelKind};

/// How long a tunnel stays after the last pool that needed it: longer than a node takes to be ready for another one, also
/// while the datastore is slow.
const LINGER: Duration = Duration::from_secs(600);
/// Pause after a failure.
const RETRY: Duration = Duration::from_secs(5);

/// What keeps one kind of tunnel waiting.
enum Next {
    /// Nothing: it is as it should be.
    Settled,
    /// It is to be looked at again then.
    At(Instant),
}

/// Keeps the addresses until the node's thread is gone.
pub async fn run<S: Store>(
    node: String,
    ipam: Arc<Ipam<S>>,
    mut pools: watch::Receiver<Option<TunnelPools>>,
    inbox: mpsc::Sender<Message>,
) {
    let keeper = Keeper { node, ipam, inbox };
    let mut unwanted_since = BTreeMap::new();
    loop {
        let wanted = pools.borrow_and_update().clone();
        let mut wake_at: Option<Instant> = None;
        if let Some(wanted) = wanted {
            for kind in TunnelKind::ALL {
                let pools = wanted.get(&kind);
                let next = match pools {
                    Some(_) => {
                        unwanted_since.remove(&kind);
                        keeper.keep(kind).await
                    }
                    None => keeper.give_back(kind, &mut unwanted_since).await,
                };
                match next {
                    Some(Next::Settled) => {}
                    Some(Next::At(at)) => wake_at = wake_at.into_iter().chain([at]).min(),
                    None => return,
                }
            }
        }
        let woken = async {
            match wake_at {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = pools.changed() => if changed.is_err() { return },
            () = woken => {}
        }
    }
}

struct Keeper<S> {
    node: String,
    ipam: Arc<Ipam<S>>,
    inbox: mpsc::Sender<Message>,
}

impl<S: Store> Keeper<S> {
    /// Sees to an address. `None`: the node's thread is gone.
    async fn keep(&self, kind: TunnelKind) -> Option<Next> {
        match self.ensure(kind).await {
            Ok(address) => {
                self.tell(kind, Some(address)).await?;
                Some(Next::Settled)
            }
            Err(why) => {
                warn!(tunnel = kind.interface(), %why, "no address for the tunnel; trying again");
                Some(Next::At(soon(RETRY)))
            }
        }
    }

    async fn ensure(&self, kind: TunnelKind) -> Result<IpAddr, String> {
        let assigned = self
            .ipam
            .tunnel_address(tunnel(kind), &self.node, clock::wall())
            .await;
        assigned
            .map(|assigned| assigned.address)
            .map_err(|error| error.to_string())
    }

    /// Gives the address back, if there is one, after its time. `None`: the node's thread is gone.
    async fn give_back(
        &self,
        kind: TunnelKind,
        unwanted_since: &mut BTreeMap<TunnelKind, Instant>,
    ) -> Option<Next> {
        let held = match self.held(kind).await {
            Ok(held) => held,
            Err(why) => {
                warn!(tunnel = kind.interface(), %why, "it is not known whether the tunnel has an address; trying again");
                return Some(Next::At(soon(RETRY)));
            }
        };
        let Some(address) = held.first() else {
            self.tell(kind, None).await?;
            return Some(Next::Settled);
        };
        let now = Instant::from_std(clock::now());
        let until = *unwanted_since.entry(kind).or_insert(now) + LINGER;
        if now < until {
            self.tell(kind, Some(*address)).await?;
            return Some(Next::At(until));
        }
        self.tell(kind, None).await?;
        match self.release(kind).await {
            Ok(()) => {
                info!(tunnel = kind.interface(), %address, "no pool needs the tunnel; its address is released");
                Some(Next::Settled)
            }
            Err(why) => {
                warn!(tunnel = kind.interface(), %why, "the tunnel's address is not released; trying again");
                Some(Next::At(soon(RETRY)))
            }
        }
    }

    async fn held(&self, kind: TunnelKind) -> Result<Vec<IpAddr>, String> {
        let handle = tunnel(kind).handle_id(&self.node);
        let allocations = self.ipam.addresses_of_handle(&handle).await;
        let allocations = allocations.map_err(|error| error.to_string())?;
        Ok(allocations
            .into_iter()
            .map(|allocation| allocation.address)
            .collect())
    }

    async fn release(&self, kind: TunnelKind) -> Result<(), String> {
        self.ipam
            .release_tunnel_address(tunnel(kind), &self.node, clock::wall())
            .await
            .map(drop)
            .map_err(|error| error.to_string())
    }

    /// Tells the node and waits until the kernel has followed. `None`: its thread is gone.
    async fn tell(&self, kind: TunnelKind, address: Option<IpAddr>) -> Option<()> {
        let (done, applied) = oneshot::channel();
        let message = Message::Apply(Input::TunnelAddress(kind, address), done);
        self.inbox.send(message).await.ok()?;
        applied.await.ok().map(drop)
    }
}

fn soon(pause: Duration) -> Instant {
    Instant::from_std(clock::now()) + pause
}

fn tunnel(kind: TunnelKind) -> Tunnel {
    match kind {
        TunnelKind::Ipip => Tunnel::Ipip,
        TunnelKind::VxlanV4 => Tunnel::Vxlan,
        TunnelKind::VxlanV6 => Tunnel::VxlanV6,
    }
}
