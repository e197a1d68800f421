//! Requests of one client at the same time: how few transactions they take, and that they do not harm each other. All
//! schedules of a few such requests: `interleavings.rs`.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeSet;
use std::future::Future;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};

use calidris_ipam::{
    AddressRequest, AssignError, AssignRequest, Assigned, CommitOutcome, Expect, ExtraWrite, Ipam,
    MemoryStore, Range, ReleaseRequest, Snapshot, Store, StoreError, Txn, Write, keys,
};
use serde_json::{Value, json};
use support::{at, invariants};

#[test]
fn a_hundred_requests_at_once_take_a_handful_of_transactions() {
    let ipam = client();
    let answers = all_at_once((0..100).map(|pod| assign(&ipam, pod_request(pod))));
    let given: BTreeSet<IpAddr> = answers
        .into_iter()
        .flat_map(|assigned| assigned.unwrap().addresses)
        .map(|assigned| assigned.address)
        .collect();
    assert_eq!(given.len(), 100);
    let released = all_at_once((0..100).map(|pod| release(&ipam, pod)));
    assert_eq!(released.iter().sum::<usize>(), 100);
    assert_eq!(violations(&ipam), Vec::<String>::new());
    let sizes = ipam.store().sizes.lock().unwrap();
    assert!(sizes.len() < 10, "{sizes:?}");
    assert!(
        sizes.iter().all(|&size| size <= 128),
        "etcd takes 128 operations: {sizes:?}"
    );
}

#[test]
fn a_refused_request_leaves_its_company_alone() {
    let ipam = client();
    let answers = all_at_once((0..10).map(|pod| {
        let mut request = pod_request(pod);
        match pod {
            3 => request.pools = vec!["none".to_owned()],
            // The same address twice.
            5 | 6 => request.v4 = AddressRequest::Exactly(vec!["10.0.0.77".parse().unwrap()]),
            _ => {}
        }
        assign(&ipam, request)
    }));
    let refused: Vec<usize> = (0..10).filter(|&pod| answers[pod].is_err()).collect();
    assert_eq!(refused, [3, 6]);
    let why = answers[6].as_ref().unwrap_err();
    assert_eq!(
        why.to_string(),
        "the requested address 10.0.0.77 is already assigned to net.5"
    );
    assert_eq!(violations(&ipam), Vec::<String>::new());
    assert!(ipam.store().sizes.lock().unwrap().len() <= 3);
}

#[test]
fn what_the_store_will_not_have_from_one_request_it_takes_from_the_others() {
    let ipam = client();
    let answers = all_at_once((0..10).map(|pod| {
        let mut request = pod_request(pod);
        let key = if pod == 4 {
            FORBIDDEN.to_owned()
        } else {
            format!("/endpoint/{pod}")
        };
        request
            .extra_writes
            .push(ExtraWrite::new(key, Expect::Absent, |_| Vec::new()));
        assign(&ipam, request)
    }));
    for (pod, answer) in answers.into_iter().enumerate() {
        match answer {
            Ok(_) => assert_ne!(pod, 4),
            Err(AssignError::Store(StoreError::PermissionDenied(_))) => assert_eq!(pod, 4),
            Err(other) => panic!("{pod}: {other}"),
        }
    }
    assert_eq!(violations(&ipam), Vec::<String>::new());
}

#[test]
fn an_endpoint_that_two_requests_want_to_make_is_made_by_one() {
    let ipam = client();
    let answers = all_at_once((0..3).map(|pod| {
        let mut request = pod_request(pod);
        // The first request goes alone; the two others are one group.
        let key = format!("/endpoint/{}", pod.min(1));
        let value = vec![u8::try_from(pod).unwrap()];
        request
            .extra_writes
            .push(ExtraWrite::new(key, Expect::Absent, move |_| value.clone()));
        assign(&ipam, request)
    }));
    assert_eq!(
        answers[2].as_ref().unwrap_err().to_string(),
        "/endpoint/1 was changed by somebody else"
    );
    assert_eq!(ipam.store().memory.dump()["/endpoint/1"], [1]);
}

