//! Tracked connections that no longer lead where they should: of addresses that went to another interface or away, and of
//! UDP to ports of the node that lead elsewhere now. The kernel would go on by them for as long as packets come.
//!
//! Connections of an address that moves are forgotten before its route is changed, as Felix does. Those of one that goes are
//! forgotten later, of many together, since the kernel's whole table has to be read for it; but before anybody else gets the
//! address, and at once where ports of the node led to it. A start that changes nothing forgets nothing.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;

use super::Op;
use crate::delta::Change;
use crate::desired::RoutePath;
use crate::kernel::{ConnectionFilter, Kernel, KernelError, NftChange, NftElement, RouteChange, TableChange};
use crate::model::Protocol;

/// How much later: pods often go together, and an address that nobody has harms nobody.
const LATER: Duration = Duration::from_secs(1);

#[derive(Default)]
pub(super) struct Connections {
    /// To be forgotten before anything else is done.
    pending: ConnectionFilter,
    /// Addresses that have gone. Bounded by the pods that go within [`LATER`].
    gone: BTreeSet<IpAddr>,
    /// When it is time for those.
    due_at: Option<Instant>,
}

impl Connections {
    /// What is about to be done.
    pub(super) fn before(&mut self, ops: &[Op]) {
        for op in ops {
            match op {
                Op::Route(change @ Change::Replace { .. }) => {
                    self.pending.addresses.extend(workload_left(change));
                }
                Op::Route(Change::Create { key, .. })
                    if host(key.destination).is_some_and(|address| self.gone.contains(&address)) =>
                {
                    self.gone_are_due();
                }
                _ => {}
            }
        }
    }

    /// What was done.
    pub(super) fn after(&mut self, op: &Op) {
        match op {
            Op::Route(change @ Change::Delete { .. }) => self.gone.extend(workload_left(change)),
            Op::Nft(change) => {
                self.pending.udp_ports.extend(udp_ports_added(change));
                if takes_host_ports_away(change) {
                    // Whoever comes to such a port again would still be led to the address.
                    self.gone_are_due();
                }
            }
            _ => {}
        }
    }

    /// Addresses whose routes the kernel removed together with their links.
    pub(super) fn gone(&mut self, addresses: impl IntoIterator<Item = IpAddr>) {
        self.gone.extend(addresses);
    }

    /// Those of addresses that have gone are to be forgotten now.
    pub(super) fn gone_are_due(&mut self) {
        self.pending.addresses.append(&mut self.gone);
    }

    /// When those of addresses that have gone are to be forgotten, now being `now`; `None`: there are none.
    pub(super) fn due_at(&mut self, now: Instant) -> Option<Instant> {
        self.due_at = (!self.gone.is_empty()).then(|| self.due_at.unwrap_or(now + LATER));
        self.due_at
    }

    /// Forgets what is to be forgotten. What fails stays to be done.
    pub(super) fn forget(&mut self, kernel: &mut impl Kernel) -> Result<(), KernelError> {
        if !self.pending.is_empty() {
            kernel.forget_connections(&self.pending)?;
            self.pending = ConnectionFilter::default();
        }
        Ok(())
    }
}

/// The address of a workload that loses the interface it was behind.
fn workload_left(change: &RouteChange) -> Option<IpAddr> {
    let (key, from, to) = match change {
        Change::Replace { key, from, to } => (key, from, Some(&to.path)),
        Change::Delete { key, from } => (key, from, None),
        Change::Create { .. } => return None,
    };
    let was_behind_link = matches!(from.path, Some(RoutePath::Link { .. }));
    (was_behind_link && from.path.as_ref() != to)
        .then(|| host(key.destination))
        .flatten()
}

/// The address, if the prefix covers no other.
pub(super) fn host(prefix: IpNetwork) -> Option<IpAddr> {
    let longest = if prefix.is_ipv6() { 128 } else { 32 };
    (prefix.prefix() == longest).then(|| prefix.ip())
}

fn is_host_ports(set: &str) -> bool {
    set.starts_with("host-") && set.contains("ports-")
}

/// Whether ports of the node lead to an address no more.
fn takes_host_ports_away(change: &NftChange) -> bool {
    match &change.change {
        TableChange::Elements(sets) => {
            let mut sets = sets.iter();
            sets.any(|(name, change)| is_host_ports(name) && !change.removed.is_empty())
        }
        TableChange::Whole { from, to } => from.iter().flat_map(|table| &table.sets).any(|(name, before)| {
            let after = to.sets.get(name).map(|set| &set.elements);
            is_host_ports(name) && after.is_none_or(|after| !before.elements.is_subset(after))
        }),
    }
}

/// Ports of UDP in the maps of host ports that were not there, or led elsewhere.
fn udp_ports_added(change: &NftChange) -> Vec<u16> {
    let elements: Vec<&NftElement> = match &change.change {
        TableChange::Elements(sets) => {
            let sets = sets.iter().filter(|(name, _)| is_host_ports(name));
            sets.flat_map(|(_, change)| &change.added).collect()
        }
        TableChange::Whole { from, to } => {
            let before = |name: &str, element: &NftElement| {
                from.as_ref()
                    .and_then(|table| table.sets.get(name))
                    .is_some_and(|set| set.elements.contains(element))
            };
            let sets = to.sets.iter().filter(|(name, _)| is_host_ports(name));
            sets.flat_map(|(name, set)| set.elements.iter().filter(|element| !before(name, element)))
                .collect()
        }
    };
    elements
        .into_iter()
        .filter_map(|element| element.port_of(Protocol::Udp.number()))
        .collect()
}
