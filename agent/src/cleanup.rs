//! Removing from this node what is ours, and only that: `calidris cleanup`.
//!
//! What is ours is said by `ours.rs`. The order is that of the agent, reversed: nftables, proxy neighbours, routes (the more specific one
//! before the one that covers it), rules, nexthop objects (groups before their members), links. Kernel parameters stay as they are, since others may rely on them by now; those of
//! a host end go with it. The datastore is not touched: addresses stay assigned until DEL or `calidris ipam`.
//!
//! Pods that still run lose their network, since their host ends go.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::delta::Change;
use crate::desired::{ProxyNeighbor, RouteKey, Rule, sysctl};
use crate::kernel::{Kernel, KernelError, Link, Maker, Nexthop, NftFamily, ObservedRoute, SeenNexthops};
use crate::ours;

/// Parameters of the whole node that the agent sets and that nobody takes back.
const STAYING_SYSCTLS: [&str; 2] = ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"];

/// One object of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Removal {
    /// A table of nftables, by family.
    NftTable(NftFamily),
    /// An address that the node answers for on a link.
    ProxyNeighbor(ProxyNeighbor),
    /// A route.
    Route(RouteKey, ObservedRoute),
    /// A rule of routing policy.
    Rule(Rule),
    /// A nexthop object, by number.
    Nexthop(u32, Nexthop),
    /// The host end of a workload, by name.
    Link(String, Link),
    /// A tunnel device, by name.
    Tunnel(String, Link),
}

/// What was or would be removed. The JSON document of `calidris cleanup -o json`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CleanupReport {
    /// Objects removed, or to be removed (dry run), in order.
    pub removed: Vec<String>,
    /// Objects that could not be removed, and why.
    pub failed: Vec<String>,
    /// What stays although the agent may have set it, and why.
    pub left: Vec<String>,
}

/// Whether to remove, or only to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Only say what would be removed.
    DryRun,
    /// Remove it.
    Remove,
}

/// Everything of ours that is there, in the order of its removal.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn inventory(kernel: &mut impl Kernel) -> Result<Vec<Removal>, KernelError> {
    let tables = kernel.our_nft_tables()?;
    let proxies = kernel.proxy_neighbors()?;
    let routes = kernel.routes()?;
    let nexthops = match kernel.nexthops() {
        // A kernel that has no such objects has none of ours.
        Err(error) if error.errno() == Some(libc::EOPNOTSUPP) => SeenNexthops::default(),
        result => result?,
    };
    let rules = kernel.rules()?;
    let links = kernel.links()?;
    let tables = tables.into_iter().map(Removal::NftTable);
    let proxies = proxies.into_iter().filter(|(_, maker)| *maker == Maker::Us);
    let proxies = proxies.map(|(proxy, _)| Removal::ProxyNeighbor(proxy));
    let routes = routes
        .into_iter()
        .rev()
        .map(|(key, route)| Removal::Route(key, route));
    let rules = rules.into_iter().rev().map(Removal::Rule);
    let (groups, gateways): (Vec<_>, Vec<_>) = nexthops
        .ours
        .into_iter()
        .partition(|(_, nexthop)| matches!(nexthop, Nexthop::Group(_)));
    let nexthops = groups.into_iter().chain(gateways);
    let nexthops = nexthops.map(|(id, nexthop)| Removal::Nexthop(id, nexthop));
    let links = links.into_iter().filter_map(|(name, link)| {
        if link.is_our_tunnel(&name) {
            return Some(Removal::Tunnel(name, link));
        }
        let is_ours = link.is_ours(&name) || link.is_half_made(&name);
        is_ours.then_some(Removal::Link(name, link))
    });
    let before_links = tables.chain(proxies).chain(routes).chain(rules).chain(nexthops);
    Ok(before_links.chain(links).collect())
}

