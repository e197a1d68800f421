//! A kubelet on a machine, beside its containerd.

use std::net::IpAddr;

use anyhow::Context;
use serde_json::{Value, json};

use super::control_plane::ControlPlane;
use crate::daemon::containerd;
use crate::lab::Lab;
use crate::machine::Machine;
use crate::process::Process;
use crate::programs::Programs;

const KUBECONFIG: &str = "/etc/kubernetes/kubeconfig";
const CONFIG: &str = "/etc/kubernetes/kubelet.json";

/// A kubelet, running or not.
#[derive(Debug)]
pub struct Kubelet {
    programs: Programs,
    address: IpAddr,
    process: Option<Process>,
}

impl Kubelet {
    /// Writes its configuration and starts it.
    ///
    /// # Errors
    /// When a file cannot be written, or it cannot be started.
    pub fn start(
        lab: &Lab,
        machine: &Machine,
        (control, programs): (&ControlPlane, &Programs),
        address: IpAddr,
    ) -> anyhow::Result<Self> {
        machine.write(KUBECONFIG, control.kubeconfig().to_string())?;
        machine.write(CONFIG, config(machine).to_string())?;
        let mut kubelet = Self {
            programs: programs.clone(),
            address,
            process: None,
        };
        kubelet.launch(lab, machine)?;
        Ok(kubelet)
    }

    /// Starts it (again).
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn launch(&mut self, lab: &Lab, machine: &Machine) -> anyhow::Result<()> {
        let mut command = self.programs.command("kubelet");
        command.args([
            format!("--config={CONFIG}"),
            format!("--kubeconfig={KUBECONFIG}"),
            format!("--node-ip={}", self.address),
            format!("--hostname-override={}", machine.name()),
        ]);
        self.process = Some(lab.start(machine.name(), "kubelet", machine, &mut command)?);
        Ok(())
    }

    /// Kills it with SIGKILL; pods go on.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.process.take().context("the kubelet does not run")?.kill()
    }
}

/// The kubelet's configuration: no limits that a small machine under test would meet, no iptables of its own.
fn config(machine: &Machine) -> Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "containerRuntimeEndpoint": format!("unix://{}", containerd::SOCKET),
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": machine.cgroup(),
        "enforceNodeAllocatable": [],
        "failSwapOn": false,
        "localStorageCapacityIsolation": false,
        "evictionHard": { "memory.available": "10Mi", "nodefs.available": "0%", "imagefs.available": "0%" },
        "imageGCHighThresholdPercent": 100,
        "makeIPTablesUtilChains": false,
        "resolvConf": "",
        "nodeStatusUpdateFrequency": "2s",
        "registryPullQPS": 0,
        "eventRecordQPS": 0,
        "kubeAPIQPS": 100,
        "kubeAPIBurst": 200,
        "authentication": { "anonymous": { "enabled": true }, "webhook": { "enabled": false } },
        "authorization": { "mode": "AlwaysAllow" },
    })
}
