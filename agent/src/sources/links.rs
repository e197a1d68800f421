//! The subnets on this machine's links, for a speaker without a node: its policies may ask by which link a route leaves.
//!
//! They are read again when the kernel tells of a link or an address. Link-local subnets are on every link and say nothing; of several links with
//! the same subnet the first by name counts.

use std::time::Duration;

use calidris_bgp::family::Prefix;
use calidris_bgp::rib::Links;
use calidris_bgp_driver::{BgpHandle, Stopped};
use ipnetwork::IpNetwork;
use netlink_sys::protocols::NETLINK_ROUTE;
use tracing::warn;

use crate::kernel::linux::Linux;
use crate::kernel::{Kernel, KernelError};
use crate::sources::notifications::Notifications;

/// `RTMGRP_LINK`, `RTMGRP_IPV4_IFADDR` and `RTMGRP_IPV6_IFADDR` of the kernel's `linux/rtnetlink.h`.
const GROUPS: u32 = 0x1 | 0x10 | 0x100;
/// Room for notifications not read yet, in bytes. The kernel doubles it.
const RECEIVE_BUFFER: usize = 256 << 10;
/// How long notifications are gathered after the first one.
const GATHERING: Duration = Duration::from_millis(50);

/// Tells the speaker what they are now, then whenever they change, until it has stopped.
pub async fn run(speaker: BgpHandle) {
    let mut notifications = match Notifications::open(NETLINK_ROUTE, GROUPS, RECEIVE_BUFFER) {
        Ok(notifications) => notifications,
        Err(error) => return warn!(%error, "cannot follow the links; policies do not know them"),
    };
    loop {
        match tokio::task::spawn_blocking(read).await {
            Ok(Ok(links)) => {
                if let Err(Stopped) = speaker.set_links(links).await {
                    return;
                }
            }
            Ok(Err(error)) => warn!(%error, "cannot read the links; policies go by those they know"),
            Err(error) => warn!(%error, "reading the links has failed"),
        }
        if let Err(error) = notifications.burst(GATHERING, |_| ()).await {
            return warn!(%error, "links are not followed any more; policies go by those they know");
        }
    }
}

fn read() -> Result<Links, KernelError> {
    let mut links = Links::new();
    for (name, addresses) in Linux::open()?.addresses()? {
        for subnet in addresses.into_iter().filter(|address| !is_link_local(address)) {
            links.entry(Prefix::from(subnet)).or_insert_with(|| name.clone());
        }
    }
    Ok(links)
}

fn is_link_local(address: &IpNetwork) -> bool {
    matches!(address, IpNetwork::V6(v6) if v6.ip().is_unicast_link_local())
}
