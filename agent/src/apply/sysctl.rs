//! Kernel parameters: read once, then again when their link is another one or everything is read back.

use std::collections::BTreeMap;

use super::Op;
use super::links::LinksChanged;
use crate::delta::{Change, delta};
use crate::kernel::{Kernel, KernelError};

#[derive(Default)]
pub(super) struct Sysctls {
    /// Values as last seen, of parameters that were desired at some time. What is missing is read when desired.
    known: BTreeMap<String, String>,
}

impl Sysctls {
    pub(super) fn mark_dirty(&mut self) {
        self.known.clear();
    }

    pub(super) fn links_changed(&mut self, changed: &LinksChanged) {
        self.known
            .retain(|path, _| interface_of(path).is_none_or(|interface| !changed.names.contains(interface)));
    }

    /// Takes in parameters that were written a moment ago.
    pub(super) fn made(&mut self, sysctls: Vec<(String, String)>) {
        self.known.extend(sysctls);
    }

    /// The parameters of an interface are read again: it may be another one of the same name.
    pub(super) fn forget(&mut self, interface: &str) {
        self.known.retain(|path, _| interface_of(path) != Some(interface));
    }

    pub(super) fn difference(
        &mut self,
        kernel: &mut impl Kernel,
        desired: &BTreeMap<String, String>,
    ) -> Result<Vec<Op>, KernelError> {
        self.known.retain(|path, _| desired.contains_key(path));
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
            let value = match self.known.get(path) {
                Some(value) => value.clone(),
                None => match kernel.sysctl(path)? {
                    Some(value) => self.known.entry(path.clone()).or_insert(value).clone(),
                    None => continue,
                },
            };
            there.insert(path.clone(), value);
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
            Ok(()) => self.known.insert(key.clone(), value.clone()),
            Err(_) => self.known.remove(key),
        };
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
