//! Pods of the test: what is asked of the API server, what it says of them, and what they say when asked.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::{Map, Value, json};

use super::cluster::{Kubernetes, is_ready};
use super::control_plane::items;
use crate::eventually::eventually;
use crate::image::{BUSYBOX_IMAGE, SERVE, ask_script};

/// How long a change of many pods may take on a small machine.
pub const WITHIN: Duration = Duration::from_secs(120);

/// A pod, as the API server has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its name.
    pub name: String,
    /// Its node, once it is scheduled.
    pub node: String,
    /// Its address, once it has one.
    pub address: Option<IpAddr>,
    /// Whether it is ready and not being deleted.
    pub ready: bool,
}

/// The Deployment `web` with that many pods.
#[must_use]
pub fn deployment(replicas: usize) -> Value {
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": { "name": "web" },
        "spec": {
            "replicas": replicas,
            "selector": { "matchLabels": { "app": "web" } },
            "template": { "metadata": { "labels": { "app": "web" } }, "spec": pod_spec() },
        },
    })
}

/// A single pod on a node, with annotations; `host_port` leads to its server.
#[must_use]
pub fn single(name: &str, node: &str, annotations: &Map<String, Value>, host_port: Option<u16>) -> Value {
    let mut spec = pod_spec();
    spec["nodeName"] = node.into();
    if let Some(port) = host_port {
        spec["containers"][0]["ports"] = json!([{ "containerPort": 80, "hostPort": port }]);
    }
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name, "annotations": annotations, "labels": { "app": name } },
        "spec": spec,
    })
}

fn pod_spec() -> Value {
    json!({
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
        "dnsPolicy": "Default",
        "terminationGracePeriodSeconds": 5,
        "containers": [{
            "name": "server",
            "image": BUSYBOX_IMAGE,
            "imagePullPolicy": "Never",
            "command": ["/bin/sh", "-c", SERVE],
        }],
    })
}

impl Kubernetes<'_> {
    /// The pods with the label `app`, those that are being deleted included, in the order of their names.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub fn pods(&self, app: &str) -> anyhow::Result<Vec<Pod>> {
        let answer = self.control.get(&["pods", "-l", &format!("app={app}")])?;
        let mut pods = items(&answer)?
            .iter()
            .map(read_pod)
            .collect::<anyhow::Result<Vec<_>>>()?;
        pods.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(pods)
    }

    /// Waits until there are exactly that many pods, all ready, and etcd has exactly their addresses.
    ///
    /// # Errors
    /// When it does not come to that; with what is there.
    pub fn settled(&self, app: &str, count: usize) -> anyhow::Result<Vec<Pod>> {
        eventually(&format!("exactly {count} pods {app} are ready"), WITHIN, || {
            let pods = self.pods(app)?;
            let ready = pods.iter().filter(|pod| pod.ready).count();
            ensure!(
                ready == count && pods.len() == count,
                "{ready} of {} pods are ready",
                pods.len()
            );
            let expected: BTreeSet<IpAddr> = pods.iter().filter_map(|pod| pod.address).collect();
            ensure!(expected.len() == count, "the pods' addresses are {expected:?}");
            let assigned = self.assigned()?;
            ensure!(
                assigned == expected,
                "assigned and not a pod's: {:?}; a pod's and not assigned: {:?}",
                assigned.difference(&expected),
                expected.difference(&assigned)
            );
            Ok(pods)
        })
    }

    /// Every pod asks every other pod, once and without a second try; each sees the asker's own address.
    ///
    /// # Errors
    /// Everybody that did not answer, or saw another address.
    pub fn everybody_asks_everybody(&self, pods: &[Pod]) -> anyhow::Result<()> {
        let mut failures = Vec::new();
        for asker in pods {
            let own = asker.address.context("a ready pod has an address")?;
            let others: Vec<String> = pods
                .iter()
                .filter(|pod| pod.name != asker.name)
                .filter_map(|pod| Some(format!("{}:80", pod.address?)))
                .collect();
            for (other, seen) in others.iter().zip(self.ask_from(asker, &others)?) {
                if seen != own.to_string() {
                    failures.push(format!("{own} on {} asked {other}: {seen:?}", asker.node));
                }
            }
        }
        ensure!(
            failures.is_empty(),
            "{} failed:\n{}",
            failures.len(),
            failures.join("\n")
        );
        Ok(())
    }

    /// What each `address:port` answers to a pod: the address that it sees the pod have.
    ///
    /// # Errors
    /// When nothing can be run in the pod.
    pub fn ask_from(&self, asker: &Pod, others: &[String]) -> anyhow::Result<Vec<String>> {
        let script = ask_script(others);
        let printed = self
            .control
            .kubectl(&["exec", &asker.name, "--", "/bin/sh", "-c", &script])?;
        let answers: Vec<String> = printed.lines().map(|line| line.trim().to_owned()).collect();
        ensure!(
            answers.len() == others.len(),
            "{} asked {others:?}: {printed:?}",
            asker.name
        );
        Ok(answers)
    }

    /// Makes a pod and waits until it is ready.
    ///
    /// # Errors
    /// When it does not become ready; with what Kubernetes says of it.
    pub fn start_pod(&self, pod: &Value) -> anyhow::Result<Pod> {
        self.control.apply(pod)?;
        let app = pod
            .pointer("/metadata/name")
            .and_then(Value::as_str)
            .context("a pod has a name")?;
        let ready = eventually(&format!("pod {app} is ready"), Duration::from_secs(60), || {
            let pods = self.pods(app)?;
            let ready = pods.iter().find(|pod| pod.ready).cloned();
            ready.with_context(|| format!("{pods:?}"))
        });
        ready.map_err(|error| {
            let events = self
                .control
                .kubectl(&["describe", "pod", app])
                .unwrap_or_default();
            error.context(events)
        })
    }
}

fn read_pod(object: &Value) -> anyhow::Result<Pod> {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
    let address = text("/status/podIP").filter(|address| !address.is_empty());
    Ok(Pod {
        name: text("/metadata/name").context("a pod has a name")?.to_owned(),
        node: text("/spec/nodeName").unwrap_or_default().to_owned(),
        address: address.map(str::parse).transpose().context("a pod's address")?,
        ready: is_ready(object) && text("/metadata/deletionTimestamp").is_none(),
    })
}
