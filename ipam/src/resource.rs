//! A v3 resource (`projectcalico.org/v3`): kind, metadata, spec, and whatever else somebody wrote.
//!
//! Fields that this program does not know are kept, in their order, and written back: other programs own them.
//! A resource that is parsed and printed is byte for byte what it was, as long as the known fields stand in
//! Calico's order.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

/// A v3 resource with a spec of type `Spec`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Resource<Spec> {
    /// The kind, for example `IPPool`.
    pub kind: String,
    /// Always `projectcalico.org/v3`.
    #[serde(rename = "apiVersion")]
    pub api_version: String,
    /// Name, labels and the rest that every kind has.
    pub metadata: Metadata,
    /// What the kind is about.
    pub spec: Spec,
    /// Top-level fields not known here (`status`).
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// Metadata of a resource, a subset of Kubernetes' ObjectMeta.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Metadata {
    /// Name, unique in its kind (and namespace).
    pub name: String,
    /// Namespace, for kinds that have one (WorkloadEndpoint).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// A UUID given at creation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// Time of creation, RFC 3339 in whole seconds.
    #[serde(
        rename = "creationTimestamp",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub creation_timestamp: Option<String>,
    /// Labels, which selectors look at.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Fields not known here.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// A stored value that is not the JSON it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key}: not a valid {what}: {why}")]
pub struct ResourceError {
    /// The key of the value.
    pub key: String,
    /// What was expected, for example `IPPool`.
    pub what: &'static str,
    /// What is wrong, with line and column if it is the JSON.
    pub why: String,
}

impl<Spec> Resource<Spec> {
    /// A new resource of `kind` named `name`, without namespace, UID or labels.
    pub fn new(kind: &str, name: &str, spec: Spec) -> Self {
        Self {
            kind: kind.to_owned(),
            api_version: "projectcalico.org/v3".to_owned(),
            metadata: Metadata {
                name: name.to_owned(),
                ..Metadata::default()
            },
            spec,
            extra: Map::new(),
        }
    }
}

impl<Spec: DeserializeOwned> Resource<Spec> {
    /// Reads the stored `value` of `key`; `what` names the kind in the error.
    pub fn parse(key: &str, what: &'static str, value: &[u8]) -> Result<Self, ResourceError> {
        parse_json(key, what, value)
    }
}

impl<Spec: Serialize> Resource<Spec> {
    /// The stored form: compact JSON in Calico's field order.
    pub fn to_json(&self) -> Vec<u8> {
        print_json(self)
    }
}

/// Reads any stored JSON value.
pub(crate) fn parse_json<T: DeserializeOwned>(
    key: &str,
    what: &'static str,
    value: &[u8],
) -> Result<T, ResourceError> {
    serde_json::from_slice(value).map_err(|e| ResourceError {
        key: key.to_owned(),
        what,
        why: e.to_string(),
    })
}

/// Prints a value of this crate. The types printed have string keys and no fallible serializers, so printing to memory
/// cannot fail; an empty value would be refused by every reader should that ever change.
pub(crate) fn print_json<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}
