//! The lab's own tools, tried on the reference plugin ptp: the runtime's side of CNI, servers, pinger, route monitor.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};
use calidris_interop::cluster::Cluster;
use calidris_interop::cni::{Attachment, PluginError, Runtime, write_configuration};
use calidris_interop::eventually::{eventually, pace};
use calidris_interop::kernel::{self, RouteMonitor};
use calidris_interop::lab::Lab;
use calidris_interop::netns::Namespace;
use calidris_interop::pinger::Pinger;
use calidris_interop::pod::{ask, attachment, first_address};
use calidris_interop::require;
use calidris_interop::require::{LAB, Need};
use serde_json::{Value, json};

const NEEDS: &[Need] = &[Need::Root, Need::Iproute2, Need::ReferencePlugins];

/// A node with ptp as its network, and a pod's namespace with a server.
struct Ground {
    lab: Lab,
    node: Namespace,
    pod: Namespace,
    runtime: Runtime,
    attachment: Attachment,
}

impl Ground {
    fn lay(test: &str) -> anyhow::Result<Self> {
        let lab = Lab::create(&format!("{test}-{}", std::process::id()))?;
        let (node, pod) = (lab.namespace("node")?, lab.namespace("pod")?);
        let folder = lab.folder("node")?;
        let plugin = json!({
            "type": "ptp",
            "ipam": {
                "type": "host-local",
                "dataDir": folder.join("ipam"),
                "subnet": "10.99.0.0/24",
                "routes": [{ "dst": "0.0.0.0/0" }],
            },
        });
        write_configuration(&folder.join("net.d"), "lab", &plugin)?;
        let runtime = Runtime {
            namespace: node.clone(),
            configurations: folder.join("net.d"),
            plugins: vec![PathBuf::from("/usr/lib/cni")],
            capability_arguments: serde_json::Map::new(),
        };
        let command = &mut std::process::Command::new(env!("CARGO_BIN_EXE_calidris-lab"));
        lab.start("pod", "server", &pod, command.args(["serve", "--name", "pod"]))?;
        let attachment = attachment("pod", &pod)?;
        Ok(Self {
            lab,
            node,
            pod,
            runtime,
            attachment,
        })
    }
}

#[test]
fn a_pod_is_added_asked_pinged_and_deleted() -> anyhow::Result<()> {
    require!(NEEDS);
    let Ground {
        lab,
        node,
        pod,
        runtime,
        attachment,
    } = Ground::lay("runtime")?;
    let monitor = RouteMonitor::start(&lab, "node", "monitor", &node)?;
    let added = runtime.add(&attachment)?;
    let address = first_address(&added.result)?.ip();
    let answer = eventually("the pod answers", Duration::from_secs(5), || ask(&node, address))?;
    ensure!(answer.host == "pod" && answer.me == address, "{answer:?}");
    let pinger = Pinger::start(&node, address)?;
    runtime.check(&attachment, &added.result)?;
    ensure!(
        kernel::routes(&node)?
            .iter()
            .any(|route| route.dst == address.to_string())
    );
    ensure!(ask(&pod, address)?.you == address);
    let pings = pinger.stop()?;
    ensure!(pings.sent > 0 && pings.lost.is_empty(), "{pings:?}");
    runtime.del(&attachment, Some(&added.result))?;
    ensure!(
        !kernel::routes(&node)?
            .iter()
            .any(|route| route.dst == address.to_string())
    );
    let heard = monitor.heard()?;
    ensure!(
        heard.iter().any(|line| line.contains(&address.to_string())),
        "{heard:?}"
    );
    lab.take_down()
}

#[test]
fn lost_datagrams_are_counted() -> anyhow::Result<()> {
    require!(NEEDS);
    let Ground {
        lab,
        node,
        runtime,
        attachment,
        ..
    } = Ground::lay("pinger")?;
    let added = runtime.add(&attachment)?;
    let pinger = Pinger::start(&node, first_address(&added.result)?.ip())?;
    runtime.del(&attachment, Some(&added.result))?;
    // Some more are sent after the pod is gone for certain.
    pace(Duration::from_millis(100));
    let pings = pinger.stop()?;
    ensure!(
        !pings.lost.is_empty(),
        "the pod was gone and nothing was lost of {}",
        pings.sent
    );
    lab.take_down()
}

#[test]
fn a_refusal_is_the_plugin_s_error_object() -> anyhow::Result<()> {
    require!(NEEDS);
    let Ground {
        lab,
        runtime,
        attachment,
        ..
    } = Ground::lay("refusal")?;
    let nowhere = Attachment {
        netns: PathBuf::from("/run/netns/cal-nowhere"),
        ..attachment
    };
    let error = runtime
        .add(&nowhere)
        .err()
        .context("ADD into a namespace that is not there succeeded")?;
    ensure!(error.downcast_ref::<PluginError>().is_some(), "{error:#}");
    lab.take_down()
}

/// A node with an agent, and a folder with the reference plugins and ours under both of its names.
fn delegation(test: &str) -> anyhow::Result<(Cluster, PathBuf, Value)> {
    let cluster = Cluster::for_test(test, 1)?;
    let node = cluster.node("node1")?;
    let list = std::fs::read_to_string(node.runtime.configurations.join("10-calidris.conflist"))?;
    let list: Value = serde_json::from_str(&list)?;
    let socket = list["plugins"][0]["socket"].clone();
    ensure!(socket.is_string(), "{list}");
    let folder = cluster.lab.folder("plugins")?;
    let ours = node
        .runtime
        .plugins
        .first()
        .context("a folder of plugins")?
        .join("calidris-cni");
    for (name, program) in [
        ("calidris-cni", ours.clone()),
        ("calidris-ipam", ours),
        ("bridge", "/usr/lib/cni/bridge".into()),
        ("ptp", "/usr/lib/cni/ptp".into()),
        ("macvlan", "/usr/lib/cni/macvlan".into()),
        ("host-local", "/usr/lib/cni/host-local".into()),
    ] {
        std::os::unix::fs::symlink(program, folder.join(name))?;
    }
    Ok((cluster, folder, socket))
}

