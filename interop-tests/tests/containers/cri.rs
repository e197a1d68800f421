//! The part of the Container Runtime Interface (cri-api v1) that kubelet needs for a pod with one container: messages
//! with the field numbers of `runtime/v1/api.proto`, and the calls.
//!
//! Each call connects anew, so that a containerd that was started again meanwhile is no special case.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Endpoint;
use tonic::{Request, Status};
use tonic_prost::ProstCodec;

/// How long kubelet waits for an answer (`runtimeRequestTimeout`).
const REQUEST_TIMEOUT: Duration = Duration::from_secs(120);

/// A client of one container runtime.
#[derive(Clone, Debug)]
pub(crate) struct Cri {
    socket: PathBuf,
}

impl Cri {
    /// The runtime at a socket, as seen from here.
    pub(crate) fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// RunPodSandbox; returns the sandbox's ID.
    pub(crate) fn run_pod_sandbox(&self, config: &PodSandboxConfig) -> Result<String, Status> {
        let request = RunPodSandboxRequest {
            config: Some(config.clone()),
        };
        let response: PodSandboxId = self.call("RunPodSandbox", request)?;
        Ok(response.pod_sandbox_id)
    }

    /// StopPodSandbox.
    pub(crate) fn stop_pod_sandbox(&self, sandbox: &str) -> Result<(), Status> {
        let _: Empty = self.call("StopPodSandbox", PodSandboxId::from(sandbox))?;
        Ok(())
    }

    /// RemovePodSandbox.
    pub(crate) fn remove_pod_sandbox(&self, sandbox: &str) -> Result<(), Status> {
        let _: Empty = self.call("RemovePodSandbox", PodSandboxId::from(sandbox))?;
        Ok(())
    }

    /// ListPodSandbox: all of them.
    pub(crate) fn list_pod_sandbox(&self) -> Result<Vec<PodSandbox>, Status> {
        let response: ListPodSandboxResponse = self.call("ListPodSandbox", Empty {})?;
        Ok(response.items)
    }

    /// PodSandboxStatus: the pod's address, empty if it has none.
    pub(crate) fn pod_sandbox_address(&self, sandbox: &str) -> Result<String, Status> {
        let response: PodSandboxStatusResponse =
            self.call("PodSandboxStatus", PodSandboxId::from(sandbox))?;
        let network = response.status.and_then(|status| status.network);
        Ok(network.unwrap_or_default().ip)
    }

    /// Status: whether the runtime finds its network ready.
    pub(crate) fn network_is_ready(&self) -> Result<bool, Status> {
        let response: StatusResponse = self.call("Status", Empty {})?;
        let conditions = response.status.unwrap_or_default().conditions;
        Ok(conditions
            .iter()
            .any(|condition| condition.kind == "NetworkReady" && condition.status))
    }

    /// CreateContainer and StartContainer; returns the container's ID.
    pub(crate) fn start_container(
        &self,
        sandbox: &str,
        sandbox_config: &PodSandboxConfig,
        config: ContainerConfig,
    ) -> Result<String, Status> {
        let request = CreateContainerRequest {
            pod_sandbox_id: sandbox.to_owned(),
            config: Some(config),
            sandbox_config: Some(sandbox_config.clone()),
        };
        let created: ContainerId = self.call("CreateContainer", request)?;
        let _: Empty = self.call("StartContainer", created.clone())?;
        Ok(created.container_id)
    }

    /// ExecSync; returns what the command printed on standard output, whatever its exit status.
    pub(crate) fn exec(&self, container: &str, command: &[&str]) -> Result<String, Status> {
        let request = ExecSyncRequest {
            container_id: container.to_owned(),
            cmd: command.iter().map(ToString::to_string).collect(),
            timeout: 30,
        };
        let response: ExecSyncResponse = self.call("ExecSync", request)?;
        Ok(String::from_utf8_lossy(&response.stdout).into_owned())
    }

