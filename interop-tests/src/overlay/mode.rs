//! The modes of the pools, tours through them, and what is to be seen of each.

use clap::{Args, ValueEnum};

use crate::calico::PLAIN;

/// What a lab is taken through.
#[derive(Clone, Debug, Args)]
pub struct Tour {
    /// What leads to pods of other nodes where nothing encapsulates
    #[arg(long, value_enum, default_value_t = Routing::Direct)]
    pub routing: Routing,
    /// The modes in which everything is looked at, in turn
    #[arg(long, value_enum, value_delimiter = ',', required = true)]
    pub modes: Vec<Mode>,
    /// More modes after those, in turn: only what the change costs is looked at
    #[arg(long, value_enum, value_delimiter = ',')]
    pub changes: Vec<Mode>,
}

/// How packets travel between nodes: the mode of both pools.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// As they are, the way that [`Routing`] says.
    Unencapsulated,
    /// VXLAN to every node.
    VxlanAlways,
    /// VXLAN to nodes of other subnets.
    VxlanCrossSubnet,
    /// IPIP to every node. IPv6 as in [`Mode::Unencapsulated`].
    IpipAlways,
    /// IPIP to nodes of other subnets. IPv6 as in [`Mode::Unencapsulated`].
    IpipCrossSubnet,
}

/// What leads to pods of other nodes where nothing encapsulates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Routing {
    /// The datastore: straight to nodes of the same subnet, nowhere else. There is no BGP.
    Direct,
    /// BGP, which every node speaks with the router.
    Bgp,
}

/// What is to be seen on the wire between two nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Carriage {
    /// Pods' packets as they are.
    Plain,
    /// In VXLAN.
    Vxlan,
    /// In IPIP.
    Ipip,
    /// Nothing: there is no way.
    Nothing,
}

/// What leads from a node to the pods of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// What carries packets.
    pub carriage: Carriage,
    /// Whose route it is: the mark of what the datastore says or of what BGP says.
    pub protocol: u8,
}

/// The marks of routes (`agent/src/ours.rs`).
const FROM_DATASTORE: u8 = 204;
const FROM_BGP: u8 = 203;

impl Tour {
    /// The options of `calidris-lab overlay` that say it.
    #[must_use]
    pub fn options(&self) -> Vec<String> {
        let modes = |option: &str, modes: &[Mode]| {
            let modes = modes.iter().map(|mode| format!("{option}={}", name(mode)));
            modes.collect::<Vec<_>>()
        };
        let mut options = vec![format!("--routing={}", name(&self.routing))];
        options.extend(modes("--modes", &self.modes));
        options.extend(modes("--changes", &self.changes));
        options
    }
}

/// Its name on the command line.
fn name(value: &impl ValueEnum) -> String {
    let value = value.to_possible_value();
    value.map_or_else(String::new, |value| value.get_name().to_owned())
}

impl Mode {
    /// What leads packets of a family from a node to the pods of another.
    #[must_use]
    pub fn way(self, routing: Routing, is_ipv6: bool, same_subnet: bool) -> Way {
        let carriage = match (self, same_subnet) {
            (Self::VxlanAlways, _) | (Self::VxlanCrossSubnet, false) => Carriage::Vxlan,
            (Self::IpipAlways, _) | (Self::IpipCrossSubnet, false) if !is_ipv6 => Carriage::Ipip,
            (_, false) if routing == Routing::Direct => Carriage::Nothing,
            _ => Carriage::Plain,
        };
        let is_by_bgp = routing == Routing::Bgp && self.of_pool(is_ipv6) == PLAIN;
        Way {
            carriage,
            protocol: if is_by_bgp { FROM_BGP } else { FROM_DATASTORE },
        }
    }

    /// What the mode leaves of the uplinks' 1500 bytes for a pod.
    #[must_use]
    pub fn pod_mtu(self) -> u32 {
        match self {
            Self::Unencapsulated => 1500,
            Self::IpipAlways | Self::IpipCrossSubnet => 1480,
            // The pool of IPv6 decides: a pod has addresses of both.
            Self::VxlanAlways | Self::VxlanCrossSubnet => 1430,
        }
    }

    /// Its tunnel devices.
    pub(super) fn tunnels(self) -> &'static [&'static str] {
        match self {
            Self::Unencapsulated => &[],
            Self::VxlanAlways | Self::VxlanCrossSubnet => &["vxlan.calico", "vxlan-v6.calico"],
            Self::IpipAlways | Self::IpipCrossSubnet => &["tunl0"],
        }
    }

    /// `ipipMode` and `vxlanMode` of the pool of a family.
    pub(super) fn of_pool(self, is_ipv6: bool) -> (&'static str, &'static str) {
        match self {
            Self::VxlanAlways => ("Never", "Always"),
            Self::VxlanCrossSubnet => ("Never", "CrossSubnet"),
            Self::IpipAlways if !is_ipv6 => ("Always", "Never"),
            Self::IpipCrossSubnet if !is_ipv6 => ("CrossSubnet", "Never"),
            Self::Unencapsulated | Self::IpipAlways | Self::IpipCrossSubnet => PLAIN,
        }
    }
}
