//! Tunnel devices. What cannot be changed on a device is changed by making it anew; then everything on it is read back.
//!
//! Invariants: a link with a tunnel's name that is no tunnel is left alone, and the creation fails with the kernel's reason; a tunnel
//! that is not wanted is removed only if it carries our mark.

use std::collections::BTreeMap;

use super::Op;
use crate::delta::{Change, delta};
use crate::desired::{Desired, Tunnel};
use crate::kernel::{Kernel, KernelError, Link, TunnelChange};
use crate::model::InSync;
use crate::ours::TUNNEL_ALIAS;

/// What has to be done to the devices: to be wanted, then to be removed.
pub(super) fn difference(links: &BTreeMap<String, Link>, desired: &Desired, in_sync: InSync) -> Vec<Op> {
    let there: BTreeMap<String, Link> = links
        .iter()
        .filter(|(name, link)| {
            let may_go = in_sync.datastore && !desired.undecided_tunnels.contains(*name);
            let is_wanted = desired.tunnels.contains_key(*name) && link.transport.is_some();
            is_wanted || (may_go && link.is_our_tunnel(name))
        })
        .map(|(name, link)| (name.clone(), link.clone()))
        .collect();
    delta(&desired.tunnels, &there, is_as_wanted)
        .map(|change| Op::Tunnel(Box::new(change)))
        .collect()
}

/// Carries the change out and says whether what is on the device must be read back.
pub(super) fn carry_out(
    kernel: &mut impl Kernel,
    change: &TunnelChange,
) -> (Result<(), KernelError>, Effect) {
    let effect = match change {
        // The kernel forgets the neighbours of a link whose MAC address changes, and the routes of one that was down.
        Change::Replace { from, to, .. }
            if from.up && from.transport.as_ref() == Some(&to.transport) && has_mac(to, from) =>
        {
            Effect::Kept
        }
        Change::Replace { .. } | Change::Create { .. } | Change::Delete { .. } => Effect::New,
    };
    (kernel.change_tunnel(change), effect)
}

/// What a change does to what is on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    /// Nothing.
    Kept,
    /// Addresses, neighbours or routes of the device may be gone.
    New,
}

fn has_mac(wanted: &Tunnel, found: &Link) -> bool {
    wanted.mac.is_none_or(|mac| found.mac == Some(mac))
}

fn is_as_wanted(wanted: &Tunnel, found: &Link) -> bool {
    found.up
        && found.transport.as_ref() == Some(&wanted.transport)
        && found.mtu == wanted.mtu
        && has_mac(wanted, found)
        && found.alias.as_deref() == Some(TUNNEL_ALIAS)
}
