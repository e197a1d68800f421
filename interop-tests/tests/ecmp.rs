//! A node with two uplinks and a router of another make behind each: packets to what both announce take both ways, in the kernel as one
//! nexthop group. A link that dies, and a router that dies, cost what was in flight and a write or two, not one for every route.

use std::net::IpAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use calidris_interop::binaries::Binaries;
use calidris_interop::daemon::bird::Bird;
use calidris_interop::daemon::frr::Frr;
use calidris_interop::daemon::{Neighbor, RouterConfig};
use calidris_interop::eventually::eventually;
use calidris_interop::fabric::Fabric;
use calidris_interop::kernel::RouteMonitor;
use calidris_interop::lab::Lab;
use calidris_interop::netns::Namespace;
use calidris_interop::pinger::{self, Pinger};
use calidris_interop::pod;
use calidris_interop::process::Process;
use calidris_interop::require;
use calidris_interop::require::Need;
use ipnetwork::IpNetwork;
use serde_json::Value;

const NEEDS: &[Need] = &[Need::Root, Need::Iproute2, Need::Bird, Need::Frr, Need::Nftables];
const SOON: Duration = Duration::from_secs(30);
/// Networks behind both routers: 10.77.0.0/24 and so on.
const NETWORKS: u8 = 24;
/// Datagrams of one stream that may be lost when a way dies: a tenth of what the session's hold time would cost.
const IN_FLIGHT: usize = 90;

/// The node `node` with its links `left` to BIRD and `right` to FRR; behind both, on the link `far`, the host `far`.
struct World {
    fabric: Fabric,
    node: Namespace,
    far: Namespace,
    left: Namespace,
    left_router: Bird,
    _right_router: Frr,
    _server: Process,
    _agent: Process,
    calidris: std::path::PathBuf,
    socket: std::path::PathBuf,
    lab: Lab,
}

impl World {
    fn new() -> anyhow::Result<Self> {
        let binaries = Binaries::find()?;
        let lab = Lab::create(&format!("ecmp-{}", std::process::id()))?;
        let fabric = Fabric::create(&lab)?;
        let [node, left, right, far] = ["node", "left", "right", "far"].map(|name| lab.namespace(name));
        let (node, left, right, far) = (node?, left?, right?, far?);
        for (subnet, router, at_node, at_router) in [
            ("left", &left, "192.0.2.11/24", "192.0.2.1/24"),
            ("right", &right, "198.51.100.11/24", "198.51.100.1/24"),
        ] {
            fabric.add_subnet(subnet)?;
            fabric.plug(("node", &node), subnet, at_node.parse()?)?;
            fabric.plug((subnet, router), subnet, at_router.parse()?)?;
            router.sysctl("net.ipv4.ip_forward", "1")?;
        }
        fabric.add_subnet("far")?;
        for (name, namespace, host) in [("left", &left, 1), ("right", &right, 2), ("far", &far, 10)] {
            fabric.plug((name, namespace), "far", format!("10.77.0.{host}/24").parse()?)?;
            for network in 1..NETWORKS {
                namespace.ip(&format!("addr add 10.77.{network}.{host}/24 dev far"))?;
            }
        }
        far.ip("route add 192.0.2.0/24 via 10.77.0.1")?;
        far.ip("route add 198.51.100.0/24 via 10.77.0.2")?;
        // The kernel is to take each packet's way by its addresses, as a new connection would be.
        let left_router = Bird::start(&lab, &left, &router("bird", 65001, "192.0.2")?)?;
        let right_router = Frr::start(&lab, &right, router("frr", 65002, "198.51.100")?)?;
        let server = pod::start_server(&lab, &binaries, "far", &far)?;
        let (agent, socket) = start_agent(&lab, &binaries, &node)?;
        Ok(Self {
            fabric,
            node,
            far,
            left,
            left_router,
            _right_router: right_router,
            _server: server,
            _agent: agent,
            calidris: binaries.agent,
            socket,
            lab,
        })
    }

    /// The routes to the networks, and the members of the one group that they refer to, by gateway.
    fn ways(&self) -> anyhow::Result<Vec<String>> {
        let routes: Value = serde_json::from_str(&self.node.ip("-j route show proto 203")?)?;
        let nexthops: Value = serde_json::from_str(&self.node.ip("-j nexthop show")?)?;
        let (routes, nexthops) = (
            routes.as_array().context("routes")?,
            nexthops.as_array().context("nexthops")?,
        );
        ensure!(routes.len() == usize::from(NETWORKS), "{routes:?}");
        let id = &routes[0]["nhid"];
        ensure!(
            id.is_u64() && routes.iter().all(|route| route["nhid"] == *id),
            "not one group: {routes:?}"
        );
        let by_id = |id: &Value| nexthops.iter().find(|nexthop| nexthop["id"] == *id);
        let group = by_id(id).context("the group")?["group"]
            .as_array()
            .context("members")?;
        let mut gateways = Vec::new();
        for member in group {
            let gateway = by_id(&member["id"]).context("a member")?["gateway"].as_str();
            gateways.push(gateway.context("a gateway")?.to_owned());
        }
        ensure!(
            nexthops.len() == 1 + gateways.len(),
            "more than the group and its members: {nexthops:?}"
        );
        gateways.sort_unstable();
        Ok(gateways)
    }

    fn wait_for_ways(&self, expected: &[&str]) -> anyhow::Result<()> {
        eventually(&format!("ways over {expected:?}"), SOON, || {
            let ways = self.ways()?;
            ensure!(ways == expected, "{ways:?}");
            Ok(())
        })
    }

