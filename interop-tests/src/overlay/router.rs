//! The router between the subnets. Where BGP leads, it is a BIRD that every node speaks with, in each family by a session of that.

use std::fmt::Write;

use anyhow::Context;
use ipnetwork::IpNetwork;

use super::{NODES, ROUTER};
use crate::daemon::bird;
use crate::daemon::seat::{Installation, Seat};
use crate::lab::Lab;
use crate::netns::Namespace;
use crate::process::Process;

/// Its AS. The nodes have those after it: EBGP keeps the next hop between two that share a link with the router.
const AS_NUMBER: u32 = 64_512;

/// Starts BIRD.
///
/// # Errors
/// When it does not start; with the end of its log.
pub(super) fn start(lab: &Lab, namespace: &Namespace) -> anyhow::Result<Process> {
    let seat = Seat::take(lab, "router", namespace, &Installation::Machine)?;
    seat.write(bird::CONFIG, &config()?)?;
    bird::launch(lab, &seat, &[])
}

/// The part of a node's configuration that makes it speak with the router of its subnet.
pub(super) fn peers(node: usize) -> anyhow::Result<String> {
    let (_, subnet, _, _) = NODES[node];
    let mut text = format!("[bgp]\nas_number = {}\n", as_number(node));
    for (family, address) in ["ipv4", "ipv6"].into_iter().zip(addresses(subnet)?) {
        write!(
            text,
            "[[bgp.peers]]\nname = \"router-{family}\"\naddress = \"{}\"\nas_number = {AS_NUMBER}\n\
             connect_retry = \"1s\"\nfamilies = [\"{family}\"]\nimport = \"accept\"\nexport = \"own-blocks\"\n",
            address.parse::<IpNetwork>()?.ip()
        )?;
    }
    Ok(text)
}

/// The router's addresses in a subnet, IPv4 and IPv6.
///
/// # Errors
/// When it has none.
pub(super) fn addresses(subnet: &str) -> anyhow::Result<[&'static str; 2]> {
    let router = ROUTER.into_iter().find(|(of, _)| *of == subnet);
    let (_, addresses) = router.context("each subnet has a router")?;
    Ok(addresses)
}

fn config() -> anyhow::Result<String> {
    let mut text = "log stderr all;\nrouter id 192.0.2.1;\nprotocol device { scan time 2; }\n".to_owned();
    for family in ["ipv4", "ipv6"] {
        writeln!(
            text,
            "protocol kernel {{ {family} {{ import none; export where source = RTS_BGP; }}; }}"
        )?;
    }
    for (number, (name, _, addresses, _)) in NODES.into_iter().enumerate() {
        for (family, address) in ["ipv4", "ipv6"].into_iter().zip(addresses) {
            writeln!(
                text,
                "protocol bgp {name}_{family} {{ local as {AS_NUMBER}; neighbor {} as {}; connect delay time 1; \
                 {family} {{ import all; export all; }}; }}",
                address.parse::<IpNetwork>()?.ip(),
                as_number(number),
            )?;
        }
    }
    Ok(text)
}

fn as_number(node: usize) -> u32 {
    (AS_NUMBER + 1..).nth(node).unwrap_or(AS_NUMBER)
}
