//! This node's Node resource: its addresses and AS number, which Calico's tools show and other nodes read.
//!
//! Invariant: only the fields named here are written; everything else in the resource stays what it was.

use calidris_ipam::{CommitOutcome, Guard, KeyValue, Range, Store, StoreError, Txn, UnixNanos, Write, keys};
use serde_json::{Map, Value, json};

use super::workload_endpoint::{mac_text, parse_mac};
use crate::desired::{Published, vxlan_mac};
use crate::model::{NodeFacts, TunnelKind};

/// How often somebody else may be faster before we try again later.
const MAX_ATTEMPTS: u32 = 10;
/// Type of a node's own address in `spec.addresses`.
const OWN_ADDRESS: &str = "CalicoNodeIP";

/// What a node says of itself. Absent fields leave what is there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeRecord {
    /// Its name.
    pub name: String,
    /// AS number of its BGP speaker.
    pub as_number: Option<u32>,
    /// Addresses and tunnels.
    pub published: Published,
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
            ..Txn::default()
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
    let facts = &record.published.facts;
    let text = |value: Option<String>| value.map(|value| Some(Value::from(value)));
    let mut of_bgp = vec![
        ("ipv4Address", text(facts.ipv4.map(|address| address.to_string()))),
        ("ipv6Address", text(facts.ipv6.map(|address| address.to_string()))),
        (
            "asNumber",
            record.as_number.map(|number| Some(Value::from(number))),
        ),
    ];
    let mut of_spec = Vec::new();
    for kind in &record.published.decided {
        let address = facts
            .tunnels
            .get(kind)
            .map(|address| Value::from(address.to_string()));
        let (field, mac_field) = tunnel_fields(*kind);
        match mac_field {
            None => of_bgp.push((field, Some(address))),
            Some(mac_field) => {
                let mac = facts.macs.get(kind).map(|mac| Value::from(mac_text(*mac)));
                of_spec.push((field, Some(address)));
                of_spec.push((mac_field, Some(mac)));
            }
        }
    }
    let is_said = |fields: &[Field]| fields.iter().any(|(_, value)| value.is_some());
    if is_said(&of_bgp) || is_said(&of_spec) {
        let spec = object(&mut resource, "spec").ok_or_else(|| malformed("spec is not an object"))?;
        set(spec, of_spec);
        set_addresses(spec, facts);
        if spec.contains_key("bgp") || of_bgp.iter().any(|(_, value)| matches!(value, Some(Some(_)))) {
            let bgp = spec.entry("bgp").or_insert_with(|| Value::Object(Map::new()));
            let bgp = bgp
                .as_object_mut()
                .ok_or_else(|| malformed("spec.bgp is not an object"))?;
            set(bgp, of_bgp);
        }
    }
    // Printing a JSON value to memory cannot fail.
    Ok((before.as_ref() != Some(&resource)).then(|| serde_json::to_vec(&resource).unwrap_or_default()))
}

