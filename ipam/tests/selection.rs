//! Which addresses are given, which are not, and what a refusal says.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use calidris_ipam::{
    AddressRequest, AllocationBlock, AssignError, AssignRefusal, AssignRequest, CommitOutcome, ErrorClass,
    Expect, ExtraDelete, ExtraWrite, IntendedUse, Ipam, MemoryStore, Range, ReleaseError, ReleaseOnly,
    ReleaseRefusal, ReleaseRequest, Snapshot, Store, StoreError, Tunnel, Txn, Write, keys,
};
use ipnetwork::IpNetwork;
use serde_json::{Value, json};
use support::{at, dump, invariants, now_or_never};

#[test]
fn both_families_come_in_one_transaction_or_not_at_all() {
    let cluster = Cluster::new(&[
        ("four", json!({"cidr": "10.0.0.0/24"})),
        ("six", json!({"cidr": "fd00::/126", "blockSize": 126})),
    ]);
    for pod in 0..4 {
        let given = cluster.ask("n", &format!("p{pod}"), dual).unwrap();
        assert_eq!(
            given,
            [
                format!("10.0.0.{}", cluster.offset("n") + pod),
                format!("fd00::{}", if pod == 0 { String::new() } else { pod.to_string() })
            ]
        );
    }
    let before = dump(cluster.ipam.store());
    let error = cluster.ask("n", "p4", dual).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("no free IPv6 address for node n (0 of 1 found): pool six:"),
        "{error}"
    );
    assert_eq!(dump(cluster.ipam.store()), before, "the IPv4 half was kept");
}

#[test]
fn a_refusal_names_every_pool_and_the_reason_against_it() {
    let mut cluster = Cluster::new(&[
        ("a-disabled", json!({"cidr": "10.1.0.0/24", "disabled": true})),
        (
            "b-manual",
            json!({"cidr": "10.2.0.0/24", "assignmentMode": "Manual"}),
        ),
        (
            "c-node",
            json!({"cidr": "10.3.0.0/24", "nodeSelector": "rack == 'r2'"}),
        ),
        (
            "d-namespace",
            json!({"cidr": "10.4.0.0/24", "namespaceSelector": "team == 'a'"}),
        ),
        (
            "e-tunnel",
            json!({"cidr": "10.5.0.0/24", "allowedUses": ["Tunnel"], "vxlanMode": "Always"}),
        ),
        ("f-broken", json!({"cidr": "10.6.0.0/24", "blockSize": 8})),
        (
            "g-selector",
            json!({"cidr": "10.7.0.0/24", "nodeSelector": "rack ="}),
        ),
        ("six", json!({"cidr": "fd00::/64"})),
    ]);
    cluster.node("n", &[("rack", "r1")]);
    let error = cluster.ask("n", "p", one).unwrap_err();
    assert_eq!(error.class(), ErrorClass::Refused);
    let AssignError::Refused(AssignRefusal::Exhausted { pools, .. }) = &error else {
        panic!("{error}")
    };
    let reports: BTreeMap<&str, &str> = pools.iter().map(|r| (r.pool.as_str(), r.why.as_str())).collect();
    let expected = [
        ("a-disabled", "disabled"),
        ("b-manual", "assignment mode is Manual"),
        ("c-node", "nodeSelector \"rack == 'r2'\" does not select node n"),
        (
            "d-namespace",
            "namespaceSelector \"team == 'a'\" does not select the namespace",
        ),
        ("e-tunnel", "allowedUses [\"Tunnel\"] does not have Workload"),
        (
            "f-broken",
            "not a valid IPPool: blockSize 8 is not between 24 and 32 for 10.6.0.0/24",
        ),
        (
            "g-selector",
            "nodeSelector: selector \"rack =\": at byte 5: expected one of ==, !=, in, not in, contains, starts with, ends with",
        ),
    ];
    assert_eq!(reports, BTreeMap::from(expected));
    // Each can be used by who fits.
    assert!(
        cluster
            .ask("n", "t", |r| {
                one(r);
                r.intended_use = IntendedUse::Tunnel(Tunnel::Vxlan);
            })
            .unwrap()[0]
            .starts_with("10.5.")
    );
    // The labels of a namespace are in its Profile.
    let in_shop = |r: &mut AssignRequest| {
        one(r);
        r.namespace = Some("shop".to_owned());
    };
    assert!(cluster.ask("n", "v", in_shop).is_err());
    let profile = json!({"kind": "Profile", "apiVersion": "projectcalico.org/v3", "metadata": {"name": "kns.shop"},
        "spec": {"labelsToApply": {"pcns.team": "a", "team": "b"}}});
    cluster.put(&format!("{}shop", keys::NAMESPACE_PROFILES), &profile);
    assert!(cluster.ask("n", "w", in_shop).unwrap()[0].starts_with("10.4."));
    assert!(
        cluster
            .ask("n", "m", |r| {
                one(r);
                r.pools = vec!["10.2.0.0/24".to_owned()];
            })
            .unwrap()[0]
            .starts_with("10.2.")
    );
    cluster.node("n2", &[("rack", "r2")]);
    assert!(cluster.ask("n2", "x", one).unwrap()[0].starts_with("10.3."));
}

