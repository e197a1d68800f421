//! Links as last seen, and the host ends kept up and with their MAC address.

use std::collections::{BTreeMap, BTreeSet};

use super::Op;
use crate::delta::{Change, delta};
use crate::desired::HostLink;
use crate::kernel::{Kernel, KernelError, Link, LinkNews};
use crate::ours::LINK_PREFIX;

pub(super) struct Links {
    known: BTreeMap<String, Link>,
    /// All are to be read back.
    dirty: bool,
    /// Those that are to be read back one by one: what was said of them does not agree with what is known.
    doubtful: BTreeSet<String>,
}

/// Links read back one by one, at most: all at once cost as much as some hundred of them.
const MAX_DOUBTFUL: usize = 64;

/// What a read back found different.
#[derive(Default)]
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

    /// Notes what differs between what was known of a link and what there is.
    fn compare(&mut self, name: &str, before: Option<&Link>, now: Option<&Link>) {
        // Whether a pod takes its packets is the pod's matter.
        let running = |link: &Link| link.running && is_uplink(name);
        let essence = |link: &Link| (link.index, link.up, running(link));
        let all = |link: &Link| Link {
            running: running(link),
            ..link.clone()
        };
        if before.map(essence) != now.map(essence) {
            self.names.insert(name.to_owned());
            self.uplinks |= is_uplink(name);
        } else if before.map(all) != now.map(all) {
            self.details.insert(name.to_owned());
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
            doubtful: BTreeSet::new(),
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
        self.dirty || !self.doubtful.is_empty()
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
                let link = Link {
                    running,
                    ..link.clone()
                };
                if *known != link {
                    self.doubt(name);
                }
            }
            (None, LinkNews::Seen(_)) if is_of_workload(name) => self.doubt(name),
            (None, LinkNews::Seen(link)) => {
                self.dirty |= self.known.values().any(|known| known.index == link.index);
            }
        }
        None
    }

    fn doubt(&mut self, name: &str) {
        self.doubtful.insert(name.to_owned());
        self.dirty |= self.doubtful.len() > MAX_DOUBTFUL;
    }

    /// Reads back if dirty, all or those in doubt; `None` if not.
    pub(super) fn read_back(
        &mut self,
        kernel: &mut impl Kernel,
    ) -> Result<Option<LinksChanged>, KernelError> {
        if !self.is_dirty() {
            return Ok(None);
        }
        let mut changed = LinksChanged::default();
        if self.dirty {
            let found = kernel.links()?;
            let names: BTreeSet<&String> = self.known.keys().chain(found.keys()).collect();
            for name in names {
                changed.compare(name, self.known.get(name), found.get(name));
            }
            self.known = found;
        } else {
            let links = self.doubtful.iter().map(|name| kernel.link(name));
            let found: Vec<Option<Link>> = links.collect::<Result<_, _>>()?;
            for (name, link) in self.doubtful.iter().zip(found) {
                changed.compare(name, self.known.get(name), link.as_ref());
                match link {
                    Some(link) => self.known.insert(name.clone(), link),
                    None => self.known.remove(name),
                };
            }
        }
        self.dirty = false;
        self.doubtful.clear();
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