/// A field, and what it is to be: `None` leaves it, `Some(None)` takes it away.
type Field = (&'static str, Option<Option<Value>>);

fn set(object: &mut Map<String, Value>, fields: Vec<Field>) {
    for (field, value) in fields {
        match value {
            None => {}
            Some(None) => {
                object.shift_remove(field);
            }
            Some(Some(value)) => {
                object.insert(field.to_owned(), value);
            }
        }
    }
}

/// `spec.addresses`: the node's own addresses, with the type that Calico gives them; entries of other types stay.
fn set_addresses(spec: &mut Map<String, Value>, facts: &NodeFacts) {
    let own: Vec<Value> = [facts.address(false), facts.address(true)]
        .into_iter()
        .flatten()
        .map(|address| json!({ "address": address.to_string(), "type": OWN_ADDRESS }))
        .collect();
    if own.is_empty() {
        return;
    }
    let others = spec
        .get("addresses")
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default();
    let others = others
        .into_iter()
        .filter(|entry| entry.get("type").and_then(Value::as_str) != Some(OWN_ADDRESS));
    let all = own.into_iter().chain(others).collect();
    spec.insert("addresses".to_owned(), Value::Array(all));
}

/// The fields of a tunnel: its address, in `spec.bgp` if it has no MAC address and else in `spec`; its MAC address.
fn tunnel_fields(kind: TunnelKind) -> (&'static str, Option<&'static str>) {
    match kind {
        TunnelKind::Ipip => ("ipv4IPIPTunnelAddr", None),
        TunnelKind::VxlanV4 => ("ipv4VXLANTunnelAddr", Some("vxlanTunnelMACAddr")),
        TunnelKind::VxlanV6 => ("ipv6VXLANTunnelAddr", Some("vxlanTunnelMACAddrV6")),
    }
}

/// What a Node resource says that decides how packets reach the node.
///
/// # Errors
/// It is not JSON, or a field is not what it should be.
pub fn parse(value: &[u8]) -> Result<NodeFacts, String> {
    let resource: Value = serde_json::from_slice(value).map_err(|error| error.to_string())?;
    let spec = resource.get("spec").unwrap_or(&Value::Null);
    let bgp = spec.get("bgp").unwrap_or(&Value::Null);
    let mut facts = NodeFacts {
        ipv4: network(bgp, "ipv4Address")?,
        ipv6: network(bgp, "ipv6Address")?,
        ..NodeFacts::default()
    };
    for kind in TunnelKind::ALL {
        let (field, mac_field) = tunnel_fields(kind);
        let holder = if mac_field.is_some() { spec } else { bgp };
        if let Some(address) = field_of::<std::net::IpAddr>(holder, field)? {
            if address.is_ipv6() != kind.is_ipv6() {
                return Err(format!("{field} {address} is of the other family"));
            }
            facts.tunnels.insert(kind, address);
        }
        // Where the field is absent, the device has the MAC address that follows from the node's name.
        let name = || resource.pointer("/metadata/name").and_then(Value::as_str);
        let mac = match mac_field.and_then(|mac_field| text_of(spec, mac_field)) {
            Some(text) => Some(parse_mac(text).ok_or_else(|| format!("{text:?} is not a MAC address"))?),
            None if mac_field.is_some() => name().map(|name| vxlan_mac(name, kind)),
            None => None,
        };
        if let Some(mac) = mac.filter(|_| facts.tunnels.contains_key(&kind)) {
            facts.macs.insert(kind, mac);
        }
    }
    Ok(facts)
}

fn text_of<'a>(object: &'a Value, field: &str) -> Option<&'a str> {
    object
        .get(field)
        .and_then(Value::as_str)
        .filter(|text| !text.is_empty())
}

/// An address with or without prefix length: without, the node is alone in its subnet.
fn network<T: std::str::FromStr>(object: &Value, field: &str) -> Result<Option<T>, String> {
    field_of(object, field)
}