/// Removes everything of ours, or says what would be. What fails does not stop the rest.
///
/// # Errors
/// When the kernel cannot be asked what there is.
pub fn clean(kernel: &mut impl Kernel, mode: Mode) -> Result<CleanupReport, KernelError> {
    let mut report = CleanupReport::default();
    let mut staying: BTreeSet<String> = STAYING_SYSCTLS.map(str::to_owned).into();
    for removal in inventory(kernel)? {
        if let Removal::ProxyNeighbor(proxy) = &removal
            && proxy.address.is_ipv6()
        {
            staying.insert(sysctl::proxy_ndp(&proxy.interface));
        }

        let result = match mode {
            Mode::DryRun => Ok(()),
            Mode::Remove => remove(kernel, &removal),
        };
        match result {
            Ok(()) => report.removed.push(removal.to_string()),
            Err(error) => report.failed.push(format!("{removal}: {error}")),
        }
    }
    for path in staying {
        if let Ok(Some(value)) = kernel.sysctl(&path)
            && value != "0"
        {
            report
                .left
                .push(format!("sysctl {path} = {value}: somebody else may rely on it"));
        }
    }
    Ok(report)
}

fn remove(kernel: &mut impl Kernel, removal: &Removal) -> Result<(), KernelError> {
    let result = match removal {
        Removal::NftTable(family) => kernel.delete_nft_table(*family),
        Removal::ProxyNeighbor(proxy) => {
            let change = Change::Delete {
                key: proxy.clone(),
                from: Maker::Us,
            };
            kernel.change_proxy_neighbors(&[change]).pop().unwrap_or(Ok(()))
        }
        Removal::Route(key, route) => {
            let change = Change::Delete {
                key: key.clone(),
                from: route.clone(),
            };
            kernel.change_routes(&[&change]).pop().unwrap_or(Ok(()))
        }
        Removal::Rule(rule) => kernel.change_rule(&Change::Delete {
            key: rule.clone(),
            from: (),
        }),
        Removal::Nexthop(id, nexthop) => {
            let change = Change::Delete {
                key: *id,
                from: nexthop.clone(),
            };
            kernel.change_nexthops(&[change]).pop().unwrap_or(Ok(()))
        }
        Removal::Link(name, link) => kernel.delete_link(name, link.index),
        Removal::Tunnel(name, link) => kernel.change_tunnel(&Change::Delete {
            key: name.clone(),
            from: link.clone(),
        }),
    };
    match result {
        // Gone already: the kernel takes away with a link what leads to it.
        Err(error) if matches!(error.errno(), Some(libc::ESRCH | libc::ENODEV | libc::ENOENT)) => Ok(()),
        result => result,
    }
}

impl fmt::Display for Removal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NftTable(family) => write!(f, "nftables table {family} {}", ours::NFT_TABLE),
            Self::ProxyNeighbor(proxy) => write!(f, "proxy neighbor {proxy}"),
            Self::Route(key, route) => write!(f, "route {key} {route}"),
            Self::Rule(rule) => write!(f, "rule {rule}"),
            Self::Nexthop(id, nexthop) => write!(f, "nexthop {id} {nexthop}"),
            Self::Tunnel(name, _) => write!(f, "tunnel {name}"),
            Self::Link(name, link) => {
                write!(f, "link {name} {}", link.alias.as_deref().unwrap_or("half made"))
            }
        }
    }
}

