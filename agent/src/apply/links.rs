//! Links as last seen, and the host ends kept up and with their MAC address.

use std::collections::{BTreeMap, BTreeSet};

use super::Op;
use crate::delta::{Change, delta};
use crate::desired::HostLink;
use crate::kernel::{Kernel, KernelError, Link, LinkNews};
use crate::ours::LINK_PREFIX;

pub(super) struct Links {
    known: BTreeMap<String, Link>,
    dirty: bool,
}

/// What a read back found different.
pub(super) struct LinksChanged {
    /// Links that appeared, vanished, went up or down, or are other links of the same name; and uplinks that got or lost their carrier.
    pub(super) names: BTreeSet<String>,
    /// Whether there is one among them that is not a workload's.
    pub(super) uplinks: bool,
    /// Links that are as before but for what is to be kept right, or what something else follows from: MTU, MAC address, alias.
    pub(super) details: BTreeSet<String>,
}

impl LinksChanged {
    /// Links that went away, or down, and are there again.
    pub(super) fn of(names: BTreeSet<String>) -> Self {
        Self {
            uplinks: names.iter().any(|name| is_uplink(name)),
            names,
            details: BTreeSet::new(),
        }
    }

    /// Whether one of them `concerns`, or is not a workload's.
    pub(super) fn matters(&self, concerns: impl Fn(&str) -> bool) -> bool {
        let mut all = self.names.iter().chain(&self.details);
        all.any(|name| is_uplink(name) || concerns(name))
    }
}

impl Default for Links {
    fn default() -> Self {
        Self {
            known: BTreeMap::new(),
            dirty: true,
        }
    }
}

impl Links {
    pub(super) fn known(&self) -> &BTreeMap<String, Link> {
        &self.known
    }

    pub(super) fn mark_dirty(&mut self) {
        self.dirty = true;
    }

    pub(super) fn is_dirty(&self) -> bool {
        self.dirty
    }

    /// Takes in a link that is known without reading it back. Returns what differs by it: nothing where there was no other link of
    /// that name.
    pub(super) fn made(&mut self, name: &str, link: Link) -> Option<LinksChanged> {
        let essence = |link: &Link| (link.index, link.up);
        let made = essence(&link);
        let before = self.known.insert(name.to_owned(), link);
        before
            .filter(|before| essence(before) != made)
            .map(|_| LinksChanged::of([name.to_owned()].into()))
    }

    /// Takes in what the kernel said of a link with our prefix, which may be older than what is known. Returns what differs by
    /// it. What does not agree with what is known is read back; but a link that is nobody's may be there unknown.
    pub(super) fn heard(
        &mut self,
        name: &str,
        news: &LinkNews,
        is_of_workload: impl Fn(&str) -> bool,
    ) -> Option<LinksChanged> {
        match (self.known.get(name), news) {
            (Some(known), LinkNews::Gone(index)) if known.index == *index => {
                self.known.remove(name);
                return Some(LinksChanged::of([name.to_owned()].into()));
            }
            // One of that name before the one that is known.
            (_, LinkNews::Gone(_)) => {}
            // Whether a pod takes its packets is the pod's matter.
            (Some(known), LinkNews::Seen(link)) => {
                let running = known.running;
                self.dirty |= *known
                    != Link {
                        running,
                        ..link.clone()
                    };
            }
            (None, LinkNews::Seen(link)) => {
                let had_another_name = || self.known.values().any(|known| known.index == link.index);
                self.dirty |= is_of_workload(name) || had_another_name();
            }
        }
        None
    }

    /// Reads back if dirty; `None` if not.
    pub(super) fn read_back(
        &mut self,
        kernel: &mut impl Kernel,
    ) -> Result<Option<LinksChanged>, KernelError> {
        if !self.dirty {
            return Ok(None);
        }
        let found = kernel.links()?;
        // Whether a pod takes its packets is the pod's matter.
        let essence = |links: &BTreeMap<String, Link>, name: &str| {
            let link = links.get(name)?;
            Some((link.index, link.up, link.running && is_uplink(name)))
        };
        let all = self.known.keys().chain(found.keys());
        let is_other = |name: &&String| essence(&self.known, name) != essence(&found, name);
        let mut changed = LinksChanged::of(all.filter(is_other).cloned().collect());
        let of_pod = |link: &Link, name: &str| Link {
            running: link.running && is_uplink(name),
            ..link.clone()
        };
        let known = self.known.iter();
        changed.details = known
            .filter(|(name, _)| !changed.names.contains(*name))
            .filter(|(name, link)| {
                let now = found.get(*name);
                now.is_some_and(|now| of_pod(now, name) != of_pod(link, name))
            })
            .map(|(name, _)| name.clone())
            .collect();
        self.known = found;
        self.dirty = false;
        Ok(Some(changed))
    }

    /// Host ends that are there and not as desired. Links are never created or deleted here.
    pub(super) fn difference(&self, desired: &BTreeMap<String, HostLink>) -> Vec<Op> {
        let there: BTreeMap<String, Link> = desired
            .keys()
            .filter_map(|name| self.known.get_key_value(name))
            .map(|(name, link)| (name.clone(), link.clone()))
            .collect();
        delta(desired, &there, |wanted, found| {
            found.up && found.mac == Some(wanted.mac)
        })
        .filter(|change| matches!(change, Change::Replace { .. }))
        .map(|change| Op::Link(Box::new(change)))
        .collect()
    }

    pub(super) fn carry_out(
        &mut self,
        kernel: &mut impl Kernel,
        change: &Change<String, HostLink, Link>,
    ) -> Result<(), KernelError> {
        let (Change::Create { key, value: wanted } | Change::Replace { key, to: wanted, .. }) = change else {
            return Ok(());
        };
        let result = kernel.set_link(key, *wanted);
        match &result {
            Ok(()) => {
                if let Some(link) = self.known.get_mut(key) {
                    link.up = true;
                    link.mac = Some(wanted.mac);
                }
            }
            Err(error) => self.dirty |= error.leaves_doubt(),
        }
        result
    }
}

fn is_uplink(name: &str) -> bool {
    !name.starts_with(LINK_PREFIX)
}
