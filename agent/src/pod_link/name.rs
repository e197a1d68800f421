//! Names and addresses that follow from an attachment's identity, so that every process computes the same.

use std::fmt::Write as _;

use sha1::{Digest as _, Sha1};

use crate::model::EndpointId;
use crate::ours::{ALIAS_PREFIX, LINK_PREFIX};

/// Length of what follows the prefix: 15 bytes, the kernel's limit, less `cali`.
const SUFFIX: usize = 11;

/// Longest alias the kernel keeps (`IFALIASZ` less the final zero).
const ALIAS_MAX: usize = 255;

/// Name of the host end. Calico's rule for `eth0`: `cali` and the first 11 hexadecimal digits of the SHA-1 of
/// `namespace.pod`; without Kubernetes `cali` and the first 11 characters of the container ID.
///
/// Other interfaces of the pod (Calico has none): the SHA-1 of `namespace.pod/ifname`, or `container/ifname`; `/` occurs
/// in none of the parts, so that the text is never that of another pod. A container ID whose begin is not made of
/// letters, digits, `-`, `_`, `.` (the kernel would refuse the name) is hashed too.
#[must_use]
pub fn host_interface_name(pod: Option<(&str, &str)>, container_id: &str, ifname: &str) -> String {
    let is_primary = ifname == "eth0";
    let suffix = match pod {
        Some((namespace, pod)) if is_primary => digest(&format!("{namespace}.{pod}")),
        Some((namespace, pod)) => digest(&format!("{namespace}.{pod}/{ifname}")),
        None => {
            let plain: String = container_id.chars().take(SUFFIX).collect();
            let is_fit = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            if is_primary && !plain.is_empty() && plain.chars().all(is_fit) {
                plain
            } else {
                digest(&format!("{container_id}/{ifname}"))
            }
        }
    };
    format!("{LINK_PREFIX}{suffix}")
}

/// The alias that marks the host end of `id`. Cut at the kernel's limit of 255 bytes: the mark is at the front.
#[must_use]
pub(super) fn alias(id: &EndpointId) -> String {
    let mut alias = format!("{ALIAS_PREFIX}{}/{}/{}", id.network, id.container_id, id.ifname);
    while alias.len() > ALIAS_MAX {
        alias.pop();
    }
    alias
}

/// A MAC address for the pod's end: locally administered, unicast, the same for the same attachment.
#[must_use]
pub fn container_mac(id: &EndpointId) -> [u8; 6] {
    let digest = Sha1::digest(alias(id).as_bytes());
    let mut mac = [0; 6];
    for (byte, hashed) in mac.iter_mut().zip(digest) {
        *byte = hashed;
    }
    mac[0] = (mac[0] & 0xfc) | 0x02;
    mac
}

fn digest(text: &str) -> String {
    let mut hex = Sha1::digest(text.as_bytes())
        .iter()
        .fold(String::new(), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        });
    hex.truncate(SUFFIX);
    hex
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_calico_gives() {
        // As real Calico named the links of these pods and containers.
        for (pod, name) in [
            ("web-1", "cali751425ce827"),
            ("web-2", "calib8419a605df"),
            ("web-3", "calie1a869ef930"),
        ] {
            assert_eq!(
                host_interface_name(Some(("shop", pod)), "cb7d031eb0bab8eb", "eth0"),
                name
            );
        }
        assert_eq!(host_interface_name(None, "c0ffee01", "eth0"), "calic0ffee01");
        assert_eq!(
            host_interface_name(None, "cb7d031eb0bab8ebd35a", "eth0"),
            "calicb7d031eb0b"
        );
    }

    #[test]
    fn every_name_fits_and_is_fit_for_the_kernel() {
        let names = [
            host_interface_name(Some(("shop", "web-1")), "c1", "net1"),
            host_interface_name(Some(("shop", "web-1")), "c1", "eth0"),
            host_interface_name(None, "c1", "net1"),
            host_interface_name(None, "", "eth0"),
            host_interface_name(None, "a/../../b", "eth0"),
            host_interface_name(None, "žluťoučký kůň", "eth0"),
        ];
        for name in &names {
            assert!(
                name.len() <= 15 && name.is_ascii() && !name.contains('/'),
                "{name}"
            );
        }
        assert_eq!(
            names.iter().collect::<std::collections::BTreeSet<_>>().len(),
            names.len()
        );
    }

    #[test]
    fn a_second_interface_never_has_the_name_of_another_pod() {
        assert_ne!(
            host_interface_name(Some(("shop", "web")), "c1", "net1"),
            host_interface_name(Some(("shop", "web.net1")), "c2", "eth0")
        );
    }

    #[test]
    fn mac_is_stable_unicast_and_locally_administered() {
        let id = |container: &str| EndpointId {
            network: "n".into(),
            container_id: container.into(),
            ifname: "eth0".into(),
        };
        let mac = container_mac(&id("c1"));
        assert_eq!(mac, container_mac(&id("c1")));
        assert_ne!(mac, container_mac(&id("c2")));
        assert_eq!(mac[0] & 0b11, 0b10);
    }
}
