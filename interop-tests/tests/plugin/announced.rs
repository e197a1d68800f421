//! What ADD promises of BGP: when it returns, the pod's block is announced; where it is asked for, its route has been
//! heard back from a reflector, or ADD is undone in time. And the runtime's trace is in the agent's log.

use std::net::IpAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use calidris_interop::binaries::{Binaries, PLUGIN};
use calidris_interop::calico;
use calidris_interop::cluster::Cluster;
use calidris_interop::cni::PluginError;
use calidris_interop::daemon::ESTABLISHED;
use calidris_interop::daemon::bird::{self, CONFIG};
use calidris_interop::daemon::seat::{Installation, Seat};
use calidris_interop::eventually::eventually;
use calidris_interop::kernel;
use calidris_interop::pod::{attachment, first_address};
use calidris_interop::require;
use calidris_interop::require::LAB;
use serde_json::json;

/// The second reflector of the node's AS: the node takes its routes and gives it none, so what it reflects came through the
/// first one, the router. BIRD gives nobody a route whose next hop is the neighbour itself (RFC 4271 §5.1.3): hence its own.
const MIRROR: &str = "mirror";
const MIRROR_ADDRESS: &str = "192.0.2.21";
const MIRROR_CONFIG: &str = "log stderr all;
router id 192.0.2.21;
protocol device { }
template bgp reflecting {
    local 192.0.2.21 as 65001;
    rr client;
    hold time 9;
    connect delay time 1;
    connect retry time 1;
    error wait time 1, 2;
}
protocol bgp router1 from reflecting { neighbor 192.0.2.1 as 65001; ipv4 { import all; export none; }; }
protocol bgp node1 from reflecting { neighbor 192.0.2.11 as 65001; ipv4 { import none; export all; next hop self; }; }
";
/// What the router has in addition.
const MIRROR_AS_NEIGHBOR: &str =
    "protocol bgp mirror from neighbor_of_65001 { neighbor 192.0.2.21 as 65001; rr client; }\n";
const WITHIN: Duration = Duration::from_secs(30);
const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

#[test]
fn add_returns_when_the_block_is_announced_and_where_asked_for_heard_back() -> anyhow::Result<()> {
    require!(LAB);
    let mut cluster = Cluster::for_test("announced", 1)?;
    // Nothing to wait for beyond the node itself: the speaker has the block when ADD returns, and the log has the trace.
    let claimed = add_traced(&cluster, "first")?;
    let mut question = Command::new(Binaries::find()?.agent);
    question.args(["bgp", "route", &claimed.to_string(), "--socket"]);
    question.arg(cluster.lab.folder("node1")?.join("control.sock"));
    let route = cluster.node("node1")?.namespace.run(&mut question)?;
    ensure!(route.contains("10.244."), "{claimed} is not announced: {route}");

    let mirror = start_mirror(&cluster)?;
    restart_agent(&mut cluster, "fail")?;
    // Without its session with the router the mirror has nothing to give back.
    bird::ask(&mirror, "disable router1")?;
    wait_for_sessions(&mirror, 1)?;
    let pod = attachment("second", &cluster.lab.namespace("second")?)?;
    let before = calico::addresses(&cluster.etcd)?;
    let error = cluster
        .node("node1")?
        .runtime
        .add(&pod)
        .err()
        .context("ADD succeeded, and nobody had heard of it")?;
    let refusal = error
        .downcast_ref::<PluginError>()
        .with_context(|| format!("{error:#}"))?;
    ensure!(
        refusal.code == 11 && refusal.msg.contains("route back"),
        "{refusal}"
    );
    ensure!(
        calico::addresses(&cluster.etcd)? == before,
        "an address was not given back"
    );
    let links = kernel::links(&cluster.node("node1")?.namespace)?;
    ensure!(
        links.iter().filter(|link| link.starts_with("cali")).count() == 1,
        "{links:?}"
    );

    bird::ask(&mirror, "enable router1")?;
    wait_for_sessions(&mirror, 2)?;
    let added = cluster.node("node1")?.runtime.add(&pod)?;
    let address = first_address(&added.result)?.ip();
    // Not waited for: who has given the route back has it.
    let seen = bird::ask(&mirror, &format!("show route for {address}"))?;
    ensure!(
        seen.contains("10.244."),
        "the mirror has no route to {address}: {seen}"
    );
    ensure!(
        log_of_agent(&cluster)?.contains("heard_back="),
        "no time of that stage in the log"
    );

    bird::ask(&mirror, "disable router1")?;
    restart_agent(&mut cluster, "warn")?;
    let pod = attachment("third", &cluster.lab.namespace("third")?)?;
    cluster
        .node("node1")?
        .runtime
        .add(&pod)
        .context("ADD that only warns")?;
    ensure!(
        log_of_agent(&cluster)?.contains("no peer has given the pod's route back"),
        "nobody has said that the route did not come back"
    );
    cluster.lab.take_down()
}

