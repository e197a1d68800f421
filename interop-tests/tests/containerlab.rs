//! The topologies for containerlab: what they say fits together, and does what their README says, in namespaces.
//!
//! Links, `ip` commands and configurations are those of the files; the programs are this machine's instead of those in the images.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use calidris_interop::binaries::Binaries;
use calidris_interop::daemon::seat::{Installation, Seat};
use calidris_interop::daemon::{bird, frr, gobgp};
use calidris_interop::eventually::eventually;
use calidris_interop::interop::ours::Ours;
use calidris_interop::lab::Lab;
use calidris_interop::netns::Namespace;
use calidris_interop::process::Process;
use calidris_interop::require;
use calidris_interop::require::Need;
use serde::Deserialize;

const SOON: Duration = Duration::from_secs(30);
const NEEDS: &[Need] = &[Need::Root, Need::Iproute2, Need::Bird, Need::Frr, Need::Gobgp];

/// What each peer announces.
const PREFIXES: [(&str, &str); 3] = [
    ("bird", "198.51.100.0/26"),
    ("frr", "198.51.100.64/26"),
    ("gobgp", "198.51.100.128/26"),
];

/// The part of containerlab's format that is used here.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    name: String,
    topology: Topology,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Topology {
    nodes: BTreeMap<String, Node>,
    links: Vec<Link>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Node {
    kind: String,
    image: String,
    cmd: String,
    binds: Vec<String>,
    exec: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Link {
    endpoints: [String; 2],
}

fn folder() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/containerlab"))
}

fn reflector() -> anyhow::Result<File> {
    let text = std::fs::read_to_string(folder().join("reflector.clab.yml"))?;
    serde_json::from_str(&text).context("reflector.clab.yml")
}

/// Node and interface of an end of a link.
fn end(endpoint: &str) -> anyhow::Result<(&str, &str)> {
    endpoint
        .split_once(':')
        .with_context(|| format!("{endpoint:?}: expected NODE:INTERFACE"))
}

/// The only file a node is given, and where it finds it.
fn bind(node: &Node) -> anyhow::Result<(&str, &str)> {
    let [bind] = node.binds.as_slice() else {
        anyhow::bail!("one file a node is expected: {:?}", node.binds);
    };
    let mut words = bind.split(':');
    let (file, place) = (words.next(), words.next());
    file.zip(place).with_context(|| format!("{bind:?}"))
}

fn config(node: &Node) -> anyhow::Result<String> {
    let (file, _) = bind(node)?;
    std::fs::read_to_string(folder().join(file)).with_context(|| file.to_owned())
}

#[test]
fn everything_a_topology_names_is_there() -> anyhow::Result<()> {
    let File { name, topology } = reflector()?;
    ensure!(name == "calidris-reflector", "the README says another name");
    let mut interfaces = BTreeSet::new();
    for endpoint in topology.links.iter().flat_map(|link| &link.endpoints) {
        let (node, _) = end(endpoint)?;
        ensure!(topology.nodes.contains_key(node), "no node {node}");
        ensure!(interfaces.insert(endpoint.clone()), "{endpoint} is used twice");
    }
    let containerfile = std::fs::read_to_string(folder().join("Containerfile"))?;
    for (name, node) in &topology.nodes {
        ensure!(node.kind == "linux", "{name}: kind {}", node.kind);
        ensure!(
            containerfile.contains(&format!("-t {} ", node.image)),
            "{name}: nothing builds {}",
            node.image
        );
        let (_, place) = bind(node)?;
        ensure!(node.cmd.contains(place), "{name}: nobody reads {place}");
        ensure!(!config(node)?.is_empty(), "{name}");
        for command in &node.exec {
            if let Some(interface) = command
                .strip_prefix("ip addr add ")
                .and_then(|rest| rest.split(' ').nth(2))
            {
                let endpoint = format!("{name}:{interface}");
                ensure!(interfaces.contains(&endpoint), "no link ends at {endpoint}");
            }
        }
    }
    Ok(())
}

fn wire(lab: &Lab, topology: &Topology) -> anyhow::Result<BTreeMap<String, Namespace>> {
    let mut namespaces = BTreeMap::new();
    for name in topology.nodes.keys() {
        namespaces.insert(name.clone(), lab.namespace(name)?);
    }
    let of = |name: &str| namespaces.get(name).context("a node of that name");
    for link in &topology.links {
        let [(one, here), (other, there)] = [end(&link.endpoints[0])?, end(&link.endpoints[1])?];
        let far = of(other)?.name().to_owned();
        of(one)?.ip(&format!(
            "link add {here} type veth peer name {there} netns {far}"
        ))?;
        of(one)?.ip(&format!("link set {here} up"))?;
        of(other)?.ip(&format!("link set {there} up"))?;
    }
    for (name, node) in &topology.nodes {
        of(name)?.ip("link set lo up")?;
        for words in node.exec.iter().filter_map(|command| command.strip_prefix("ip ")) {
            of(name)?.ip(words)?;
        }
    }
    Ok(namespaces)
}

#[test]
fn the_reflector_and_its_clients_hear_of_each_other() -> anyhow::Result<()> {
    require!(NEEDS);
    let File { topology, .. } = reflector()?;
    let lab = Lab::create(&format!("clab-{}", std::process::id()))?;
    let namespaces = wire(&lab, &topology)?;
    let node = |name: &str| -> anyhow::Result<(&Node, Seat)> {
        let node = topology.nodes.get(name).context("a node")?;
        let namespace = namespaces.get(name).context("a namespace")?;
        Ok((node, Seat::take(&lab, name, namespace, &Installation::Machine)?))
    };
    let ours = Ours::start_with(
        &lab,
        &Binaries::find()?.agent,
        &namespaces["rr"],
        &config(node("rr")?.0)?,
    )?;
    let mut processes: Vec<Process> = Vec::new();
    let (bird_node, bird_seat) = node("bird")?;
    bird_seat.write(bird::CONFIG, &config(bird_node)?)?;
    processes.push(bird::launch(&lab, &bird_seat, &[])?);
    let (frr_node, frr_seat) = node("frr")?;
    frr::write_configs(&frr_seat, &config(frr_node)?)?;
    for daemon in [frr::Daemon::Zebra, frr::Daemon::Bgpd] {
        processes.push(frr::launch(&lab, &frr_seat, daemon, &[])?);
    }
    let (gobgp_node, gobgp_seat) = node("gobgp")?;
    gobgp_seat.write(gobgp::CONFIG, &config(gobgp_node)?)?;
    processes.push(gobgp::launch(&lab, &gobgp_seat, &[])?);
    for command in gobgp_node
        .exec
        .iter()
        .filter_map(|command| command.strip_prefix("gobgp "))
    {
        gobgp::ask(&gobgp_seat, &command.split(' ').collect::<Vec<_>>())?;
    }
    for (name, prefix) in PREFIXES {
        eventually(&format!("{prefix} of {name} at the reflector"), SOON, || {
            let candidates = ours.candidates(prefix)?;
            ensure!(candidates.iter().any(|c| c["from"] == name), "{candidates:?}");
            Ok(())
        })?;
    }
    let table = |name: &str| match name {
        "bird" => bird::ask(&bird_seat, "show route"),
        "frr" => frr::ask(&frr_seat, &["show bgp ipv4 unicast"]),
        _ => gobgp::ask(&gobgp_seat, &["global", "rib"]),
    };
    for (name, own) in PREFIXES {
        eventually(&format!("{name} has the others' prefixes"), SOON, || {
            let table = table(name)?;
            let missing = PREFIXES
                .iter()
                .filter(|(_, prefix)| *prefix != own && !table.contains(prefix));
            ensure!(missing.count() == 0, "{table}");
            Ok(())
        })?;
    }
    drop(ours);
    lab.take_down()
}
