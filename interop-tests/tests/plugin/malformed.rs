//! Nonsense handed to the plugin on a running node: the specification's error codes, and nothing given out.

use std::time::Duration;

use anyhow::{Context, ensure};
use calidris_interop::binaries::PLUGIN;
use calidris_interop::calico;
use calidris_interop::cluster::Cluster;
use calidris_interop::cni::{PluginError, Runtime};
use calidris_interop::eventually::Stopwatch;
use calidris_interop::pod::attachment;
use calidris_interop::require;
use calidris_interop::require::LAB;

const CONTAINER: &str = "c0ffee0000000000000000000000000000000000000000000000000000000000";
const GOOD: &str = r#"{"cniVersion":"1.0.0","name":"k8s-pod-network","type":"calidris-cni"}"#;

/// What is handed over, and the code that must come back (CNI specification 1.0.0, section 5).
struct Case {
    what: &'static str,
    changed: (&'static str, Option<&'static str>),
    input: &'static str,
    code: u64,
}

const CASES: &[Case] = &[
    Case {
        what: "no JSON",
        changed: ("CNI_IFNAME", Some("eth0")),
        input: "{\"cniVersion\":",
        code: 6,
    },
    Case {
        what: "no CNI_NETNS",
        changed: ("CNI_NETNS", None),
        input: GOOD,
        code: 4,
    },
    Case {
        what: "no CNI_CONTAINERID",
        changed: ("CNI_CONTAINERID", None),
        input: GOOD,
        code: 4,
    },
    Case {
        what: "no CNI_IFNAME",
        changed: ("CNI_IFNAME", None),
        input: GOOD,
        code: 4,
    },
    Case {
        what: "a bad CNI_CONTAINERID",
        changed: ("CNI_CONTAINERID", Some("../x")),
        input: GOOD,
        code: 4,
    },
    Case {
        what: "a bad CNI_IFNAME",
        changed: ("CNI_IFNAME", Some("an/interface")),
        input: GOOD,
        code: 4,
    },
    Case {
        what: "an unknown version",
        changed: ("CNI_IFNAME", Some("eth0")),
        input: r#"{"cniVersion":"9.9.9","name":"k8s-pod-network","type":"calidris-cni"}"#,
        code: 1,
    },
    Case {
        what: "no network name",
        changed: ("CNI_IFNAME", Some("eth0")),
        input: r#"{"cniVersion":"1.0.0","type":"calidris-cni"}"#,
        code: 7,
    },
];

#[test]
fn malformed_requests_get_the_specification_s_error_codes() -> anyhow::Result<()> {
    require!(LAB);
    let mut cluster = Cluster::for_test("malformed", 1)?;
    let namespace = cluster.lab.namespace("target")?;
    let netns = namespace.path().to_string_lossy().into_owned();
    for case in CASES {
        let error =
            refuse(&cluster.node("node1")?.runtime, &netns, case).with_context(|| case.what.to_owned())?;
        ensure!(
            error.code == case.code,
            "{}: expected code {}, got {error}",
            case.what,
            case.code
        );
        ensure!(!error.msg.is_empty(), "{}: an error without a message", case.what);
    }
    ensure!(
        calico::addresses(&cluster.etcd)?.is_empty(),
        "an address was given out"
    );
    cluster.add_pod(0, "pod")?;
    cluster.lab.take_down()
}

#[test]
fn without_an_agent_the_plugin_says_try_again_later_in_bounded_time() -> anyhow::Result<()> {
    require!(LAB);
    let mut cluster = Cluster::for_test("no-agent", 1)?;
    let namespace = cluster.lab.namespace("target")?;
    let (node, _) = cluster.node_mut("node1")?;
    node.terminate_agent()?;
    let attachment = attachment("target", &namespace)?;
    let watch = Stopwatch::start();
    let errors = [
        node.runtime
            .add(&attachment)
            .err()
            .context("ADD succeeded without an agent")?,
        node.runtime
            .del(&attachment, None)
            .err()
            .context("DEL succeeded without an agent")?,
    ];
    ensure!(
        watch.elapsed() < Duration::from_secs(70),
        "took {:?}",
        watch.elapsed()
    );
    for error in errors {
        let refusal = error
            .downcast_ref::<PluginError>()
            .with_context(|| format!("{error:#}"))?;
        ensure!(refusal.code == 11, "{refusal}");
    }
    cluster.lab.take_down()
}

fn refuse(runtime: &Runtime, netns: &str, case: &Case) -> anyhow::Result<PluginError> {
    let path = runtime.cni_path();
    let mut environment = vec![
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", CONTAINER),
        ("CNI_NETNS", netns),
        ("CNI_IFNAME", "eth0"),
        ("CNI_PATH", &path),
    ];
    let (changed, to) = case.changed;
    environment.retain(|(name, _)| *name != changed);
    environment.extend(to.map(|value| (changed, value)));
    let output = runtime.run_plugin(PLUGIN, &environment, case.input)?;
    ensure!(!output.status.success(), "succeeded");
    let printed = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&printed).with_context(|| format!("no error object: {printed:?}"))
}
