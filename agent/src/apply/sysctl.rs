//! Kernel parameters: read once, then again when their link is another one or everything is read back.

use std::collections::BTreeMap;

use super::Op;
use super::links::LinksChanged;
use crate::delta::{Change, delta};
use crate::kernel::{Kernel, KernelError};

#[derive(Default)]
pub(super) struct Sysctls {
    /// Values as last seen, of parameters that were desired at some time, by interface (none: an empty name) and path. What is
    /// missing is read when desired.
    known: BTreeMap<String, BTreeMap<String, String>>,
}

impl Sysctls {
    pub(super) fn mark_dirty(&mut self) {
        self.known.clear();
    }

    pub(super) fn links_changed(&mut self, changed: &LinksChanged) {
        for name in &changed.names {
            self.forget(name);
        }
    }

    /// Takes in parameters that were written a moment ago.
    pub(super) fn made(&mut self, sysctls: Vec<(String, String)>) {
        for (path, value) in sysctls {
            self.see(path, value);
        }
    }

    fn see(&mut self, path: String, value: String) {
        let interface = interface_of(&path).unwrap_or_default();
        match self.known.get_mut(interface) {
            Some(of_interface) => of_interface.insert(path, value),
            None => {
                let interface = interface.to_owned();
                self.known.entry(interface).or_default().insert(path, value)
            }
        };
    }

    fn seen(&self, path: &str) -> Option<&String> {
        self.known.get(interface_of(path).unwrap_or_default())?.get(path)
    }

    /// The parameters of an interface are read again: it may be another one of the same name.
    pub(super) fn forget(&mut self, interface: &str) {
        self.known.remove(interface);
    }

    pub(super) fn difference(
        &mut self,
        kernel: &mut impl Kernel,
        desired: &BTreeMap<String, String>,
    ) -> Result<Vec<Op>, KernelError> {
        self.known.retain(|_, of_interface| {
            of_interface.retain(|path, _| desired.contains_key(path));
            !of_interface.is_empty()
        });
        self.difference_of(kernel, desired)
    }

    /// As [`Self::difference`], of some parameters. What is known of others stays known.
    pub(super) fn difference_of(
        &mut self,
        kernel: &mut impl Kernel,
        desired: &BTreeMap<String, String>,
    ) -> Result<Vec<Op>, KernelError> {
        let mut there = BTreeMap::new();
        for path in desired.keys() {
            if self.seen(path).is_none()
                && let Some(value) = kernel.sysctl(path)?
            {
                self.see(path.clone(), value);
            }
            if let Some(value) = self.seen(path) {
                there.insert(path.clone(), value.clone());
            }
        }
        Ok(delta(desired, &there, |wanted, found| wanted == found)
            .map(Op::Sysctl)
            .collect())
    }

    pub(super) fn carry_out(
        &mut self,
        kernel: &mut impl Kernel,
        change: &Change<String, String>,
    ) -> Result<(), KernelError> {
        let (Change::Create { key, value } | Change::Replace { key, to: value, .. }) = change else {
            return Ok(());
        };
        let result = kernel.set_sysctl(key, value);
        match &result {
            Ok(()) => self.see(key.clone(), value.clone()),
            Err(_) => {
                if let Some(of_interface) = self.known.get_mut(interface_of(key).unwrap_or_default()) {
                    of_interface.remove(key);
                }
            }
        }
        result
    }
}

/// The interface that a parameter belongs to: `net/ipv4/conf/X/forwarding`. `all` and `default` are none.
pub(super) fn interface_of(path: &str) -> Option<&str> {
    let mut parts = path.split('/');
    let (_net, _family, folder) = (parts.next()?, parts.next()?, parts.next()?);
    let interface = parts.next()?;
    (matches!(folder, "conf" | "neigh") && parts.next().is_some() && !matches!(interface, "all" | "default"))
        .then_some(interface)
}

#[cfg(test)]
mod tests {
    use super::interface_of;

    #[test]
    fn interface_of_a_parameter() {
        assert_eq!(interface_of("net/ipv4/conf/cali1/proxy_arp"), Some("cali1"));
        assert_eq!(interface_of("net/ipv4/neigh/cali1/proxy_delay"), Some("cali1"));
        assert_eq!(interface_of("net/ipv6/conf/eth0.7/accept_ra"), Some("eth0.7"));
        assert_eq!(interface_of("net/ipv6/conf/all/forwarding"), None);
        assert_eq!(interface_of("net/ipv4/ip_forward"), None);
    }
}