#[test]
fn a_namespace_can_be_selected_by_its_name_alone() {
    for (label, is_given) in [
        ("kubernetes.io/metadata.name == 'shop'", true),
        ("projectcalico.org/name in {'shop', 'bank'}", true),
        ("projectcalico.org/name != 'shop'", false),
        ("all()", true),
        ("has(team)", false),
    ] {
        let cluster = Cluster::new(&[("p", json!({"cidr": "10.0.0.0/24", "namespaceSelector": label}))]);
        let given = cluster.ask("n", "h", |r| {
            one(r);
            r.namespace = Some("shop".to_owned());
        });
        assert_eq!(given.is_ok(), is_given, "{label}");
    }
}

#[test]
fn a_pool_that_selects_by_label_needs_the_node() {
    let cluster = Cluster::new(&[("p", json!({"cidr": "10.0.0.0/24", "nodeSelector": "has(rack)"}))]);
    let error = cluster.ask("nobody", "p", one).unwrap_err();
    assert_eq!(
        error.to_string(),
        "pool p selects nodes by label, but there is no Node resource nobody"
    );
}

#[test]
fn requested_pools_are_used_in_the_order_of_the_request() {
    let cluster = Cluster::new(&[
        ("a", json!({"cidr": "10.1.0.0/30", "blockSize": 30})),
        ("b", json!({"cidr": "10.2.0.0/30", "blockSize": 30})),
    ]);
    let both = |r: &mut AssignRequest| {
        r.v4 = AddressRequest::Count(6);
        r.pools = vec!["b".to_owned(), "a".to_owned()];
    };
    let given = cluster.ask("n", "p", both).unwrap();
    assert_eq!(
        given,
        [
            "10.2.0.0", "10.2.0.1", "10.2.0.2", "10.2.0.3", "10.1.0.0", "10.1.0.1"
        ]
    );
}

#[test]
fn a_node_at_its_limit_of_blocks_is_told_so_and_borrows_nothing() {
    let mut cluster = Cluster::new(&[
        ("p", json!({"cidr": "10.0.0.0/29", "blockSize": 31})),
        ("q", json!({"cidr": "10.1.0.0/29", "blockSize": 31})),
    ]);
    let from = |pool: &str, count| {
        let pools = vec![pool.to_owned()];
        move |r: &mut AssignRequest| (r.pools, r.v4) = (pools.clone(), AddressRequest::Count(count))
    };
    cluster.put(
        keys::IPAM_CONFIG,
        &json!({"auto_allocate_blocks": true, "maxBlocksPerHost": 2}),
    );
    assert_eq!(cluster.ask("n", "a", from("p", 4)).unwrap().len(), 4);
    cluster.ask("other", "c", from("p", 1)).unwrap();
    let error = cluster.ask("n", "b", from("p", 1)).unwrap_err().to_string();
    assert!(
        error.contains("pool p: the node has 2 blocks, no more than 2 are allowed (maxBlocksPerHost)"),
        "{error}"
    );
    // What counts is what it has in the pools that the request may use.
    assert_eq!(cluster.ask("n", "d", from("q", 3)).unwrap().len(), 3);
    assert_eq!(cluster.blocks_of("n").len(), 4);
    // The last address of its own blocks.
    assert!(cluster.ask("n", "e", one).unwrap()[0].starts_with("10.1.0."));
    let error = cluster.ask("n", "f", one).unwrap_err().to_string();
    assert!(error.contains("the node has 4 blocks"), "{error}");
}

