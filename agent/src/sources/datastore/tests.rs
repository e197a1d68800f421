//! Facts about what the datastore's keys become.

use calidris_ipam::UnixNanos;

use super::*;
use crate::model::{Endpoint, EndpointId};

fn kv(key: &str, value: &str) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: value.as_bytes().to_vec(),
        mod_revision: 1,
    }
}

fn pool_kv(name: &str, spec: &str) -> KeyValue {
    let value = format!(
        r#"{{"kind":"IPPool","apiVersion":"projectcalico.org/v3","metadata":{{"name":"{name}"}},"spec":{spec}}}"#
    );
    kv(&format!("{}{name}", keys::IP_POOLS), &value)
}

fn affinity_kv(node: &str, block: &str, state: &str) -> KeyValue {
    kv(
        &keys::affinity(node, block.parse().unwrap()),
        &format!(r#"{{"state":"{state}","deleted":false}}"#),
    )
}

fn written(container: &str) -> Written {
    Written {
        id: EndpointId {
            network: "net".into(),
            container_id: container.into(),
            ifname: "eth0".into(),
        },
        endpoint: Endpoint {
            host_interface: "cali1".into(),
            addresses: BTreeSet::from(["10.0.0.1".parse().unwrap()]),
            mac: None,
            namespace: Some("ns".into()),
            pod: Some("p".into()),
            ..Endpoint::default()
        },
    }
}

fn endpoint_kv(node: &str, written: &Written) -> KeyValue {
    let json = workload_endpoint::compose(node, written, "u", UnixNanos(0)).to_json();
    let key = workload_endpoint::key(node, &written.id, written.endpoint.kubernetes_pod());
    kv(&key, &String::from_utf8(json).unwrap())
}

fn put(view: &mut View, kv: KeyValue) -> Vec<Input> {
    view.change(&Change::Put(kv))
}

fn delete(view: &mut View, key: &str) -> Vec<Input> {
    view.change(&Change::Delete {
        key: key.to_owned(),
        mod_revision: 2,
    })
}

#[test]
fn a_snapshot_holds_what_concerns_this_node() {
    let mut view = View::new("n1".into());
    let snapshot = view.snapshot(&[
        affinity_kv("n1", "10.0.0.0/26", "confirmed"),
        affinity_kv("n1", "10.0.0.64/26", "pending"),
        pool_kv(
            "p",
            r#"{"cidr":"10.0.0.0/16","natOutgoing":true,"ipipMode":"CrossSubnet"}"#,
        ),
        endpoint_kv("n1", &written("a")),
        endpoint_kv("n2", &written("b")),
    ]);
    assert_eq!(
        snapshot
            .own_blocks
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>(),
        ["10.0.0.0/26"]
    );
    assert_eq!(
        snapshot
            .endpoints
            .keys()
            .map(|id| id.container_id.as_str())
            .collect::<Vec<_>>(),
        ["a"]
    );
    let pool = &snapshot.pools["p"];
    assert!(pool.nat_outgoing && !pool.disable_bgp_export);
    assert_eq!(pool.encapsulation, Encapsulation::IpipCrossSubnet);
}

#[test]
fn what_a_second_snapshot_lacks_is_gone() {
    let mut view = View::new("n1".into());
    view.snapshot(&[
        affinity_kv("n1", "10.0.0.0/26", "confirmed"),
        pool_kv("p", r#"{"cidr":"10.0.0.0/16"}"#),
        endpoint_kv("n1", &written("a")),
        pool_kv("bad", "{}"),
    ]);
    assert_eq!(view.malformed.len(), 1);
    assert_eq!(view.snapshot(&[]), DatastoreSnapshot::default());
    assert!(view.malformed.is_empty());
}

#[test]
fn a_malformed_value_keeps_the_last_good_one() {
    let mut view = View::new("n1".into());
    let good = pool_kv("p", r#"{"cidr":"10.0.0.0/16"}"#);
    let endpoint = endpoint_kv("n1", &written("a"));
    let affinity = affinity_kv("n1", "10.0.0.0/26", "confirmed");
    let before = view.snapshot(&[good.clone(), affinity.clone(), endpoint.clone()]);
    for bad in [
        pool_kv("p", r#"{"cidr":"10.0.0.0/99"}"#),
        pool_kv(
            "p",
            r#"{"cidr":"10.0.0.0/16","ipipMode":"Always","vxlanMode":"Always"}"#,
        ),
        kv(&affinity.key, "["),
        kv(&endpoint.key, "not json"),
        kv("/calico/ipam/v2/host/n1/ipv4/block/nonsense", "{}"),
    ] {
        assert_eq!(put(&mut view, bad.clone()), [], "{bad:?}");
        assert!(view.malformed.contains(&bad.key));
    }
    let bad = [kv(&good.key, "{"), kv(&affinity.key, "["), kv(&endpoint.key, "")];
    assert_eq!(view.snapshot(&bad), before, "also in a whole picture");
    put(&mut view, good);
    assert_eq!(view.malformed.len(), 2, "a good value clears the mark");
}

#[test]
fn an_affinity_counts_while_it_is_confirmed() {
    let mut view = View::new("n1".into());
    let block: IpNetwork = "10.0.0.0/26".parse().unwrap();
    let confirmed = affinity_kv("n1", "10.0.0.0/26", "confirmed");
    assert_eq!(
        put(&mut view, confirmed.clone()),
        [Input::OwnBlockConfirmed(block)]
    );
    assert_eq!(
        put(&mut view, affinity_kv("n1", "10.0.0.0/26", "pendingDeletion")),
        [Input::OwnBlockGone(block)]
    );
    assert_eq!(delete(&mut view, &confirmed.key), [Input::OwnBlockGone(block)]);
}

#[test]
fn a_new_container_under_the_same_name_replaces_the_old_one() {
    let mut view = View::new("n1".into());
    let (old, new) = (written("a"), written("b"));
    put(&mut view, endpoint_kv("n1", &old));
    let second = endpoint_kv("n1", &new);
    let expected = [
        Input::EndpointUnseen(old.id),
        Input::EndpointSeen(new.id.clone(), new.endpoint.clone()),
    ];
    assert_eq!(put(&mut view, second.clone()), expected);
    assert_eq!(delete(&mut view, &second.key), [Input::EndpointUnseen(new.id)]);
    assert_eq!(delete(&mut view, &second.key), []);
}

#[test]
fn migrations_give_endpoints_their_roles_whichever_is_heard_first() {
    let key = format!("{}ns/m", live_migration::prefix());
    let migration = |end: &str| {
        kv(
            &key,
            &format!(
                r#"{{"kind":"LiveMigration","apiVersion":"projectcalico.org/v3","metadata":{{"name":"m"}},"spec":{{"{end}":{{"Workload":{{"OrchestratorID":"k8s","WorkloadID":"ns/p"}}}}}}}}"#
            ),
        )
    };
    let roles = |role: Option<MigrationRole>| {
        Input::MigrationRoles(role.map(|role| ("cali1".to_owned(), role)).into_iter().collect())
    };
    let written = written("c1");
    let mut view = View::new("node-a".into());
    assert_eq!(put(&mut view, migration("Target")), []);
    let inputs = put(&mut view, endpoint_kv("node-a", &written));
    assert_eq!(inputs.last(), Some(&roles(Some(MigrationRole::Target))));
    assert_eq!(
        put(&mut view, migration("Source")),
        [roles(Some(MigrationRole::Source))]
    );
    assert_eq!(delete(&mut view, &key), [roles(None)]);
    assert_eq!(delete(&mut view, &key), []);
    let snapshot = view.snapshot(&[migration("Target"), endpoint_kv("node-a", &written)]);
    assert_eq!(snapshot.migrations["cali1"], MigrationRole::Target);
    assert_eq!(put(&mut view, kv(&key, "{")), [], "the last good one stays");
    assert_eq!(view.malformed.len(), 1);
    assert_eq!(delete(&mut view, &key), [roles(None)]);
}
