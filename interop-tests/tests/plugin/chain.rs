//! In a list with Debian's bandwidth, tuning and portmap, before and behind ours: each does its work, CHECK is content with
//! all of them, and nothing of any is left.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use calidris_interop::binaries::{Binaries, PLUGIN};
use calidris_interop::calico;
use calidris_interop::cluster::Cluster;
use calidris_interop::cni::Runtime;
use calidris_interop::http;
use calidris_interop::kernel;
use calidris_interop::pod::{attachment, first_address, start_server};
use calidris_interop::require;
use calidris_interop::require::{LAB, Need};
use serde_json::{Value, json};

const NEEDS: &[Need] = &[Need::ReferencePlugins, Need::Portmap];
const ASKED_MAC: &str = "02:00:00:11:22:33";
const TUNED_MAC: &str = "02:00:00:44:55:66";
/// How long the host port may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

#[test]
fn with_bandwidth_tuning_and_portmap_after_it() -> anyhow::Result<()> {
    require!(LAB);
    require!(NEEDS);
    let cluster = Cluster::for_test("chain", 2)?;
    let node = cluster.node("node1")?;
    let runtime = chained(&cluster, &node.runtime, &["bandwidth", "tuning", "portmap"])?;
    // A changed MAC address makes the pod forget its permanent neighbours; ARP for the gateway is answered where the node has a
    // default route, as nodes have.
    let (_, router, _) = &node.settings.router;
    node.namespace.ip(&format!("route add default via {router}"))?;
    let namespace = cluster.lab.namespace("chained")?;
    start_server(&cluster.lab, &Binaries::find()?, "chained", &namespace)?;
    let attachment = attachment("chained", &namespace)?;

    let added = runtime.add(&attachment)?;
    let address = first_address(&added.result)?.ip();
    ensure!(
        address.to_string() == "10.244.77.7",
        "asked for by capability: {}",
        added.result
    );
    ensure!(
        added.result["interfaces"].to_string().contains(TUNED_MAC),
        "tuning's MAC address is in the result: {}",
        added.result
    );
    // Without portmap: Debian's (1.1.1) looks for IPv6 rules of a pod that has no IPv6 address.
    let others = chained(&cluster, &node.runtime, &["bandwidth", "tuning"])?;
    others.check(&attachment, &added.result)?;

    // Each has done its work: rates on the host's end, a parameter and a MAC address in the pod, a port of the node.
    let rates = node.namespace.run(Command::new("tc").args(["qdisc", "show"]))?;
    ensure!(rates.contains("tbf"), "no rate is held to: {rates}");
    let link = namespace.run(Command::new("ip").args(["link", "show", "eth0"]))?;
    ensure!(link.contains(TUNED_MAC), "{link}");
    let tuned = namespace.run(Command::new("cat").arg("/proc/sys/net/core/somaxconn"))?;
    ensure!(tuned.trim() == "777", "somaxconn is {tuned}");
    let other = &cluster.node("node2")?.namespace;
    let answer = other.enter(|| http::ask_at(SocketAddr::new(node.address(), 8080), PATIENCE))??;
    ensure!(answer.host == "chained", "{answer:?}");
    // The pod works as any other.
    ensure!(calidris_interop::pod::ask(other, address)?.me == address);

    runtime.del(&attachment, Some(&added.result))?;
    runtime.del(&attachment, Some(&added.result))?;
    let left = kernel::links(&node.namespace)?;
    ensure!(
        !left
            .iter()
            .any(|link| link.starts_with("cali") || link.starts_with("bwp")),
        "{left:?}"
    );
    let rules = node
        .namespace
        .run(Command::new("iptables-save").args(["-t", "nat"]))?;
    ensure!(!rules.contains("CNI-DN"), "{rules}");
    ensure!(calico::addresses(&cluster.etcd)?.is_empty());
    cluster.lab.take_down()
}