#[test]
fn a_caller_that_goes_away_while_it_waits_is_not_served() {
    let ipam = client();
    let mut first = pin!(assign(&ipam, pod_request(0)));
    assert!(poll(first.as_mut()).is_pending());
    let mut last = pin!(assign(&ipam, pod_request(2)));
    {
        let mut gone = pin!(assign(&ipam, pod_request(1)));
        assert!(poll(gone.as_mut()).is_pending());
        assert!(poll(last.as_mut()).is_pending());
    }
    for mut future in [first, last] {
        while poll(future.as_mut()).is_pending() {}
    }
    assert_eq!(handles(&ipam), ["net.0", "net.2"]);
}

#[test]
fn a_caller_that_gives_up_in_the_group_of_another_is_not_served() {
    let ipam = client();
    let mut first = pin!(assign(&ipam, pod_request(0)));
    assert!(poll(first.as_mut()).is_pending());
    let mut leader = pin!(assign(&ipam, pod_request(1)));
    assert!(poll(leader.as_mut()).is_pending());
    {
        let mut gone = pin!(assign(&ipam, pod_request(2)));
        assert!(poll(gone.as_mut()).is_pending());
        while poll(first.as_mut()).is_pending() {}
        // The group of both is sent, and refused because of what somebody else has done.
        assert!(poll(leader.as_mut()).is_pending());
        put(&ipam, &format!("{}q", keys::IP_POOLS), &pool("q", "10.1.0.0/16"));
    }
    while poll(leader.as_mut()).is_pending() {}
    assert_eq!(handles(&ipam), ["net.0", "net.1"]);
    assert_eq!(violations(&ipam), Vec::<String>::new());
}

/// An agent's deadline passes while its request is part of the transaction that another leads: what it then releases is
/// released, whether that transaction takes effect before, or is overtaken by the release of a successor.
#[test]
fn what_was_given_up_while_its_transaction_was_under_way_is_released_for_good() {
    for is_replaced in [false, true] {
        let ipam = client();
        let mut first = pin!(assign(&ipam, pod_request(0)));
        assert!(poll(first.as_mut()).is_pending());
        let mut leader = pin!(assign(&ipam, pod_request(1)));
        assert!(poll(leader.as_mut()).is_pending());
        let mut gone = Box::pin(assign(&ipam, pod_request(2)));
        assert!(poll(gone.as_mut()).is_pending());
        while poll(first.as_mut()).is_pending() {}
        assert!(poll(leader.as_mut()).is_pending());
        drop(gone);
        let given_back = ReleaseRequest {
            handle_id: "net.2".to_owned(),
            fence: Some("n".to_owned()),
            ..ReleaseRequest::default()
        };
        if is_replaced {
            let successor = Ipam::new(&ipam.store().memory);
            support::now_or_never(successor.release(&given_back, at(0))).unwrap();
            while poll(leader.as_mut()).is_pending() {}
        } else {
            let mut release = pin!(ipam.release(&given_back, at(0)));
            let mut is_led = true;
            while poll(release.as_mut()).is_pending() {
                is_led = is_led && poll(leader.as_mut()).is_pending();
            }
        }
        assert!(
            !handles(&ipam).contains(&"net.2".to_owned()),
            "allocated, and nobody knows of it (replaced: {is_replaced})"
        );
        assert_eq!(violations(&ipam), Vec::<String>::new());
    }
}

#[test]
fn an_assignment_after_another_is_one_call_of_the_store() {
    let ipam = client();
    all_at_once([assign(&ipam, pod_request(0))].into_iter())
        .remove(0)
        .unwrap();
    for pod in 1..20 {
        let calls = ipam.store().calls();
        all_at_once([assign(&ipam, pod_request(pod))].into_iter())
            .remove(0)
            .unwrap();
        assert_eq!(ipam.store().calls() - calls, 1, "pod {pod}");
    }
    // What is there already is found nevertheless.
    let again = all_at_once([assign(&ipam, pod_request(7))].into_iter())
        .remove(0)
        .unwrap();
    assert_eq!(again.addresses.len(), 1);
    assert_eq!(handles(&ipam).len(), 20);
}

