//! The addresses of this node's tunnels: allocated from the pools whose packets go through them, as Calico does
//! (`allocateip.go`: one handle a node and kind, a note of the kind with the allocation).
//!
//! Invariants: an address that a restart finds is kept if it is of a right pool; one that no pool needs any more is
//! kept for [`LINGER`], so that nodes which have not heard of the change still reach us, and released after its device has gone.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use calidris_ipam::{AddressRequest, AssignRequest, IntendedUse, Ipam, ReleaseRequest, Store};
use ipnetwork::IpNetwork;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tracing::{info, warn};

use crate::clock;
use crate::input::Input;
use crate::model::TunnelKind;
use crate::turn::{Message, TunnelPools};

/// How long a tunnel stays after the last pool that needed it: longer than any node that works takes to hear of it.
const LINGER: Duration = Duration::from_secs(60);
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
                    Some(pools) => {
                        unwanted_since.remove(&kind);
                        keeper.keep(kind, pools).await
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
    /// Sees to an address of one of the pools. `None`: the node's thread is gone.
    async fn keep(&self, kind: TunnelKind, pools: &BTreeSet<IpNetwork>) -> Option<Next> {
        match self.ensure(kind, pools).await {
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

    async fn ensure(&self, kind: TunnelKind, pools: &BTreeSet<IpNetwork>) -> Result<IpAddr, String> {
        let handle = handle_id(&self.node, kind);
        let held = self.held(&handle).await?;
        let is_right = |address: &IpAddr| pools.iter().any(|pool| pool.contains(*address));
        if let Some(address) = held.iter().copied().find(is_right) {
            return Ok(address);
        }
        if !held.is_empty() {
            info!(tunnel = kind.interface(), addresses = ?held, "the tunnel's address is of no right pool any more");
            self.release(&handle).await?;
        }
        let one = AddressRequest::Count(1);
        let (v4, v6) = if kind.is_ipv6() {
            (AddressRequest::None, one)
        } else {
            (one, AddressRequest::None)
        };
        let request = AssignRequest {
            v4,
            v6,
            pools: pools.iter().map(ToString::to_string).collect(),
            intended_use: IntendedUse::Tunnel,
            attributes: [("type".to_owned(), note(kind).to_owned())].into(),
            ..AssignRequest::new(&handle, &self.node)
        };
        let assigned = self
            .ipam
            .assign(&request, clock::wall())
            .await
            .map_err(|error| error.to_string())?;
        let address = assigned
            .addresses
            .first()
            .ok_or("the allocator gave no address")?
            .address;
        info!(tunnel = kind.interface(), %address, "the tunnel has an address");
        Ok(address)
    }

    /// Gives the address back, if there is one, after its time. `None`: the node's thread is gone.
    async fn give_back(
        &self,
        kind: TunnelKind,
        unwanted_since: &mut BTreeMap<TunnelKind, Instant>,
    ) -> Option<Next> {
        let handle = handle_id(&self.node, kind);
        let held = match self.held(&handle).await {
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
        match self.release(&handle).await {
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

    async fn held(&self, handle: &str) -> Result<Vec<IpAddr>, String> {
        let allocations = self.ipam.addresses_of_handle(handle).await;
        let allocations = allocations.map_err(|error| error.to_string())?;
        Ok(allocations
            .into_iter()
            .map(|allocation| allocation.address)
            .collect())
    }

    async fn release(&self, handle: &str) -> Result<(), String> {
        let request = ReleaseRequest {
            handle_id: handle.to_owned(),
            ..ReleaseRequest::default()
        };
        self.ipam
            .release(&request, clock::wall())
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

/// The handle of a tunnel's address, as Calico names it.
pub fn handle_id(node: &str, kind: TunnelKind) -> String {
    match kind {
        TunnelKind::Ipip => format!("ipip-tunnel-addr-{node}"),
        TunnelKind::VxlanV4 => format!("vxlan-tunnel-addr-{node}"),
        TunnelKind::VxlanV6 => format!("vxlan-v6-tunnel-addr-{node}"),
    }
}

/// What Calico notes as `type` with the allocation.
fn note(kind: TunnelKind) -> &'static str {
    match kind {
        TunnelKind::Ipip => "ipipTunnelAddress",
        TunnelKind::VxlanV4 => "vxlanTunnelAddress",
        TunnelKind::VxlanV6 => "vxlanV6TunnelAddress",
    }
}