    fn call<Q, A>(&self, method: &str, request: Q) -> Result<A, Status>
    where
        Q: prost::Message + Default + 'static,
        A: prost::Message + Default + 'static,
    {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
            let unavailable = |error: anyhow::Error| Status::unavailable(format!("{error:#}"));
            let channel = async {
                let endpoint = Endpoint::from_shared(format!("unix://{}", self.socket.display()))?;
                endpoint.timeout(REQUEST_TIMEOUT).connect().await
            };
            let channel = channel.await.context("connect").map_err(unavailable)?;
            let mut client = Grpc::new(channel);
            client.ready().await.context("ready").map_err(unavailable)?;
            let path = PathAndQuery::try_from(format!("/runtime.v1.RuntimeService/{method}"))
                .map_err(|error| Status::internal(error.to_string()))?;
            let answer = client
                .unary(Request::new(request), path, ProstCodec::default())
                .await?;
            Ok(answer.into_inner())
        })
    }
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Empty {}

#[derive(Clone, PartialEq, prost::Message)]
struct RunPodSandboxRequest {
    #[prost(message, optional, tag = "1")]
    config: Option<PodSandboxConfig>,
}

/// The answer to RunPodSandbox, and the request of several others.
#[derive(Clone, PartialEq, prost::Message)]
struct PodSandboxId {
    #[prost(string, tag = "1")]
    pod_sandbox_id: String,
}

impl From<&str> for PodSandboxId {
    fn from(sandbox: &str) -> Self {
        Self {
            pod_sandbox_id: sandbox.to_owned(),
        }
    }
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct PodSandboxConfig {
    #[prost(message, optional, tag = "1")]
    pub(crate) metadata: Option<PodSandboxMetadata>,
    #[prost(string, tag = "2")]
    pub(crate) hostname: String,
    #[prost(map = "string, string", tag = "7")]
    pub(crate) annotations: HashMap<String, String>,
    #[prost(message, optional, tag = "8")]
    pub(crate) linux: Option<LinuxPodSandboxConfig>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct PodSandboxMetadata {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    #[prost(string, tag = "2")]
    pub(crate) uid: String,
    #[prost(string, tag = "3")]
    pub(crate) namespace: String,
    #[prost(uint32, tag = "4")]
    pub(crate) attempt: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct LinuxPodSandboxConfig {
    #[prost(string, tag = "1")]
    pub(crate) cgroup_parent: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ListPodSandboxResponse {
    #[prost(message, repeated, tag = "1")]
    items: Vec<PodSandbox>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct PodSandbox {
    #[prost(string, tag = "1")]
    pub(crate) id: String,
    #[prost(message, optional, tag = "2")]
    pub(crate) metadata: Option<PodSandboxMetadata>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PodSandboxStatusResponse {
    #[prost(message, optional, tag = "1")]
    status: Option<PodSandboxStatus>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PodSandboxStatus {
    #[prost(message, optional, tag = "5")]
    network: Option<PodSandboxNetworkStatus>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PodSandboxNetworkStatus {
    #[prost(string, tag = "1")]
    ip: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StatusResponse {
    #[prost(message, optional, tag = "1")]
    status: Option<RuntimeStatus>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RuntimeStatus {
    #[prost(message, repeated, tag = "1")]
    conditions: Vec<RuntimeCondition>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RuntimeCondition {
    #[prost(string, tag = "1")]
    kind: String,
    #[prost(bool, tag = "2")]
    status: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
struct CreateContainerRequest {
    #[prost(string, tag = "1")]
    pod_sandbox_id: String,
    #[prost(message, optional, tag = "2")]
    config: Option<ContainerConfig>,
    #[prost(message, optional, tag = "3")]
    sandbox_config: Option<PodSandboxConfig>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ContainerConfig {
    #[prost(message, optional, tag = "1")]
    pub(crate) metadata: Option<ContainerMetadata>,
    #[prost(message, optional, tag = "2")]
    pub(crate) image: Option<ImageSpec>,
    #[prost(string, repeated, tag = "3")]
    pub(crate) command: Vec<String>,
    #[prost(message, optional, tag = "15")]
    pub(crate) linux: Option<Empty>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ContainerMetadata {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ImageSpec {
    #[prost(string, tag = "1")]
    pub(crate) image: String,
}

/// The answer to CreateContainer, and the request of StartContainer.
#[derive(Clone, PartialEq, prost::Message)]
struct ContainerId {
    #[prost(string, tag = "1")]
    container_id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ExecSyncRequest {
    #[prost(string, tag = "1")]
    container_id: String,
    #[prost(string, repeated, tag = "2")]
    cmd: Vec<String>,
    #[prost(int64, tag = "3")]
    timeout: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ExecSyncResponse {
    #[prost(bytes = "vec", tag = "1")]
    stdout: Vec<u8>,
}