/// What somebody else changes between two assignments.
enum Meanwhile {
    Put(String, Value),
    Delete(String),
}

#[test]
fn what_was_changed_meanwhile_counts_although_nothing_is_read() {
    use Meanwhile::{Delete, Put};
    let key = |name: &str| format!("{}{name}", keys::IP_POOLS);
    let reservation = json!({"kind": "IPReservation", "apiVersion": "projectcalico.org/v3",
        "metadata": {"name": "r"}, "spec": {"reservedCIDRs": ["10.0.0.0/16"]}});
    let disabled = json!({"kind": "IPPool", "apiVersion": "projectcalico.org/v3", "metadata": {"name": "p"},
        "spec": {"cidr": "10.0.0.0/16", "disabled": true}});
    let selecting = json!({"kind": "IPPool", "apiVersion": "projectcalico.org/v3", "metadata": {"name": "p"},
        "spec": {"cidr": "10.0.0.0/16", "nodeSelector": "rack == 'a'"}});
    let locked = json!({"kind": "ClusterInformation", "apiVersion": "projectcalico.org/v3",
        "metadata": {"name": "default"}, "spec": {"datastoreReady": false}});
    // What happens, and which pool gives the next address.
    let rows = [
        (vec![], Some("10.0.")),
        (vec![Put(key("a"), pool("a", "10.1.0.0/16"))], Some("10.0.")),
        (vec![Put(key("p"), disabled)], None),
        (vec![Put(key("p"), selecting)], None),
        (vec![Delete(key("p"))], None),
        (
            vec![Delete(key("p")), Put(key("a"), pool("a", "10.1.0.0/16"))],
            Some("10.1."),
        ),
        (
            vec![Put(format!("{}r", keys::IP_RESERVATIONS), reservation)],
            None,
        ),
        (vec![Put(keys::CLUSTER_INFORMATION.to_owned(), locked)], None),
    ];
    for (number, (changes, expected)) in rows.into_iter().enumerate() {
        let ipam = client();
        all_at_once([assign(&ipam, pod_request(0))].into_iter())
            .remove(0)
            .unwrap();
        for change in changes {
            match change {
                Put(key, value) => put(&ipam, &key, &value),
                Delete(key) => write(&ipam, Write::Delete { key }),
            }
        }
        let answer = all_at_once([assign(&ipam, pod_request(1))].into_iter()).remove(0);
        let given = answer
            .ok()
            .map(|assigned| assigned.addresses[0].address.to_string());
        match expected {
            None => assert_eq!(given, None, "row {number}"),
            Some(start) => assert!(
                given.clone().unwrap().starts_with(start),
                "row {number}: {given:?}"
            ),
        }
    }
}

#[test]
fn nobody_is_refused_because_of_what_is_no_longer_so() {
    let ipam = Ipam::new(Slow::with(&pool("p", "10.0.0.0/31"), 31));
    for pod in 0..2 {
        all_at_once([assign(&ipam, pod_request(pod))].into_iter())
            .remove(0)
            .unwrap();
    }
    let other = Ipam::new(&ipam.store().memory);
    let request = ReleaseRequest {
        handle_id: "net.0".to_owned(),
        ..ReleaseRequest::default()
    };
    support::now_or_never(other.release(&request, at(0))).unwrap();
    all_at_once([assign(&ipam, pod_request(2))].into_iter())
        .remove(0)
        .unwrap();
    assert_eq!(handles(&ipam), ["net.1", "net.2"]);
}

/// A key that nobody may write.
const FORBIDDEN: &str = "/forbidden";

/// A store that lets others run before it answers, and notes the size of every transaction.
struct Slow {
    memory: MemoryStore,
    sizes: Mutex<Vec<usize>>,
    reads: AtomicUsize,
}

