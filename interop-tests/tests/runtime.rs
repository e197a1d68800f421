//! The lab's own tools, tried on the reference plugin ptp: the runtime's side of CNI, servers, pinger, route monitor.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};
use calidris_interop::cni::{Attachment, PluginError, Runtime, write_configuration};
use calidris_interop::eventually::{eventually, pace};
use calidris_interop::kernel::{self, RouteMonitor};
use calidris_interop::lab::Lab;
use calidris_interop::netns::Namespace;
use calidris_interop::pinger::Pinger;
use calidris_interop::pod::{ask, attachment, first_address};
use calidris_interop::require;
use calidris_interop::require::Need;
use serde_json::json;

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
