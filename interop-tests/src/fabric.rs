//! The cables and switches of a lab: one namespace that holds a bridge per subnet, and a veth pair from the bridge
//! to each member of the subnet.
//!
//! A member's interface has the name of the subnet; the other end, the switch port, is called `member.subnet`. Both
//! are made directly in their namespaces, so that nothing ever shows up in the machine's own.

use std::net::IpAddr;

use anyhow::ensure;
use ipnetwork::IpNetwork;

use crate::lab::Lab;
use crate::netns::Namespace;

/// The longest name of an interface (IFNAMSIZ less the final zero).
pub const LONGEST_INTERFACE: usize = 15;

/// The namespace with the switches.
#[derive(Debug)]
pub struct Fabric {
    namespace: Namespace,
}

impl Fabric {
    /// Makes the namespace, without any switch.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn create(lab: &Lab) -> anyhow::Result<Self> {
        Ok(Self {
            namespace: lab.namespace("fabric")?,
        })
    }

    /// Makes the switch of a subnet.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn add_subnet(&self, subnet: &str) -> anyhow::Result<()> {
        self.namespace.ip(&format!(
            "link add {subnet} up type bridge forward_delay 0 mcast_snooping 0"
        ))?;
        Ok(())
    }

    /// Connects a member to a subnet: its interface, named like the subnet, comes up with the address.
    ///
    /// # Errors
    /// When the name of the switch port is too long, or the kernel refuses.
    pub fn plug(&self, member: (&str, &Namespace), subnet: &str, address: IpNetwork) -> anyhow::Result<()> {
        let (name, namespace) = member;
        let port = format!("{name}.{subnet}");
        ensure!(
            port.len() <= LONGEST_INTERFACE,
            "switch port {port:?}: longer than the {LONGEST_INTERFACE} that the kernel allows; choose shorter names"
        );
        self.namespace.ip(&format!(
            "link add {port} up type veth peer name {subnet} netns {}",
            namespace.name()
        ))?;
        self.namespace.ip(&format!("link set {port} master {subnet}"))?;
        // Optimistic or skipped duplicate detection does not matter for IPv4; IPv6 addresses are usable at once.
        let nodad = if address.is_ipv6() { " nodad" } else { "" };
        namespace.ip(&format!("addr add {address} dev {subnet}{nodad}"))?;
        namespace.ip(&format!("link set {subnet} up"))?;
        Ok(())
    }

    /// Pulls the cable between a member and a subnet.
    ///
    /// # Errors
    /// When there is no such port.
    pub fn unplug(&self, member: &str, subnet: &str) -> anyhow::Result<()> {
        self.namespace.ip(&format!("link set {member}.{subnet} down"))?;
        Ok(())
    }

    /// Puts the cable back.
    ///
    /// # Errors
    /// When there is no such port.
    pub fn replug(&self, member: &str, subnet: &str) -> anyhow::Result<()> {
        self.namespace.ip(&format!("link set {member}.{subnet} up"))?;
        Ok(())
    }
}

/// Gives a namespace a default route.
///
/// # Errors
/// When the kernel refuses, for example since the gateway is not in a connected subnet.
pub fn default_route(namespace: &Namespace, gateway: IpAddr) -> anyhow::Result<()> {
    let family = if gateway.is_ipv6() { "-6 " } else { "" };
    namespace.ip(&format!("{family}route add default via {gateway}"))?;
    Ok(())
}