/// Adds a pod as a runtime with a trace does; its address.
fn add_traced(cluster: &Cluster, name: &str) -> anyhow::Result<IpAddr> {
    let runtime = &cluster.node("node1")?.runtime;
    let pod = attachment(name, &cluster.lab.namespace(name)?)?;
    let list = runtime.configuration()?;
    let plugin = list.plugins.first().context("the node has a plugin")?.clone();
    let config = list.for_plugin(plugin, None, &serde_json::Map::new())?;
    let path = runtime.cni_path();
    let netns = pod.netns.to_string_lossy();
    let environment = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", &pod.container_id),
        ("CNI_NETNS", &netns),
        ("CNI_IFNAME", &pod.interface),
        ("CNI_PATH", &path),
        ("TRACEPARENT", TRACE),
    ];
    let output = runtime.run_plugin(PLUGIN, &environment, &config.to_string())?;
    let printed = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{printed}");
    let log = log_of_agent(cluster)?;
    let line = log.lines().find(|line| line.contains("pod attached"));
    ensure!(
        line.is_some_and(|line| line.contains(TRACE) && line.contains(&pod.container_id)),
        "the runtime's trace is not in {line:?}"
    );
    Ok(first_address(&serde_json::from_str(&printed)?)?.ip())
}

/// Starts the mirror, and tells the router of it.
fn start_mirror(cluster: &Cluster) -> anyhow::Result<Seat> {
    let namespace = cluster.lab.namespace(MIRROR)?;
    let at = format!("{MIRROR_ADDRESS}/24").parse()?;
    cluster.fabric.plug((MIRROR, &namespace), "rack1", at)?;
    let router = cluster.routers.first().context("there is a router")?;
    let seat = Seat::take(
        &cluster.lab,
        &router.name,
        &router.namespace,
        &Installation::Machine,
    )?;
    let config = std::fs::read_to_string(seat.folder.join(CONFIG))?;
    seat.write(CONFIG, &(config + MIRROR_AS_NEIGHBOR))?;
    bird::ask(&seat, "configure")?;
    let seat = Seat::take(&cluster.lab, MIRROR, &namespace, &Installation::Machine)?;
    seat.write(CONFIG, MIRROR_CONFIG)?;
    bird::launch(&cluster.lab, &seat, &[])?;
    Ok(seat)
}

fn wait_for_sessions(mirror: &Seat, count: usize) -> anyhow::Result<()> {
    eventually(&format!("the mirror has {count} sessions"), WITHIN, || {
        let protocols = bird::ask(mirror, "show protocols")?;
        ensure!(protocols.matches(ESTABLISHED).count() == count, "{protocols}");
        Ok(())
    })
}

/// Has the agent wait for routes to be heard back, with the mirror as a further peer.
fn restart_agent(cluster: &mut Cluster, not_heard_back: &str) -> anyhow::Result<()> {
    let file = cluster.lab.folder("node1")?.join("calidris.toml");
    let mut config: toml::Table = std::fs::read_to_string(&file)?.parse()?;
    let cni = config.get_mut("cni").and_then(toml::Value::as_table_mut);
    let cni = cni.context("the agent's configuration has a section [cni]")?;
    cni.insert("heard_back_timeout".to_owned(), "2s".into());
    cni.insert("not_heard_back".to_owned(), not_heard_back.into());
    let peers = config.get_mut("bgp").and_then(|bgp| bgp.get_mut("peers"));
    let peers = peers
        .and_then(toml::Value::as_array_mut)
        .context("it has peers")?;
    if peers.len() == 1 {
        let mirror = json!({
            "name": MIRROR, "address": MIRROR_ADDRESS, "as_number": 65001, "connect_retry": "1s",
            "families": ["ipv4"], "import": "accept", "export": "reject",
        });
        peers.push(toml::Value::try_from(mirror)?);
    }
    std::fs::write(&file, toml::to_string(&config)?)?;
    let (node, lab) = cluster.node_mut("node1")?;
    node.terminate_agent()?;
    node.start_agent(lab)?;
    node.wait_until_ready()?;
    let router = cluster.routers.first().context("there is a router")?;
    eventually("the router has a session with the node", WITHIN, || {
        let sessions = router.daemon.sessions()?;
        let state = sessions.get("node1").map(String::as_str);
        ensure!(state == Some(ESTABLISHED), "{sessions:?}");
        Ok(())
    })
}

fn log_of_agent(cluster: &Cluster) -> anyhow::Result<String> {
    let log = cluster.lab.folder("node1")?.join("agent.log");
    Ok(std::fs::read_to_string(log)?)
}