#[test]
fn with_loopback_tuning_and_portmap_before_it() -> anyhow::Result<()> {
    require!(LAB);
    require!(NEEDS);
    let cluster = Cluster::for_test("behind", 1)?;
    let node = cluster.node("node1")?;
    let plugins = json!([
        { "type": "loopback" },
        { "type": "tuning", "sysctl": { "net.core.somaxconn": "777" } },
        { "type": "portmap", "capabilities": { "portMappings": true } },
        ours(&node.runtime)?,
        { "type": "bandwidth", "ingressRate": 8_000_000, "ingressBurst": 800_000 },
    ]);
    let runtime = listed(&cluster, &node.runtime, &plugins)?;
    let namespace = cluster.lab.namespace("behind")?;
    start_server(&cluster.lab, &Binaries::find()?, "behind", &namespace)?;
    let attachment = attachment("behind", &namespace)?;
    let added = runtime.add(&attachment)?;
    // What was there before ours is kept, in its place.
    let text = |pointer: &str| added.result.pointer(pointer).and_then(Value::as_str);
    ensure!(
        text("/interfaces/0/name") == Some("lo") && text("/ips/0/address") == Some("127.0.0.1/8"),
        "{}",
        added.result
    );
    let ips = added.result["ips"].as_array().context("there are addresses")?;
    let ours = ips.iter().filter_map(|ip| ip["address"].as_str());
    let ours: Vec<&str> = ours.filter(|address| address.starts_with("10.244.")).collect();
    ensure!(ours.len() == 1, "{}", added.result);
    let rates = node.namespace.run(Command::new("tc").args(["qdisc", "show"]))?;
    ensure!(rates.contains("tbf"), "no rate is held to: {rates}");
    runtime.check(&attachment, &added.result)?;
    let address = ours.concat().trim_end_matches("/32").parse()?;
    ensure!(calidris_interop::pod::ask(&node.namespace, address)?.host == "behind");
    runtime.del(&attachment, Some(&added.result))?;
    let left = kernel::links(&node.namespace)?;
    ensure!(!left.iter().any(|link| link.starts_with("cali")), "{left:?}");
    ensure!(calico::addresses(&cluster.etcd)?.is_empty());
    cluster.lab.take_down()
}

/// Our plugin's part of the node's configuration, with capabilities.
fn ours(runtime: &Runtime) -> anyhow::Result<Value> {
    let list = runtime.configuration()?;
    let mut ours = list.plugins.first().context("the node has a plugin")?.clone();
    ours.insert("capabilities".to_owned(), json!({ "ips": true, "mac": true }));
    ensure!(ours["type"] == PLUGIN, "{ours:?}");
    Ok(Value::Object(ours))
}

/// The node's runtime with a list of these plugins.
fn listed(cluster: &Cluster, runtime: &Runtime, plugins: &Value) -> anyhow::Result<Runtime> {
    let list = runtime.configuration()?;
    let types = plugins.as_array().into_iter().flatten();
    let types: Vec<&str> = types.filter_map(|plugin| plugin["type"].as_str()).collect();
    let folder = cluster.lab.folder(&types.join("-"))?;
    let text = json!({ "cniVersion": "1.0.0", "name": list.name, "plugins": plugins }).to_string();
    std::fs::write(folder.join("10-listed.conflist"), text)?;
    let mut plugins = runtime.plugins.clone();
    plugins.push("/usr/lib/cni".into());
    Ok(Runtime {
        configurations: folder,
        plugins,
        ..runtime.clone()
    })
}

/// The node's runtime with these other plugins behind ours, and arguments for all capabilities.
fn chained(cluster: &Cluster, runtime: &Runtime, others: &[&str]) -> anyhow::Result<Runtime> {
    let known = json!([
        { "type": "bandwidth", "capabilities": { "bandwidth": true } },
        { "type": "tuning", "mac": TUNED_MAC, "sysctl": { "net.core.somaxconn": "777" } },
        { "type": "portmap", "snat": true, "capabilities": { "portMappings": true } },
    ]);
    let mut plugins = vec![ours(runtime)?];
    let is_wanted = |plugin: &&Value| others.iter().any(|other| plugin["type"] == *other);
    plugins.extend(known.as_array().into_iter().flatten().filter(is_wanted).cloned());
    let arguments: Value = json!({
        "ips": ["10.244.77.7/32"],
        "mac": ASKED_MAC,
        "bandwidth": { "ingressRate": 8_000_000, "ingressBurst": 800_000, "egressRate": 8_000_000, "egressBurst": 800_000 },
        "portMappings": [{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" }],
    });
    let arguments = arguments.as_object().context("an object")?.clone();
    Ok(Runtime {
        capability_arguments: arguments,
        ..listed(cluster, runtime, &json!(plugins))?
    })
}