#[test]
fn half_a_claim_of_calico_is_completed() {
    let mut cluster = Cluster::new(&[("p", json!({"cidr": "10.0.0.0/16"}))]);
    let cidr: IpNetwork = "10.0.77.64/26".parse().unwrap();
    cluster.put(
        &keys::affinity("n", cidr),
        &json!({"state": "pending", "deleted": false}),
    );
    assert_eq!(cluster.ask("n", "p", one).unwrap(), ["10.0.77.64"]);
    assert_eq!(
        dump(cluster.ipam.store())[&keys::affinity("n", cidr)],
        r#"{"state":"confirmed","deleted":false}"#
    );
}

#[test]
fn an_affinity_to_a_block_of_somebody_else_is_removed() {
    let mut cluster = Cluster::new(&[("p", json!({"cidr": "10.0.0.0/16"}))]);
    cluster.ask("other", "a", one).unwrap();
    let theirs = cluster.blocks_of("other")[0];
    cluster.put(
        &keys::affinity("n", theirs),
        &json!({"state": "pending", "deleted": false}),
    );
    cluster.ask("n", "b", one).unwrap();
    assert!(!dump(cluster.ipam.store()).contains_key(&keys::affinity("n", theirs)));
    cluster.holds();
}

#[test]
fn an_empty_block_is_taken_from_another_node_after_a_minute_and_not_before() {
    let cluster = Cluster::new(&[("p", json!({"cidr": "10.0.0.0/30", "blockSize": 30}))]);
    cluster.ask("old", "a", one).unwrap();
    cluster.release("a");
    cluster.clock.store(30, Ordering::Relaxed);
    cluster.ask("young", "b", one).unwrap();
    assert_eq!(
        cluster.blocks_of("young"),
        Vec::<IpNetwork>::new(),
        "borrowed, not taken"
    );
    cluster.release("b");
    cluster.clock.store(90, Ordering::Relaxed);
    cluster.ask("young", "c", one).unwrap();
    assert_eq!(cluster.blocks_of("young"), ["10.0.0.0/30".parse().unwrap()]);
    assert_eq!(cluster.blocks_of("old"), Vec::<IpNetwork>::new());
    cluster.holds();
}

#[test]
fn a_block_that_is_wholly_reserved_is_not_claimed() {
    let mut cluster = Cluster::new(&[("p", json!({"cidr": "10.0.0.0/28", "blockSize": 29}))]);
    cluster.put(
        &format!("{}r", keys::IP_RESERVATIONS),
        &json!({"kind": "IPReservation", "apiVersion": "projectcalico.org/v3", "metadata": {"name": "r"},
            "spec": {"reservedCIDRs": ["10.0.0.0/29"]}}),
    );
    let given = cluster
        .ask("n", "a", |r| r.v4 = AddressRequest::Count(8))
        .unwrap();
    assert!(
        given
            .iter()
            .all(|address| address.parse::<IpAddr>().unwrap() >= "10.0.0.8".parse::<IpAddr>().unwrap())
    );
    assert_eq!(cluster.blocks_of("n"), ["10.0.0.8/29".parse().unwrap()]);
    assert!(cluster.ask("n", "b", one).is_err());
}

#[test]
fn addresses_asked_for_by_name_are_given_or_refused_with_the_owner() {
    let cluster = Cluster::new(&[
        ("p", json!({"cidr": "10.0.0.0/24", "assignmentMode": "Manual"})),
        ("off", json!({"cidr": "10.1.0.0/24", "disabled": true})),
    ]);
    let named = |addresses: &'static [&'static str]| {
        move |r: &mut AssignRequest| {
            r.v4 = AddressRequest::Exactly(addresses.iter().map(|a| a.parse().unwrap()).collect());
        }
    };
    let given = cluster
        .ask("n", "a", named(&["10.0.0.200", "10.0.0.3", "10.0.0.201"]))
        .unwrap();
    assert_eq!(given, ["10.0.0.200", "10.0.0.3", "10.0.0.201"]);
    for (addresses, expected) in [
        (
            &["10.0.0.4", "10.0.0.3"] as &[&str],
            "the requested address 10.0.0.3 is already assigned to a",
        ),
        (
            &["10.1.0.1"],
            "the requested address 10.1.0.1 is not in an enabled pool",
        ),
        (
            &["192.0.2.1"],
            "the requested address 192.0.2.1 is not in an enabled pool",
        ),
        (&["fd00::1"], "invalid request: fd00::1 is no IPv4 address"),
        (
            &["10.0.0.9", "10.0.0.9"],
            "invalid request: 10.0.0.9 is asked for twice",
        ),
    ] {
        let before = dump(cluster.ipam.store());
        assert_eq!(
            cluster.ask("n", "b", named(addresses)).unwrap_err().to_string(),
            expected
        );
        assert_eq!(dump(cluster.ipam.store()), before);
    }
}

