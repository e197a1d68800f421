//! Which of its addresses is the node's own: Calico's methods (`IP_AUTODETECTION_METHOD`), as a pure choice.
//!
//! Interfaces are looked at in the order of their indexes, addresses in the kernel's order; the first that fits is taken.
//! Interfaces that are down and tunnels of ours never fit.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};

use ipnetwork::IpNetwork;
use regex::Regex;

use super::Interface;
use crate::ours;

/// How the node's address is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Method {
    /// The first address on an interface that is not known to be internal.
    FirstFound,
    /// The first address on the first interface whose name matches the first pattern that any name matches.
    Interface(Vec<Pattern>),
    /// As [`Self::FirstFound`], without interfaces whose names match.
    SkipInterface(Vec<Pattern>),
    /// The first address in one of the ranges.
    Cidr(Vec<IpNetwork>),
    /// The address that packets to this host would leave with. An address or a name.
    CanReach(String),
    /// The address that Kubernetes has for the node (`InternalIP`), handed to the process by the environment.
    KubernetesInternalIp,
}

/// A regular expression, compared by its text.
#[derive(Debug, Clone)]
pub struct Pattern(Regex);

/// What is known beside the interfaces.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hints {
    /// Where [`Method::CanReach`] leads, once that is known.
    pub reach: Vec<IpAddr>,
    /// The address that packets to each of these would leave with.
    pub sources: BTreeMap<IpAddr, IpAddr>,
    /// Addresses that Kubernetes has for the node.
    pub kubernetes: Vec<IpAddr>,
}

/// Names of interfaces that are internal to a host: Calico's list.
const INTERNAL: [&str; 17] = [
    "docker",
    "cbr",
    "dummy",
    "podman",
    "virbr",
    "lxcbr",
    "veth",
    "lo",
    "cali",
    "tunl",
    "flannel",
    "kube-ipvs",
    "cni",
    "vxlan.calico",
    "vxlan-v6.calico",
    "wireguard.cali",
    "wg-v6.cali",
];

impl Pattern {
    /// # Errors
    /// Not a regular expression.
    pub fn parse(text: &str) -> Result<Self, String> {
        Regex::new(text)
            .map(Self)
            .map_err(|error| format!("{text:?} is not a regular expression: {error}"))
    }

    /// Whether it matches a part of the name.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        self.0.is_match(name)
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

impl Eq for Pattern {}

impl Method {
    /// Reads Calico's notation: `first-found`, `interface=REGEX,…`, `skip-interface=REGEX,…`, `cidr=CIDR,…`,
    /// `can-reach=HOST`, `kubernetes-internal-ip`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let list =
            |rest: &str| -> Vec<String> { rest.split(',').map(|item| item.trim().to_owned()).collect() };
        let patterns = |rest: &str| -> Result<Vec<Pattern>, String> {
            list(rest).iter().map(|text| Pattern::parse(text)).collect()
        };
        match text.split_once('=') {
            None if text == "first-found" => Ok(Self::FirstFound),
            None if text == "kubernetes-internal-ip" => Ok(Self::KubernetesInternalIp),
            Some(("interface", rest)) if !rest.is_empty() => Ok(Self::Interface(patterns(rest)?)),
            Some(("skip-interface", rest)) if !rest.is_empty() => Ok(Self::SkipInterface(patterns(rest)?)),
            Some(("can-reach", host)) if !host.is_empty() => Ok(Self::CanReach(host.to_owned())),
            Some(("cidr", rest)) => {
                let ranges = list(rest).into_iter().map(|range| {
                    range
                        .parse()
                        .map_err(|_| format!("{range:?} is not a network in CIDR notation"))
                });
                Ok(Self::Cidr(ranges.collect::<Result<_, _>>()?))
            }
            _ => Err(format!(
                "{text:?} is not a method of address detection; expected first-found, interface=REGEX, skip-interface=REGEX, cidr=CIDR, can-reach=HOST or kubernetes-internal-ip"
            )),
        }
    }

    /// The node's address of a family, with the prefix length of its subnet.
    #[must_use]
    pub fn choose(
        &self,
        is_ipv6: bool,
        interfaces: &BTreeMap<String, Interface>,
        hints: &Hints,
    ) -> Option<IpNetwork> {
        let mut usable: Vec<(&str, &Interface)> = interfaces
            .iter()
            .filter(|(name, interface)| interface.up && !ours::TUNNELS.contains(&name.as_str()))
            .map(|(name, interface)| (name.as_str(), interface))
            .collect();
        usable.sort_by_key(|(_, interface)| interface.index);
        let first = |fits: &dyn Fn(&str, IpAddr) -> bool| {
            usable.iter().find_map(|(name, interface)| {
                interface.addresses.iter().copied().find(|address| {
                    address.is_ipv6() == is_ipv6 && is_global(address.ip()) && fits(name, address.ip())
                })
            })
        };
        let exactly = |wanted: IpAddr| first(&|_, address| address == wanted);
        match self {
            Self::FirstFound => first(&|name, _| !is_internal(name)),
            Self::Interface(patterns) => patterns
                .iter()
                .find_map(|pattern| first(&|name, _| pattern.matches(name))),
            Self::SkipInterface(patterns) => {
                first(&|name, _| !is_internal(name) && !patterns.iter().any(|pattern| pattern.matches(name)))
            }
            Self::Cidr(ranges) => first(&|_, address| ranges.iter().any(|range| range.contains(address))),
            Self::CanReach(_) => {
                let mut targets = hints.reach.iter().filter(|target| target.is_ipv6() == is_ipv6);
                targets.find_map(|target| exactly(*hints.sources.get(target)?))
            }
            Self::KubernetesInternalIp => {
                let mut known = hints
                    .kubernetes
                    .iter()
                    .filter(|address| address.is_ipv6() == is_ipv6);
                known.find_map(|address| exactly(*address))
            }
        }
    }
}