    /// Writes to the kernel so far.
    fn writes(&self) -> anyhow::Result<u64> {
        let mut command = Command::new(&self.calidris);
        command
            .args(["status", "-o", "json", "--socket"])
            .arg(&self.socket);
        let status: Value = serde_json::from_slice(&self.node.output(&mut command)?.stdout)?;
        let writes = status.pointer("/dataplane/operations").and_then(Value::as_u64);
        writes.with_context(|| format!("{status}"))
    }

    fn pingers(&self) -> anyhow::Result<Vec<Pinger>> {
        (0..NETWORKS)
            .map(|network| Pinger::start(&self.node, IpAddr::from([10, 77, network, 10])))
            .collect()
    }

    /// Packets that the far host has received so far from each router.
    fn received_from(&self, router: &Namespace) -> anyhow::Result<u64> {
        let links: Value = serde_json::from_str(&router.ip("-j -s link show far")?)?;
        let sent = links.pointer("/0/stats64/tx/packets").and_then(Value::as_u64);
        sent.with_context(|| format!("{links}"))
    }
}

fn router(name: &str, as_number: u32, net: &str) -> anyhow::Result<RouterConfig> {
    let announce = (0..NETWORKS)
        .map(|network| format!("10.77.{network}.0/24").parse())
        .collect::<Result<Vec<IpNetwork>, _>>()?;
    Ok(RouterConfig {
        name: name.to_owned(),
        router_id: format!("{net}.1").parse()?,
        as_number,
        hold_time: 9,
        announce,
        neighbors: vec![Neighbor {
            name: "node".to_owned(),
            address: format!("{net}.11").parse()?,
            as_number: 64512,
        }],
    })
}

fn start_agent(
    lab: &Lab,
    binaries: &Binaries,
    node: &Namespace,
) -> anyhow::Result<(Process, std::path::PathBuf)> {
    let folder = lab.folder("node")?;
    let at = |file: &str| folder.join(file).display().to_string();
    let peer = |name: &str, net: &str, as_number: u32| {
        format!(
            "[[bgp.peers]]\nname = \"{name}\"\naddress = \"{net}.1\"\nas_number = {as_number}\nhold_time = \"9s\"\nconnect_retry = \"1s\"\nfamilies = [\"ipv4\"]\nimport = \"accept\"\nexport = \"own-blocks\"\n"
        )
    };
    let text = format!(
        "node_name = \"node\"\n[datastore]\nkind = \"embedded\"\npath = {:?}\nsocket = {:?}\n[node]\nipv4_address = \"192.0.2.11/24\"\n[bgp]\nas_number = 64512\n{}{}[cni]\nsocket = {:?}\n[status]\nsocket = {:?}\n[control]\nsocket = {:?}\n[log]\nlevel = \"debug\"\n",
        at("datastore.redb"),
        at("datastore.sock"),
        peer("left", "192.0.2", 65001),
        peer("right", "198.51.100", 65002),
        at("cni.sock"),
        at("status.sock"),
        at("control.sock"),
    );
    let file = folder.join("calidris.toml");
    std::fs::write(&file, text)?;
    let mut command = Command::new(&binaries.agent);
    command.arg("agent").arg("--config").arg(&file);
    let agent = lab.start("node", "agent", node, &mut command)?;
    Ok((agent, folder.join("status.sock")))
}

/// Stops the streams. Some of each may be lost.
fn expect_few_losses(pingers: Vec<Pinger>) -> anyhow::Result<()> {
    for (path, pings) in pinger::stop_all(pingers)? {
        let lost = pings.lost.len();
        ensure!(
            lost <= IN_FLIGHT,
            "{path}: {lost} of {} lost: {:?}",
            pings.sent,
            pings.lost
        );
    }
    Ok(())
}

#[test]
fn a_way_that_dies_costs_what_is_in_flight_and_hardly_a_write() -> anyhow::Result<()> {
    require!(NEEDS);
    let mut world = World::new()?;
    let [left, right] = ["192.0.2.1", "198.51.100.1"];
    let both = [left, right];
    world.wait_for_ways(&both)?;
    eventually("the networks answer", SOON, || {
        pod::ask(&world.node, IpAddr::from([10, 77, 0, 10])).map(drop)
    })?;

    // The link to BIRD dies.
    let writes = world.writes()?;
    let monitor = RouteMonitor::start(&world.lab, "node", "monitor", &world.node)?;
    let before = world.received_from(&world.left)?;
    let pingers = world.pingers()?;
    eventually("packets take the way over BIRD too", SOON, || {
        let now = world.received_from(&world.left)?;
        ensure!(now > before + 100, "{now} packets, {before} before");
        Ok(())
    })?;
    world.fabric.unplug("left", "left")?;
    world.node.ip("link set left down")?;
    world.wait_for_ways(&[right])?;
    for network in 0..NETWORKS {
        pod::ask(&world.node, IpAddr::from([10, 77, network, 10]))?;
    }
    expect_few_losses(pingers)?;
    let heard = monitor.heard()?;
    ensure!(
        !heard.iter().any(|line| line.contains("10.77.")),
        "routes were written: {heard:#?}"
    );
    ensure!(world.writes()? == writes, "the kernel had done it all");

    // It comes back: its gateway is made again, and the group gets it.
    world.node.ip("link set left up")?;
    world.fabric.replug("left", "left")?;
    world.wait_for_ways(&both)?;
    ensure!(
        world.writes()? == writes + 2,
        "{} after {writes}",
        world.writes()?
    );

    // BIRD dies, its link does not.
    let writes = world.writes()?;
    let pingers = world.pingers()?;
    world.left_router.kill()?;
    world.wait_for_ways(&[right])?;
    expect_few_losses(pingers)?;
    ensure!(
        world.writes()? == writes + 2,
        "the group, and the gateway that nobody needs: {} after {writes}",
        world.writes()?
    );
    let World { lab, far, .. } = world;
    ensure!(far.exists());
    lab.take_down()
}