#[test]
fn requests_that_make_no_sense_are_refused() {
    let cluster = Cluster::new(&[("p", json!({"cidr": "10.0.0.0/24"}))]);
    for (handle, node, count) in [
        ("", "n", 1),
        ("a/b", "n", 1),
        ("a", "", 1),
        ("a", "n/m", 1),
        ("a\r", "n", 1),
        ("a", "n", 0),
        ("a", "n", 17),
    ] {
        let error = cluster
            .ask(node, handle, |r| r.v4 = AddressRequest::Count(count))
            .unwrap_err();
        assert!(
            matches!(error, AssignError::Refused(AssignRefusal::InvalidRequest(_))),
            "{handle:?} {node:?} {count}: {error}"
        );
    }
}

#[test]
fn a_release_that_names_an_earlier_allocation_is_refused() {
    let cluster = Cluster::new(&[("p", json!({"cidr": "10.0.0.0/30", "blockSize": 30}))]);
    let address: IpAddr = "10.0.0.2".parse().unwrap();
    let take = |r: &mut AssignRequest| r.v4 = AddressRequest::Exactly(vec!["10.0.0.2".parse().unwrap()]);
    cluster.ask("n", "vm", take).unwrap();
    let first = now_or_never(cluster.ipam.addresses_of_handle("vm")).unwrap()[0].sequence_number;
    cluster.release("vm");
    cluster.ask("n", "vm", take).unwrap();
    let late = |sequence_number| ReleaseRequest {
        handle_id: "vm".to_owned(),
        only: vec![ReleaseOnly {
            address,
            sequence_number: Some(sequence_number),
        }],
        ..ReleaseRequest::default()
    };
    let error = now_or_never(cluster.ipam.release(&late(first), at(0))).unwrap_err();
    assert_eq!(error.class(), ErrorClass::Reevaluate);
    let ReleaseError::Refused(ReleaseRefusal::Reassigned { present, .. }) = error else {
        panic!("{error}")
    };
    assert_eq!(
        now_or_never(cluster.ipam.release(&late(present), at(0)))
            .unwrap()
            .addresses
            .len(),
        1
    );
    cluster.holds();
}

#[test]
fn the_endpoint_is_written_and_deleted_with_the_addresses_or_nothing_is() {
    let mut cluster = Cluster::new(&[("p", json!({"cidr": "10.0.0.0/24"}))]);
    let key = keys::namespaced_resource("workloadendpoints", "shop", "w");
    let with_endpoint = |expect| {
        let key = key.clone();
        move |r: &mut AssignRequest| {
            one(r);
            r.extra_writes.push(ExtraWrite::new(key, expect, |given| {
                given[0].network().to_string().into_bytes()
            }));
        }
    };
    let given = cluster.ask("n", "a", with_endpoint(Expect::Absent)).unwrap();
    assert_eq!(dump(cluster.ipam.store())[&key], format!("{}/32", given[0]));
    let before = dump(cluster.ipam.store());
    for expect in [Expect::Absent, Expect::Unchanged(1)] {
        let error = cluster.ask("n", "b", with_endpoint(expect)).unwrap_err();
        assert_eq!(
            error,
            AssignError::Refused(AssignRefusal::ExtraConflict { key: key.clone() })
        );
        assert_eq!(error.class(), ErrorClass::Reevaluate);
    }
    assert_eq!(dump(cluster.ipam.store()), before);
    let delete = |expect| ReleaseRequest {
        handle_id: "a".to_owned(),
        extra_deletes: vec![ExtraDelete {
            key: key.clone(),
            expect,
        }],
        ..ReleaseRequest::default()
    };
    let error = now_or_never(cluster.ipam.release(&delete(Expect::Unchanged(1)), at(0))).unwrap_err();
    assert_eq!(error.class(), ErrorClass::Reevaluate);
    assert_eq!(dump(cluster.ipam.store()), before);
    assert_eq!(
        now_or_never(cluster.ipam.release(&delete(Expect::Anything), at(0)))
            .unwrap()
            .addresses
            .len(),
        1
    );
    assert!(!dump(cluster.ipam.store()).contains_key(&key));
    // An endpoint whose addresses are gone already is deleted all the same.
    cluster.put(&key, &json!({}));
    now_or_never(cluster.ipam.release(&delete(Expect::Anything), at(0))).unwrap();
    assert!(!dump(cluster.ipam.store()).contains_key(&key));
}

