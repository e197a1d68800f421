//! Calico's LiveMigration (v3.32): from which workload to which a virtual machine moves. Its fields have no names of their own in
//! JSON, and are written as in Go. Calico's `Selector` is not followed: it stands only in what Calico makes of KubeVirt's own
//! resources, which are not kept in etcd.

use calidris_ipam::{Resource, keys};
use serde::Deserialize;

use super::workload_endpoint::Written;
use crate::model::MigrationRole;

/// Plural of the kind, in keys.
const PLURAL: &str = "livemigrations";

/// Spec of a LiveMigration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct LiveMigrationSpec {
    source: Option<End>,
    target: Option<End>,
}

/// Exactly one of the two says which workload it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct End {
    workload: Option<Identifier>,
    workload_endpoint: Option<Identifier>,
}

/// What is empty is any.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Identifier {
    hostname: String,
    #[serde(rename = "OrchestratorID")]
    orchestrator_id: String,
    #[serde(rename = "WorkloadID")]
    workload_id: String,
    #[serde(rename = "EndpointID")]
    endpoint_id: String,
}

/// The prefix of all keys of the kind.
pub fn prefix() -> String {
    format!("{}{PLURAL}/", keys::RESOURCES)
}

/// What the stored value of `key` says.
///
/// # Errors
/// What is wrong with it.
pub fn read(key: &str, value: &[u8]) -> Result<LiveMigrationSpec, String> {
    let resource = Resource::<LiveMigrationSpec>::parse(key, "LiveMigration", value);
    let spec = resource.map_err(|error| error.to_string())?.spec;
    for (name, end) in [("Source", &spec.source), ("Target", &spec.target)] {
        let Some(end) = end else { continue };
        if end.workload.is_some() == end.workload_endpoint.is_some() {
            return Err(format!(
                "spec.{name}: expected one of Workload and WorkloadEndpoint"
            ));
        }
    }
    Ok(spec)
}

impl LiveMigrationSpec {
    /// What an endpoint of `node` is in this migration.
    #[must_use]
    pub fn role_of(&self, node: &str, written: &Written) -> Option<MigrationRole> {
        let is_end = |end: &Option<End>| end.as_ref().is_some_and(|end| end.is(node, written));
        if is_end(&self.target) {
            Some(MigrationRole::Target)
        } else {
            is_end(&self.source).then_some(MigrationRole::Source)
        }
    }
}

impl End {
    fn is(&self, node: &str, written: &Written) -> bool {
        let mut names = [&self.workload, &self.workload_endpoint].into_iter().flatten();
        names.any(|name| name.is(node, written))
    }
}

impl Identifier {
    /// As Calico makes the identifiers of an endpoint (`ConvertWorkloadEndpointV3KeyToV1Key`). A Kubernetes pod is one wherever
    /// it is.
    fn is(&self, node: &str, written: &Written) -> bool {
        let (orchestrator, workload) = match written.endpoint.kubernetes_pod() {
            Some((namespace, pod)) => ("k8s", format!("{namespace}/{pod}")),
            None => ("cni", format!("default/{}", written.id.container_id)),
        };
        self.orchestrator_id == orchestrator
            && self.workload_id == workload
            && (self.endpoint_id.is_empty() || self.endpoint_id == written.id.ifname)
            && (orchestrator == "k8s" || self.hostname == node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Endpoint, EndpointId};

    fn written(container_id: &str, pod: Option<&str>) -> Written {
        Written {
            id: EndpointId {
                network: "n".into(),
                container_id: container_id.into(),
                ifname: "eth0".into(),
            },
            endpoint: Endpoint {
                host_interface: "cali1".into(),
                namespace: pod.map(|_| "shop".into()),
                pod: pod.map(str::to_owned),
                ..Endpoint::default()
            },
        }
    }

    fn resource(spec: &str) -> String {
        format!(
            r#"{{"kind":"LiveMigration","apiVersion":"projectcalico.org/v3","metadata":{{"name":"m","namespace":"shop"}},"spec":{spec}}}"#
        )
    }

    #[test]
    fn a_migration_names_its_source_and_its_target() {
        let spec = r#"{"Source":{"Workload":{"Hostname":"","OrchestratorID":"k8s","WorkloadID":"shop/vm-1"}},
            "Target":{"WorkloadEndpoint":{"Hostname":"node-b","OrchestratorID":"cni","WorkloadID":"default/c2","EndpointID":"eth0"}}}"#;
        let spec = read("k", resource(spec).as_bytes()).unwrap();
        let role = |node: &str, written: &Written| spec.role_of(node, written);
        assert_eq!(
            role("node-a", &written("c1", Some("vm-1"))),
            Some(MigrationRole::Source)
        );
        assert_eq!(role("node-a", &written("c1", Some("vm-2"))), None);
        assert_eq!(role("node-b", &written("c2", None)), Some(MigrationRole::Target));
        assert_eq!(role("node-a", &written("c2", None)), None, "another node");
        assert_eq!(role("node-b", &written("c3", None)), None);
    }

    #[test]
    fn what_names_no_workload_says_so() {
        for spec in [r#"{"Target":{}}"#, r#"{"Target":{"Selector":"all()"}}"#] {
            let why = read("k", resource(spec).as_bytes()).unwrap_err();
            assert!(why.contains("spec.Target"), "{why}");
        }
        assert!(read("k", b"{").is_err());
        assert_eq!(
            read("k", resource("{}").as_bytes()),
            Ok(LiveMigrationSpec::default())
        );
    }
}
