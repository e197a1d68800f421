//! This node's Node resource: its addresses and AS number, which Calico's tools show and other nodes read.
//!
//! Invariant: only the fields named here are written; everything else in the resource stays what it was.

use calidris_ipam::{CommitOutcome, Guard, KeyValue, Range, Store, StoreError, Txn, UnixNanos, Write, keys};
use ipnetwork::{Ipv4Network, Ipv6Network};
use serde_json::{Map, Value, json};

use crate::config::Config;

/// How often somebody else may be faster before we try again later.
const MAX_ATTEMPTS: u32 = 10;

/// What a node says of itself. Absent fields leave what is there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeRecord {
    /// Its name.
    pub name: String,
    /// IPv4 address with the prefix length of its subnet.
    pub ipv4_address: Option<Ipv4Network>,
    /// IPv6 address with the prefix length of its subnet.
    pub ipv6_address: Option<Ipv6Network>,
    /// AS number of its BGP speaker.
    pub as_number: Option<u32>,
}

/// Why the resource was not written.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// The datastore failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What is there is not a Node.
    #[error("{key}: not a Node resource: {why}")]
    Malformed {
        /// Its key.
        key: String,
        /// What is wrong.
        why: String,
    },
    /// Others wrote it each time.
    #[error("{key}: others changed it {MAX_ATTEMPTS} times in a row")]
    Contention {
        /// Its key.
        key: String,
    },
}

/// What is new about a resource.
pub struct Creation<'a> {
    /// A UUID.
    pub uid: &'a str,
    /// The time.
    pub now: UnixNanos,
}

impl From<&Config> for NodeRecord {
    fn from(config: &Config) -> Self {
        Self {
            name: config.node_name.as_str().to_owned(),
            ipv4_address: config.node.ipv4_address,
            ipv6_address: config.node.ipv6_address,
            as_number: config.bgp.as_ref().map(|bgp| bgp.as_number),
        }
    }
}

/// Creates or updates the resource; writes nothing if it is right already.
///
/// # Errors
/// See [`RegisterError`].
pub async fn register<S: Store>(
    store: &S,
    record: &NodeRecord,
    creation: &Creation<'_>,
) -> Result<(), RegisterError> {
    let key = keys::resource("nodes", &record.name);
    for _ in 0..MAX_ATTEMPTS {
        let present = store
            .read(&[Range::Key(key.clone())])
            .await?
            .kvs
            .into_iter()
            .next();
        let Some(value) = updated(&key, present.as_ref(), record, creation)? else {
            return Ok(());
        };
        let txn = Txn {
            guards: vec![Guard {
                key: key.clone(),
                mod_revision: present.map_or(0, |kv| kv.mod_revision),
            }],
            writes: vec![Write::Put {
                key: key.clone(),
                value,
            }],
        };
        if let CommitOutcome::Committed { .. } = store.commit(&txn).await? {
            return Ok(());
        }
    }
    Err(RegisterError::Contention { key })
}

/// The new value, or `None` if the present one is right.
fn updated(
    key: &str,
    present: Option<&KeyValue>,
    record: &NodeRecord,
    creation: &Creation<'_>,
) -> Result<Option<Vec<u8>>, RegisterError> {
    let malformed = |why: &str| RegisterError::Malformed {
        key: key.to_owned(),
        why: why.to_owned(),
    };
    let before: Option<Value> = present
        .map(|kv| serde_json::from_slice(&kv.value))
        .transpose()
        .map_err(|error| malformed(&error.to_string()))?;
    let mut resource = before.clone().unwrap_or_else(|| {
        json!({
            "kind": "Node",
            "apiVersion": "projectcalico.org/v3",
            "metadata": {
                "name": record.name,
                "uid": creation.uid,
                "creationTimestamp": creation.now.rfc3339(),
                "labels": { "kubernetes.io/hostname": record.name },
            },
            "spec": {},
        })
    });
    let fields = [
        (
            "ipv4Address",
            record
                .ipv4_address
                .map(|address| Value::from(address.to_string())),
        ),
        (
            "ipv6Address",
            record
                .ipv6_address
                .map(|address| Value::from(address.to_string())),
        ),
        ("asNumber", record.as_number.map(Value::from)),
    ];
    if fields.iter().any(|(_, value)| value.is_some()) {
        let spec = object(&mut resource, "spec").ok_or_else(|| malformed("spec is not an object"))?;
        let bgp = spec.entry("bgp").or_insert_with(|| Value::Object(Map::new()));
        let bgp = bgp
            .as_object_mut()
            .ok_or_else(|| malformed("spec.bgp is not an object"))?;
        for (field, value) in fields {
            if let Some(value) = value {
                bgp.insert(field.to_owned(), value);
            }
        }
    }
    // Printing a JSON value to memory cannot fail.
    Ok((before.as_ref() != Some(&resource)).then(|| serde_json::to_vec(&resource).unwrap_or_default()))
}

fn object<'a>(resource: &'a mut Value, field: &str) -> Option<&'a mut Map<String, Value>> {
    let entry = resource
        .as_object_mut()?
        .entry(field)
        .or_insert_with(|| Value::Object(Map::new()));
    entry.as_object_mut()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CREATION: Creation<'static> = Creation {
        uid: "u",
        now: UnixNanos(0),
    };

    fn record() -> NodeRecord {
        NodeRecord {
            name: "node-a".into(),
            ipv4_address: Some("192.0.2.11/24".parse().unwrap()),
            ipv6_address: None,
            as_number: Some(64512),
        }
    }

    fn present(value: &str) -> KeyValue {
        KeyValue {
            key: "k".into(),
            value: value.into(),
            mod_revision: 7,
        }
    }

    fn update(value: &str) -> Option<Value> {
        let bytes = updated("k", Some(&present(value)), &record(), &CREATION).unwrap();
        bytes.map(|bytes| serde_json::from_slice(&bytes).unwrap())
    }

    #[test]
    fn a_new_node_has_what_calicos_tools_expect() {
        let bytes = updated("k", None, &record(), &CREATION).unwrap().unwrap();
        let node: Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(
            node["spec"]["bgp"],
            json!({ "ipv4Address": "192.0.2.11/24", "asNumber": 64512 })
        );
        assert_eq!(node["metadata"]["name"], "node-a");
        assert_eq!(node["metadata"]["creationTimestamp"], "1970-01-01T00:00:00Z");
    }

    #[test]
    fn fields_of_others_stay() {
        let before = r#"{"kind":"Node","metadata":{"name":"node-a","labels":{"rack":"r1"}},"spec":{"bgp":{"asNumber":1,"ipv4Address":"192.0.2.11/24","ipv6Address":"2001:db8::1/64","ipv4IPIPTunnelAddr":"10.244.0.1"},"orchRefs":[]},"status":{}}"#;
        let after = update(before).unwrap();
        let mut expected: Value = serde_json::from_str(before).unwrap();
        expected["spec"]["bgp"]["asNumber"] = json!(64512);
        assert_eq!(after, expected);
        assert_eq!(
            update(&after.to_string()),
            None,
            "nothing to write the second time"
        );
    }

    #[test]
    fn what_is_not_a_node_is_left_alone() {
        for value in ["{", "[]", r#"{"spec":1}"#, r#"{"spec":{"bgp":[]}}"#] {
            let error = updated("k", Some(&present(value)), &record(), &CREATION).unwrap_err();
            assert!(error.to_string().contains("not a Node resource"), "{error}");
        }
    }
}