fn field_of<T: std::str::FromStr>(object: &Value, field: &str) -> Result<Option<T>, String> {
    let parse = |text: &str| {
        text.parse()
            .map_err(|_| format!("{field} {text:?} is not an address"))
    };
    text_of(object, field).map(parse).transpose()
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
        let facts = NodeFacts {
            ipv4: Some("192.0.2.11/24".parse().unwrap()),
            ..NodeFacts::default()
        };
        NodeRecord {
            name: "node-a".into(),
            as_number: Some(64512),
            published: Published {
                facts,
                decided: [TunnelKind::VxlanV4, TunnelKind::VxlanV6].into(),
            },
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
        update_with(value, &record())
    }

    fn update_with(value: &str, record: &NodeRecord) -> Option<Value> {
        let bytes = updated("k", Some(&present(value)), record, &CREATION).unwrap();
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
        expected["spec"]["addresses"] = json!([{ "address": "192.0.2.11/24", "type": "CalicoNodeIP" }]);
        assert_eq!(after, expected);
        assert_eq!(
            update(&after.to_string()),
            None,
            "nothing to write the second time"
        );
    }

    #[test]
    fn tunnels_are_published_as_calico_does_and_read_back() {
        let mut record = record();
        let (v4, v6) = (TunnelKind::VxlanV4, TunnelKind::VxlanV6);
        record.published.decided = TunnelKind::ALL.into();
        record.published.facts.ipv6 = Some("2001:db8::11/64".parse().unwrap());
        record.published.facts.tunnels = [
            (TunnelKind::Ipip, "10.244.0.1".parse().unwrap()),
            (v4, "10.244.0.2".parse().unwrap()),
            (v6, "fd00:10:244::1".parse().unwrap()),
        ]
        .into();
        record.published.facts.macs = [(v4, vxlan_mac("node-a", v4)), (v6, [0x66, 1, 2, 3, 4, 0xab])].into();
        let before = r#"{"metadata":{"name":"node-a"},"spec":{"bgp":{"routeReflectorClusterID":"224.0.0.1"},"addresses":[{"address":"192.0.2.1/24","type":"CalicoNodeIP"},{"address":"192.0.2.11","type":"InternalIP"}],"wireguard":{}}}"#;
        let after = update_with(before, &record).unwrap();
        assert_eq!(
            after["spec"],
            json!({
                "bgp": {
                    "routeReflectorClusterID": "224.0.0.1", "ipv4Address": "192.0.2.11/24", "ipv6Address": "2001:db8::11/64",
                    "asNumber": 64512, "ipv4IPIPTunnelAddr": "10.244.0.1",
                },
                "addresses": [
                    { "address": "192.0.2.11/24", "type": "CalicoNodeIP" },
                    { "address": "2001:db8::11/64", "type": "CalicoNodeIP" },
                    { "address": "192.0.2.11", "type": "InternalIP" },
                ],
                "wireguard": {}, "ipv4VXLANTunnelAddr": "10.244.0.2", "vxlanTunnelMACAddr": "66:07:02:c1:cc:60",
                "ipv6VXLANTunnelAddr": "fd00:10:244::1", "vxlanTunnelMACAddrV6": "66:01:02:03:04:ab",
            })
        );
        assert_eq!(
            parse(after.to_string().as_bytes()).unwrap(),
            record.published.facts
        );

        // What is decided against goes, what is undecided stays.
        record.published.facts.tunnels.clear();
        record.published.facts.macs.clear();
        record.published.decided = [v4].into();
        let later = update_with(&after.to_string(), &record).unwrap();
        assert_eq!(later["spec"].get("ipv4VXLANTunnelAddr"), None);
        assert_eq!(later["spec"].get("vxlanTunnelMACAddr"), None);
        assert_eq!(later["spec"]["ipv6VXLANTunnelAddr"], "fd00:10:244::1");
        assert_eq!(later["spec"]["bgp"]["ipv4IPIPTunnelAddr"], "10.244.0.1");
    }

    #[test]
    fn a_node_that_says_nonsense_is_refused() {
        for spec in [
            r#"{"bgp":{"ipv4Address":"192.0.2.300/24"}}"#,
            r#"{"bgp":{"ipv4Address":"2001:db8::1/64"}}"#,
            r#"{"ipv4VXLANTunnelAddr":"fd00::1"}"#,
            r#"{"ipv4VXLANTunnelAddr":"10.0.0.1","vxlanTunnelMACAddr":"66:01"}"#,
        ] {
            parse(format!(r#"{{"spec":{spec}}}"#).as_bytes()).unwrap_err();
        }
        assert_eq!(parse(b"{}").unwrap(), NodeFacts::default());
    }

    #[test]
    fn what_is_not_a_node_is_left_alone() {
        for value in ["{", "[]", r#"{"spec":1}"#, r#"{"spec":{"bgp":[]}}"#] {
            let error = updated("k", Some(&present(value)), &record(), &CREATION).unwrap_err();
            assert!(error.to_string().contains("not a Node resource"), "{error}");
        }
    }
}