impl Slow {
    fn with(pool: &Value, block_size: u8) -> Self {
        let mut pool = pool.clone();
        pool["spec"]["blockSize"] = block_size.into();
        Self {
            memory: MemoryStore::with([(format!("{}p", keys::IP_POOLS), pool.to_string().into_bytes())]),
            sizes: Mutex::default(),
            reads: AtomicUsize::new(0),
        }
    }

    fn calls(&self) -> usize {
        self.reads.load(Ordering::Relaxed) + self.sizes.lock().unwrap().len()
    }
}

impl Store for Slow {
    async fn read(&self, ranges: &[Range]) -> Result<Snapshot, StoreError> {
        YieldOnce(false).await;
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.memory.read(ranges).await
    }

    async fn commit(&self, txn: &Txn) -> Result<CommitOutcome, StoreError> {
        YieldOnce(false).await;
        self.sizes
            .lock()
            .unwrap()
            .push(txn.guards.len().max(txn.writes.len()));
        if txn
            .writes
            .iter()
            .any(|write| matches!(write, Write::Put { key, .. } if key == FORBIDDEN))
        {
            return Err(StoreError::PermissionDenied("not this key".to_owned()));
        }
        self.memory.commit(txn).await
    }
}

struct YieldOnce(bool);

impl Future for YieldOnce {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        if std::mem::replace(&mut self.0, true) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}

fn client() -> Ipam<Slow> {
    Ipam::new(Slow::with(&pool("p", "10.0.0.0/16"), 26))
}

fn pool(name: &str, cidr: &str) -> Value {
    json!({"kind": "IPPool", "apiVersion": "projectcalico.org/v3", "metadata": {"name": name},
        "spec": {"cidr": cidr}})
}

fn put(ipam: &Ipam<Slow>, key: &str, value: &Value) {
    let (key, value) = (key.to_owned(), value.to_string().into_bytes());
    write(ipam, Write::Put { key, value });
}

fn write(ipam: &Ipam<Slow>, write: Write) {
    let txn = Txn {
        writes: vec![write],
        ..Txn::default()
    };
    support::now_or_never(ipam.store().memory.commit(&txn)).unwrap();
}

fn handles(ipam: &Ipam<Slow>) -> Vec<String> {
    let stored = ipam.store().memory.dump();
    let handles = stored.keys().filter_map(|key| key.strip_prefix(keys::HANDLES));
    handles.map(str::to_owned).collect()
}

fn pod_request(pod: usize) -> AssignRequest {
    let mut request = AssignRequest::new(&format!("net.{pod}"), "n");
    request.v4 = AddressRequest::Count(1);
    request
}

async fn assign(ipam: &Ipam<Slow>, request: AssignRequest) -> Result<Assigned, AssignError> {
    ipam.assign(&request, at(0)).await
}

async fn release(ipam: &Ipam<Slow>, pod: usize) -> usize {
    let request = ReleaseRequest {
        handle_id: format!("net.{pod}"),
        ..ReleaseRequest::default()
    };
    ipam.release(&request, at(0)).await.unwrap().addresses.len()
}

fn violations(ipam: &Ipam<Slow>) -> Vec<String> {
    invariants::violations(&ipam.store().memory.dump())
}

/// Runs all of `futures`, one step of each in turn.
fn all_at_once<T>(futures: impl Iterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let mut futures: Vec<_> = futures.map(Box::pin).collect();
    let mut answers: Vec<Option<T>> = futures.iter().map(|_| None).collect();
    while answers.iter().any(Option::is_none) {
        for (future, answer) in futures.iter_mut().zip(&mut answers) {
            if answer.is_none()
                && let Poll::Ready(value) = poll(future.as_mut())
            {
                *answer = Some(value);
            }
        }
    }
    answers.into_iter().flatten().collect()
}

fn poll<T>(future: Pin<&mut impl Future<Output = T>>) -> Poll<T> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}