impl fmt::Display for CleanupReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.removed.iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::{RouteOrigin, RoutePath, RuleAction};
    use crate::kernel::NftTable;
    use crate::kernel::fake::{FakeKernel, Fault, foreign as foreign_route};

    const FIRST_NEXTHOP: u32 = *ours::NEXTHOP_IDS.start();

    /// Of everything one of ours and one of somebody else's.
    fn kernel() -> FakeKernel {
        let mut kernel = FakeKernel::default();
        for name in ["cali1", "cali2", "cali3", "eth0"] {
            kernel.add_link(name);
        }
        let alias = |name: &str, text: &str, kernel: &mut FakeKernel| {
            kernel.links.get_mut(name).unwrap().alias = Some(text.to_owned());
        };
        alias("cali1", "calidris:n/c1/eth0", &mut kernel);
        alias("cali3", "somebody's", &mut kernel);
        alias("eth0", "calidris:not/by/name", &mut kernel);
        let half_made = kernel.links.get_mut("cali2").unwrap();
        (half_made.up, half_made.mac) = (false, Some(ours::HOST_MAC));
        let interface = "cali1".to_owned();
        for (destination, path) in [
            ("10.65.0.0/26", RoutePath::Blackhole),
            ("10.65.0.2/32", RoutePath::Link { interface }),
        ] {
            let route = ObservedRoute {
                origin: RouteOrigin::Local,
                path: Some(path),
            };
            kernel
                .routes
                .insert(RouteKey::main(destination.parse().unwrap()), route);
        }
        let lookup = |priority, table, without_default| Rule {
            is_ipv6: false,
            priority,
            action: RuleAction::Lookup {
                table,
                without_default,
            },
        };
        let proxy = |address: &str| ProxyNeighbor {
            address: address.parse().unwrap(),
            interface: "eth0".to_owned(),
        };
        kernel.proxy_neighbors = [
            (proxy("2001:db8::2"), Maker::Us),
            (proxy("192.0.2.9"), Maker::Another),
        ]
        .into();
        kernel.rules = [lookup(7, 254, true), lookup(8, 100, false)].into();
        let foreign = RouteKey::main("10.99.0.0/16".parse().unwrap());
        kernel.foreign.insert(foreign, foreign_route("static"));
        let gateway = Nexthop::Gateway {
            address: "192.0.2.2".parse().unwrap(),
            interface: "eth0".to_owned(),
        };
        let group = Nexthop::Group([FIRST_NEXTHOP].into());
        kernel.nexthops.ours = [(FIRST_NEXTHOP, gateway), (FIRST_NEXTHOP + 1, group)].into();
        kernel.nexthops.taken = [FIRST_NEXTHOP + 2].into();
        kernel.nft = [(NftFamily::Inet, NftTable::default())].into();
        kernel
            .sysctls
            .insert(STAYING_SYSCTLS[0].to_owned(), "1".to_owned());
        kernel
    }

    #[test]
    fn what_is_ours_goes_in_order_and_the_rest_stays() {
        let mut kernel = kernel();
        let before = kernel.clone();
        let planned = clean(&mut kernel, Mode::DryRun).unwrap();
        assert_eq!((kernel.writes, &kernel.routes), (0, &before.routes));
        let report = clean(&mut kernel, Mode::Remove).unwrap();
        assert_eq!(report, planned);
        assert_eq!(
            report.removed,
            [
                "nftables table inet calidris",
                "proxy neighbor 2001:db8::2 dev eth0",
                "route 10.65.0.2/32 metric 1024 dev cali1 (local)",
                "route 10.65.0.0/26 metric 1024 blackhole (local)",
                "rule inet priority 8 lookup 100",
                "rule inet priority 7 lookup main suppress_prefixlength 0",
                "nexthop 3390898177 group 3390898176",
                "nexthop 3390898176 via 192.0.2.2 dev eth0",
                "link cali1 calidris:n/c1/eth0",
                "link cali2 half made",
            ]
        );
        assert_eq!(report.left.len(), 2, "{:?}", report.left);
        assert_eq!(
            kernel.links.keys().collect::<Vec<_>>(),
            ["cali3", "eth0"],
            "links of others stay"
        );
        assert_eq!(kernel.foreign, before.foreign);
        assert_eq!(kernel.nexthops.taken, before.nexthops.taken);
        assert_eq!(kernel.proxy_neighbors.len(), 1);
        assert_eq!(clean(&mut kernel, Mode::Remove).unwrap().removed, [""; 0]);
    }

    #[test]
    fn what_fails_is_said_and_does_not_stop_the_rest() {
        // Six reads come first.
        for call in 6..16 {
            let mut kernel = FakeKernel {
                fault: Some((call, Fault::Refused)),
                ..kernel()
            };
            let report = clean(&mut kernel, Mode::Remove).unwrap();
            assert_eq!((report.removed.len(), report.failed.len()), (9, 1), "{report:?}");
            clean(&mut kernel, Mode::Remove).unwrap();
            assert_eq!(
                inventory(&mut kernel).unwrap(),
                [],
                "what failed is done the next time"
            );
        }
    }
}