#[test]
fn a_block_that_cannot_be_read_is_left_as_it_is_and_another_used() {
    let cluster = Cluster::new(&[("p", json!({"cidr": "10.0.0.0/29", "blockSize": 30}))]);
    cluster.ask("n", "a", one).unwrap();
    let broken = keys::block(cluster.blocks_of("n")[0]);
    let mut values = cluster.ipam.store().dump();
    values.insert(broken.clone(), b"{\"cidr\":".to_vec());
    let cluster = Cluster {
        ipam: Ipam::new(MemoryStore::with(values)),
        ..cluster
    };
    let given = cluster.ask("n", "b", one).unwrap();
    assert_eq!(given.len(), 1);
    assert_eq!(dump(cluster.ipam.store())[&broken], "{\"cidr\":");
}

#[test]
fn a_handle_with_very_many_blocks_is_released_in_several_transactions() {
    let cluster = Cluster::new(&[("p", json!({"cidr": "10.0.0.0/22", "blockSize": 32}))]);
    for round in 0..4 {
        let addresses = (0..16).map(|i| IpAddr::from([10, 0, round, i])).collect();
        cluster
            .ask("n", "many", |r| r.v4 = AddressRequest::Exactly(addresses))
            .unwrap();
    }
    let request = ReleaseRequest {
        handle_id: "many".to_owned(),
        ..ReleaseRequest::default()
    };
    let released = now_or_never(cluster.ipam.release(&request, at(0))).unwrap();
    assert_eq!((released.addresses.len(), released.more), (64, false));
    cluster.holds();
    assert!(!dump(cluster.ipam.store()).contains_key(&keys::handle("many")));
}

#[test]
fn a_claim_reads_as_little_among_five_thousand_blocks_as_among_ten() {
    let claim = |others: u32, is_taken: bool| {
        let cluster = Cluster::new(&[("p", json!({"cidr": "10.0.0.0/8"}))]);
        let mut taken: Vec<IpNetwork> = (0..others)
            // Spread evenly: every 52nd block of 262,144 is taken.
            .map(|index| std::net::Ipv4Addr::from(0x0a00_0000 + index * 52 * 64))
            .map(|address| IpNetwork::new(address.into(), 26).unwrap())
            .collect();
        let mut request = AssignRequest::new("h", "the-node");
        one(&mut request);
        let mut values = cluster.ipam.store().dump();
        if is_taken {
            let wanted = now_or_never(cluster.ipam.assign(&request, at(1))).unwrap();
            taken.extend(wanted.claimed_blocks);
        }
        for (index, cidr) in taken.into_iter().enumerate() {
            let block = AllocationBlock::claim(cidr, &format!("node-{index}"), at(0));
            values.insert(keys::block(cidr), block.to_json());
        }
        let store = Counting {
            inner: MemoryStore::with(values),
            calls: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
        };
        let ipam = Ipam::new(&store);
        let assigned = now_or_never(ipam.assign(&request, at(1))).unwrap();
        assert_eq!(assigned.claimed_blocks.len(), 1);
        (
            store.calls.load(Ordering::Relaxed),
            store.bytes.load(Ordering::Relaxed),
        )
    };
    let (few, many, met) = (claim(10, false), claim(5_000, false), claim(5_000, true));
    assert_eq!(few.0, 2, "a claim is a read and a transaction");
    assert_eq!(many.0, few.0);
    assert_eq!(met.0, 3, "one transaction more if the first block is taken");
    assert!(many.1.max(met.1) <= 64 << 10, "{} bytes read", many.1.max(met.1));
}