fn is_internal(name: &str) -> bool {
    INTERNAL.iter().any(|internal| name.starts_with(internal))
}

fn is_global(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            !v4.is_loopback() && !v4.is_link_local() && !v4.is_multicast() && !v4.is_unspecified()
        }
        IpAddr::V6(v6) => {
            v6 != Ipv6Addr::LOCALHOST
                && v6 != Ipv6Addr::UNSPECIFIED
                && !v6.is_unicast_link_local()
                && !v6.is_multicast()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interfaces() -> BTreeMap<String, Interface> {
        let rows: [(&str, u32, bool, &[&str]); 8] = [
            ("lo", 1, true, &["127.0.0.1/8", "203.0.113.1/32", "::1/128"]),
            ("docker0", 2, true, &["172.17.0.1/16"]),
            ("eth1", 3, false, &["198.51.100.9/24"]),
            (
                "eth0",
                4,
                true,
                &[
                    "169.254.7.7/16",
                    "192.0.2.11/24",
                    "192.0.2.12/24",
                    "fe80::1/64",
                    "2001:db8::11/64",
                ],
            ),
            ("bond0", 5, true, &["10.1.0.11/16", "2001:db8:1::11/64"]),
            ("loft", 6, true, &["10.3.0.11/16"]),
            ("vxlan.calico", 7, true, &["10.244.0.1/32"]),
            ("aaa0", 8, true, &["10.2.0.11/16"]),
        ];
        rows.into_iter()
            .map(|(name, index, up, addresses)| {
                let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
                let interface = Interface {
                    index,
                    up,
                    running: up,
                    mtu: 1500,
                    addresses,
                };
                (name.to_owned(), interface)
            })
            .collect()
    }

    #[test]
    fn methods_choose_as_calicos_do() {
        let hints = Hints {
            reach: ["192.0.2.254".parse().unwrap(), "2001:db8:1::ff".parse().unwrap()].into(),
            sources: [
                ("192.0.2.254".parse().unwrap(), "192.0.2.12".parse().unwrap()),
                (
                    "2001:db8:1::ff".parse().unwrap(),
                    "2001:db8:1::11".parse().unwrap(),
                ),
            ]
            .into(),
            kubernetes: ["10.1.0.11".parse().unwrap(), "2001:db8::11".parse().unwrap()].into(),
        };
        let rows = [
            ("first-found", Some("192.0.2.11/24"), Some("2001:db8::11/64")),
            (
                "interface=bond.*",
                Some("10.1.0.11/16"),
                Some("2001:db8:1::11/64"),
            ),
            // The first pattern counts more than the first interface; one that is down does not count.
            (
                "interface=eth1, bond0,eth0",
                Some("10.1.0.11/16"),
                Some("2001:db8:1::11/64"),
            ),
            ("interface=docker0", Some("172.17.0.1/16"), None),
            ("interface=nothing", None, None),
            ("interface=vxlan", None, None),
            (
                "skip-interface=eth.*",
                Some("10.1.0.11/16"),
                Some("2001:db8:1::11/64"),
            ),
            ("skip-interface=eth.*,bond", Some("10.2.0.11/16"), None),
            ("cidr=10.2.0.0/15, 10.1.0.0/16", Some("10.1.0.11/16"), None),
            ("cidr=2001:db8:1::/48", None, Some("2001:db8:1::11/64")),
            ("cidr=198.51.100.0/24", None, None),
            (
                "can-reach=router",
                Some("192.0.2.12/24"),
                Some("2001:db8:1::11/64"),
            ),
            (
                "kubernetes-internal-ip",
                Some("10.1.0.11/16"),
                Some("2001:db8::11/64"),
            ),
        ];
        for (method, v4, v6) in rows {
            let parsed = Method::parse(method).unwrap();
            for (is_ipv6, expected) in [(false, v4), (true, v6)] {
                let chosen = parsed.choose(is_ipv6, &interfaces(), &hints);
                let expected: Option<IpNetwork> = expected.map(|network| network.parse().unwrap());
                assert_eq!(chosen, expected, "{method}");
            }
        }
    }

    #[test]
    fn what_is_not_known_yet_chooses_nothing() {
        for method in ["can-reach=192.0.2.254", "kubernetes-internal-ip"] {
            let method = Method::parse(method).unwrap();
            assert_eq!(method.choose(false, &interfaces(), &Hints::default()), None);
        }
    }

    #[test]
    fn what_is_no_method_is_refused_with_the_methods_there_are() {
        for text in [
            "",
            "first",
            "interface=",
            "interface=(",
            "cidr=",
            "cidr=10.0.0.0/33",
            "can-reach=",
            "nothing=1",
        ] {
            let error = Method::parse(text).unwrap_err();
            assert!(!error.is_empty(), "{text}");
        }
        assert!(Method::parse("best").unwrap_err().contains("can-reach=HOST"));
    }
}
