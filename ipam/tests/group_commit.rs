//! Requests of one client at the same time: how few transactions they take, and that they do not harm each other. All
//! schedules of a few such requests: `interleavings.rs`.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeSet;
use std::future::Future;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::Mutex;
use std::task::{Context, Poll, Waker};

use calidris_ipam::{
    AddressRequest, AssignError, AssignRequest, Assigned, CommitOutcome, Expect, ExtraWrite, Ipam,
    MemoryStore, Range, ReleaseRequest, Snapshot, Store, StoreError, Txn, Write, keys,
};
use serde_json::json;
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
    let stored = ipam.store().memory.dump();
    let handles: Vec<&str> = stored
        .keys()
        .filter_map(|key| key.strip_prefix(keys::HANDLES))
        .collect();
    assert_eq!(handles, ["net.0", "net.2"]);
}

/// A key that nobody may write.
const FORBIDDEN: &str = "/forbidden";

/// A store that lets others run before it answers, and notes the size of every transaction.
struct Slow {
    memory: MemoryStore,
    sizes: Mutex<Vec<usize>>,
}

impl Store for Slow {
    async fn read(&self, ranges: &[Range]) -> Result<Snapshot, StoreError> {
        YieldOnce(false).await;
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
    let pool = json!({"kind": "IPPool", "apiVersion": "projectcalico.org/v3", "metadata": {"name": "p"},
        "spec": {"cidr": "10.0.0.0/16"}});
    Ipam::new(Slow {
        memory: MemoryStore::with([(format!("{}p", keys::IP_POOLS), pool.to_string().into_bytes())]),
        sizes: Mutex::default(),
    })
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