/// A request for one IPv4 address.
fn one(request: &mut AssignRequest) {
    request.v4 = AddressRequest::Count(1);
}

/// A request for one address of each family.
fn dual(request: &mut AssignRequest) {
    request.v4 = AddressRequest::Count(1);
    request.v6 = AddressRequest::Count(1);
}

struct Cluster {
    ipam: Ipam<MemoryStore>,
    clock: AtomicUsize,
}

impl Cluster {
    fn new(pools: &[(&str, Value)]) -> Self {
        let cluster = Self {
            ipam: Ipam::new(MemoryStore::default()),
            clock: AtomicUsize::new(0),
        };
        for (name, spec) in pools {
            let pool = json!({"kind": "IPPool", "apiVersion": "projectcalico.org/v3", "metadata": {"name": name},
                "spec": spec});
            write(&cluster.ipam, &format!("{}{name}", keys::IP_POOLS), &pool);
        }
        cluster
    }

    fn put(&mut self, key: &str, value: &Value) {
        write(&self.ipam, key, value);
    }

    fn node(&mut self, name: &str, labels: &[(&str, &str)]) {
        let labels: BTreeMap<&str, &str> = labels.iter().copied().collect();
        let node = json!({"kind": "Node", "apiVersion": "projectcalico.org/v3",
            "metadata": {"name": name, "labels": labels}, "spec": {}});
        self.put(&keys::resource("nodes", name), &node);
    }

    fn ask(
        &self,
        node: &str,
        handle: &str,
        ask: impl FnOnce(&mut AssignRequest),
    ) -> Result<Vec<String>, AssignError> {
        let mut request = AssignRequest::new(handle, node);
        ask(&mut request);
        let now = at(i64::try_from(self.clock.load(Ordering::Relaxed)).unwrap());
        let assigned = now_or_never(self.ipam.assign(&request, now))?;
        Ok(assigned
            .addresses
            .iter()
            .map(|assigned| assigned.address.to_string())
            .collect())
    }

    fn release(&self, handle: &str) {
        let request = ReleaseRequest {
            handle_id: handle.to_owned(),
            ..ReleaseRequest::default()
        };
        assert!(
            !now_or_never(self.ipam.release(&request, at(0)))
                .unwrap()
                .addresses
                .is_empty()
        );
    }

    fn blocks_of(&self, node: &str) -> Vec<IpNetwork> {
        let blocks = now_or_never(self.ipam.affinities(node)).unwrap();
        blocks
            .into_iter()
            .filter(|block| block.state.is_confirmed())
            .map(|block| block.cidr)
            .collect()
    }

    /// The last byte of the node's first IPv4 block.
    fn offset(&self, node: &str) -> usize {
        match self.blocks_of(node)[0].ip() {
            IpAddr::V4(address) => usize::from(address.octets()[3]),
            IpAddr::V6(address) => panic!("{address} is IPv6"),
        }
    }

    fn holds(&self) {
        assert_eq!(
            invariants::violations(&self.ipam.store().dump()),
            Vec::<String>::new()
        );
    }
}

fn write(ipam: &Ipam<MemoryStore>, key: &str, value: &Value) {
    let writes = vec![Write::Put {
        key: key.to_owned(),
        value: value.to_string().into_bytes(),
    }];
    now_or_never(ipam.store().commit(&Txn {
        writes,
        ..Txn::default()
    }))
    .unwrap();
}

/// Counts calls and the bytes that reads bring.
struct Counting {
    inner: MemoryStore,
    calls: AtomicUsize,
    bytes: AtomicUsize,
}

impl Counting {
    fn count(&self, read: &Snapshot) {
        let bytes: usize = read.kvs.iter().map(|kv| kv.key.len() + kv.value.len()).sum();
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl Store for Counting {
    async fn read(&self, ranges: &[Range]) -> Result<Snapshot, StoreError> {
        let snapshot = self.inner.read(ranges).await?;
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.count(&snapshot);
        Ok(snapshot)
    }

    async fn commit(&self, txn: &Txn) -> Result<CommitOutcome, StoreError> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let outcome = self.inner.commit(txn).await?;
        if let CommitOutcome::Conflict(present) = &outcome {
            self.count(present);
        }
        Ok(outcome)
    }
}