#[test]
fn our_address_management_serves_bridge_ptp_and_macvlan() -> anyhow::Result<()> {
    require!(LAB);
    require!(NEEDS);
    let (cluster, plugins, socket) = delegation("ipam-face")?;
    let node = cluster.node("node1")?;
    node.namespace.ip("link add mv0 up type veth peer name mv1")?;
    node.namespace.ip("link set mv1 up")?;
    for (plugin, more) in [
        ("bridge", json!({ "isGateway": true, "bridge": "br-face" })),
        ("ptp", json!({})),
        ("macvlan", json!({ "master": "mv0" })),
    ] {
        let mut config = json!({ "type": plugin,
            "ipam": { "type": "calidris-ipam", "socket": socket, "routes": [{ "dst": "0.0.0.0/0" }] } });
        let keys = config.as_object_mut().context("an object")?;
        keys.extend(more.as_object().context("an object")?.clone());
        let configurations = cluster.lab.folder(plugin)?;
        write_configuration(&configurations, plugin, &config)?;
        let runtime = Runtime {
            namespace: node.namespace.clone(),
            configurations,
            plugins: vec![plugins.clone()],
            capability_arguments: Default::default(),
        };
        let mut given = BTreeMap::new();
        for number in 0..2 {
            let name = format!("{plugin}{number}");
            let pod = attachment(&name, &cluster.lab.namespace(&name)?)?;
            let added = runtime.add(&pod).with_context(|| name.clone())?;
            let address = first_address(&added.result)?;
            ensure!(address.prefix() < 32, "{plugin}: {address} has no subnet");
            runtime.check(&pod, &added.result).with_context(|| name.clone())?;
            let again = runtime.add(&pod).map(|added| added.result);
            ensure!(again.is_err(), "{plugin}: a second ADD gave {again:?}");
            given.insert(address.ip(), (pod, added.result));
        }
        ensure!(given.len() == 2, "{plugin}: two pods share an address");
        let handles = || {
            cluster
                .etcd
                .get_prefix(&format!("/calico/ipam/v2/handle/{plugin}."))
        };
        ensure!(handles()?.len() == 2, "{plugin}: {:?}", handles()?);
        for (pod, result) in given.values() {
            runtime.del(pod, Some(result))?;
            runtime.del(pod, Some(result)).context("DEL again")?;
            let checked = runtime.check(pod, result);
            ensure!(
                checked.is_err(),
                "{plugin}: CHECK after DEL found everything in order"
            );
        }
        ensure!(handles()?.is_empty(), "{plugin}: {:?}", handles()?);
    }
    cluster.lab.take_down()
}

#[test]
fn host_local_manages_addresses_under_our_plugin() -> anyhow::Result<()> {
    require!(LAB);
    require!(NEEDS);
    let (cluster, plugins, socket) = delegation("delegate")?;
    let node = cluster.node("node1")?;
    let folder = cluster.lab.folder("host-local")?;
    let reserved = || -> anyhow::Result<Vec<String>> {
        let mut files = Vec::new();
        for file in std::fs::read_dir(folder.join("data/own"))? {
            files.push(file?.file_name().to_string_lossy().into_owned());
        }
        files.retain(|name| name.starts_with("10.98."));
        Ok(files)
    };
    let runtime = |socket: &Value| -> anyhow::Result<Runtime> {
        let config = json!({ "type": "calidris-cni", "socket": socket, "ipam": {
            "type": "host-local", "subnet": "10.98.0.0/24", "dataDir": folder.join("data") } });
        write_configuration(&folder.join("net.d"), "own", &config)?;
        Ok(Runtime {
            namespace: node.namespace.clone(),
            configurations: folder.join("net.d"),
            plugins: vec![plugins.clone()],
            capability_arguments: Default::default(),
        })
    };
    // No agent there: what host-local gave is given back.
    let pod = attachment("first", &cluster.lab.namespace("first")?)?;
    let refused = runtime(&json!("/run/nowhere.sock"))?.add(&pod);
    ensure!(refused.is_err(), "{refused:?}");
    ensure!(reserved()?.is_empty(), "not given back: {:?}", reserved()?);

    let runtime = runtime(&socket)?;
    let added = runtime.add(&pod)?;
    let address = first_address(&added.result)?;
    ensure!(
        reserved()? == [address.ip().to_string()],
        "{address}: {:?}",
        reserved()?
    );
    runtime.check(&pod, &added.result)?;
    node.namespace.run(std::process::Command::new("ping").args([
        "-c",
        "1",
        "-W",
        "5",
        &address.ip().to_string(),
    ]))?;
    ensure!(
        cluster.etcd.get_prefix("/calico/ipam/v2/handle/own.")?.is_empty(),
        "an address of ours was given, too"
    );
    runtime.del(&pod, Some(&added.result))?;
    ensure!(reserved()?.is_empty(), "{:?}", reserved()?);
    let checked = runtime.check(&pod, &added.result);
    ensure!(checked.is_err(), "CHECK after DEL found everything in order");
    cluster.lab.take_down()
}
