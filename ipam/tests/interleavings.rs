//! All interleavings of small sets of requests on the memory store, one store call at a time; with a client that dies
//! between any two calls, or a commit whose answer is lost (not applied, applied, or applied at any later moment).
//!
//! After every call the invariants hold. After the dead client's handle was released, everything is accounted for.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use calidris_ipam::{
    AddressRequest, AllocationBlock, AssignRequest, CommitOutcome, Ipam, MemoryStore, Range, ReleaseOnly,
    ReleaseRequest, Snapshot, Store, StoreError, Txn, keys,
};
use serde_json::json;
use support::{at, invariants, now_or_never};

/// What goes wrong in a run, at most once.
#[derive(Clone, Copy, PartialEq)]
enum Trouble {
    Nothing,
    /// A client stops for ever between two calls.
    Crash,
    /// The answer to a commit is lost.
    LostAnswer,
}

#[test]
fn two_nodes_that_claim_in_the_same_pool() {
    for trouble in [Trouble::Nothing, Trouble::Crash, Trouble::LostAnswer] {
        explore(
            "two claims",
            trouble,
            &Setup::new(30),
            &[assign("n1", "a", 1), assign("n2", "b", 1)],
        );
    }
}

#[test]
fn two_requests_of_one_node_for_the_last_addresses_of_a_block() {
    for trouble in [Trouble::Nothing, Trouble::Crash, Trouble::LostAnswer] {
        explore(
            "one node",
            trouble,
            &Setup::new(31),
            &[assign("n1", "a", 1), assign("n1", "b", 2)],
        );
    }
}

#[test]
fn a_release_and_an_assignment_that_needs_what_is_released() {
    let setup = Setup::new(31).assigned(&[("n1", "old", 2)]);
    for trouble in [Trouble::Nothing, Trouble::Crash, Trouble::LostAnswer] {
        explore(
            "release, assign",
            trouble,
            &setup,
            &[release("old"), assign("n2", "b", 1)],
        );
    }
}

#[test]
fn two_releases_of_the_same_handle() {
    let setup = Setup::new(30).assigned(&[("n1", "old", 2), ("n2", "other", 1)]);
    for trouble in [Trouble::Nothing, Trouble::Crash, Trouble::LostAnswer] {
        explore("two releases", trouble, &setup, &[release("old"), release("old")]);
    }
}

#[test]
fn the_same_request_made_twice_at_once_is_one_request() {
    for trouble in [Trouble::Nothing, Trouble::LostAnswer] {
        let requests = [assign("n1", "a", 1), assign("n1", "a", 1)];
        explore("one request twice", trouble, &Setup::new(30), &requests);
    }
}

#[test]
fn an_empty_block_that_its_node_uses_again_while_another_takes_it() {
    // One block in the pool, of n1, empty and old.
    let mut setup = Setup::new(31).assigned(&[("n1", "old", 1)]);
    setup.release("old");
    for trouble in [Trouble::Nothing, Trouble::Crash, Trouble::LostAnswer] {
        explore(
            "take over",
            trouble,
            &setup,
            &[assign("n1", "a", 1), assign("n2", "b", 1)],
        );
    }
}

#[test]
fn a_late_release_of_an_address_that_was_given_to_somebody_else_meanwhile() {
    let setup = Setup::new(31).assigned(&[("n1", "old", 1)]);
    let stale = setup.sequence_number("old");
    let late = Request::Release("old".to_owned(), Some(stale));
    let requests = [release("old"), late, assign("n1", "old", 1)];
    explore("late release", Trouble::Nothing, &setup, &requests);
}

#[test]
fn three_nodes_that_claim_in_the_same_pool() {
    let requests = [assign("n1", "a", 1), assign("n2", "b", 1), assign("n3", "c", 1)];
    explore("three claims", Trouble::Nothing, &Setup::new(30), &requests);
}

fn assign(node: &str, handle: &str, count: usize) -> Request {
    Request::Assign {
        node: node.to_owned(),
        handle: handle.to_owned(),
        count,
    }
}

fn release(handle: &str) -> Request {
    Request::Release(handle.to_owned(), None)
}

#[derive(Clone, Debug)]
enum Request {
    Assign {
        node: String,
        handle: String,
        count: usize,
    },
    Release(String, Option<u64>),
}

/// The addresses of a finished assignment; `None` for refusals and releases.
type Given = Option<BTreeSet<IpAddr>>;
type Client<'a> = Pin<Box<dyn Future<Output = Given> + 'a>>;

impl Request {
    async fn run(&self, store: impl Store) -> Given {
        let ipam = Ipam::new(store);
        match self {
            Self::Assign { node, handle, count } => {
                let mut request = AssignRequest::new(handle, node);
                request.v4 = AddressRequest::Count(*count);
                let assigned = ipam.assign(&request, at(1000)).await.ok()?;
                assert_eq!(assigned.addresses.len(), *count);
                Some(
                    assigned
                        .addresses
                        .iter()
                        .map(|assigned| assigned.address)
                        .collect(),
                )
            }
            Self::Release(handle, sequence_number) => {
                let address = "10.0.0.0".parse().unwrap();
                let only = sequence_number.map(|number| ReleaseOnly {
                    address,
                    sequence_number: Some(number),
                });
                let only = only.into_iter().collect();
                let request = ReleaseRequest {
                    handle_id: handle.clone(),
                    only,
                    ..ReleaseRequest::default()
                };
                let _ = ipam.release(&request).await;
                None
            }
        }
    }

    fn handle(&self) -> &str {
        match self {
            Self::Assign { handle, .. } | Self::Release(handle, _) => handle,
        }
    }
}

/// The keys that a run begins with.
#[derive(Clone)]
struct Setup {
    kvs: BTreeMap<String, Vec<u8>>,
}

impl Setup {
    /// One pool 10.0.0.0/`prefix` with blocks of two addresses.
    fn new(prefix: u8) -> Self {
        let cidr = format!("10.0.0.0/{prefix}");
        let pool = json!({"kind": "IPPool", "apiVersion": "projectcalico.org/v3", "metadata": {"name": "p"},
            "spec": {"cidr": cidr, "blockSize": 31}});
        Self {
            kvs: BTreeMap::from([(format!("{}p", keys::IP_POOLS), pool.to_string().into_bytes())]),
        }
    }

    /// With addresses assigned before: node, handle, count.
    fn assigned(mut self, assigned: &[(&str, &str, usize)]) -> Self {
        for &(node, handle, count) in assigned {
            let store = self.store();
            let mut request = AssignRequest::new(handle, node);
            request.v4 = AddressRequest::Count(count);
            now_or_never(Ipam::new(&*store).assign(&request, at(0))).unwrap();
            self.kvs = store.dump();
        }
        self
    }

    fn release(&mut self, handle: &str) {
        let store = self.store();
        let request = ReleaseRequest {
            handle_id: handle.to_owned(),
            ..ReleaseRequest::default()
        };
        now_or_never(Ipam::new(&*store).release(&request)).unwrap();
        self.kvs = store.dump();
    }

    fn sequence_number(&self, handle: &str) -> u64 {
        let store = self.store();
        now_or_never(Ipam::new(&*store).addresses_of_handle(handle)).unwrap()[0].sequence_number
    }

    fn store(&self) -> Arc<MemoryStore> {
        Arc::new(MemoryStore::with(self.kvs.clone()))
    }
}

/// Runs every schedule of `requests`.
fn explore(what: &str, trouble: Trouble, setup: &Setup, requests: &[Request]) {
    let script = Script::default();
    let mut runs = 0;
    loop {
        run_once(what, trouble, setup, requests, &script);
        runs += 1;
        if !script.advance() {
            break;
        }
    }
    // A schedule that is never explored proves nothing: clients with two and three calls already have ten.
    assert!(runs >= 10, "{what}: only {runs} schedules");
}

fn run_once(what: &str, trouble: Trouble, setup: &Setup, requests: &[Request], script: &Script) {
    let world = World {
        store: setup.store(),
        script,
        trouble: Mutex::new(trouble),
        in_flight: Mutex::default(),
        changed: Mutex::default(),
    };
    let mut clients: Vec<Option<Client<'_>>> = requests.iter().map(|r| Some(client(r, &world))).collect();
    let mut context = Context::from_waker(Waker::noop());
    // Up to the first call, which no schedule can tell from having done nothing.
    for client in clients.iter_mut().flatten() {
        assert!(client.as_mut().poll(&mut context).is_pending());
    }
    let mut given: Vec<Given> = vec![None; clients.len()];
    let mut dead = None;
    loop {
        let live: Vec<usize> = (0..clients.len())
            .filter(|&index| clients[index].is_some())
            .collect();
        if live.is_empty() {
            break;
        }
        let late = usize::from(!world.in_flight.lock().unwrap().is_empty());
        let crashes = if *world.trouble.lock().unwrap() == Trouble::Crash {
            live.len()
        } else {
            0
        };
        let choice = script.choose(live.len() + late + crashes);
        if choice < live.len() {
            let index = live[choice];
            if let Poll::Ready(result) = clients[index].as_mut().unwrap().as_mut().poll(&mut context) {
                given[index] = result;
                clients[index] = None;
            }
        } else if choice < live.len() + late {
            world.deliver();
        } else {
            let index = live[choice - live.len() - late];
            *world.trouble.lock().unwrap() = Trouble::Nothing;
            clients[index] = None;
            dead = Some(index);
        }
        world.check_if_changed(what, script);
    }
    world.deliver();
    world.check(what, script);
    recover(&world, requests, &given, dead);
    world.check(what, script);
    world.check_given(what, requests, &given, dead);
}

fn client<'a>(request: &'a Request, world: &'a World<'a>) -> Client<'a> {
    let store = Stepped(world);
    Box::pin(async move { request.run(store).await })
}

/// What an agent does at its next start: it releases what it does not know of.
fn recover(world: &World<'_>, requests: &[Request], given: &[Given], dead: Option<usize>) {
    for (index, request) in requests.iter().enumerate() {
        let unsettled =
            Some(index) == dead || (given[index].is_none() && matches!(request, Request::Assign { .. }));
        let known_by_another = requests
            .iter()
            .zip(given)
            .any(|(other, given)| other.handle() == request.handle() && given.is_some());
        if unsettled && !known_by_another {
            let release = ReleaseRequest {
                handle_id: request.handle().to_owned(),
                ..ReleaseRequest::default()
            };
            now_or_never(Ipam::new(&*world.store).release(&release)).unwrap();
        }
    }
}

/// A store whose calls happen when the schedule says so, and whose commits may lose their answer.
struct World<'a> {
    store: Arc<MemoryStore>,
    script: &'a Script,
    trouble: Mutex<Trouble>,
    in_flight: Mutex<Vec<Txn>>,
    changed: Mutex<bool>,
}

impl World<'_> {
    fn deliver(&self) {
        *self.changed.lock().unwrap() = true;
        for txn in self.in_flight.lock().unwrap().drain(..) {
            now_or_never(self.store.commit(&txn)).unwrap();
        }
    }

    fn commit(&self, txn: &Txn) -> Result<CommitOutcome, StoreError> {
        *self.changed.lock().unwrap() = true;
        let fates = if *self.trouble.lock().unwrap() == Trouble::LostAnswer {
            4
        } else {
            1
        };
        let fate = self.script.choose(fates);
        if fate == 0 {
            return now_or_never(self.store.commit(txn));
        }
        *self.trouble.lock().unwrap() = Trouble::Nothing;
        match fate {
            1 => {}
            2 => drop(now_or_never(self.store.commit(txn)).unwrap()),
            _ => self.in_flight.lock().unwrap().push(txn.clone()),
        }
        Err(StoreError::UnknownOutcome("as the schedule wants it".to_owned()))
    }

    fn check_if_changed(&self, what: &str, script: &Script) {
        if std::mem::take(&mut *self.changed.lock().unwrap()) {
            self.check(what, script);
        }
    }

    fn check(&self, what: &str, script: &Script) {
        let violations = invariants::violations(&self.store.dump());
        assert!(violations.is_empty(), "{what}: {violations:?} after {script:?}");
    }

    /// Who was told that it has addresses has them (unless it was asked to release them); nobody else has any.
    fn check_given(&self, what: &str, requests: &[Request], given: &[Given], dead: Option<usize>) {
        let mut held: BTreeMap<String, BTreeSet<IpAddr>> = BTreeMap::new();
        for (key, value) in self.store.dump() {
            if keys::parse_block(&key).is_some() {
                for allocation in AllocationBlock::parse(&key, &value).unwrap().allocations() {
                    held.entry(allocation.attribute.handle_id.unwrap())
                        .or_default()
                        .insert(allocation.address);
                }
            }
        }
        for (index, request) in requests.iter().enumerate() {
            let released = requests
                .iter()
                .any(|r| matches!(r, Request::Release(handle, _) if handle == request.handle()));
            let holds = held.get(request.handle());
            match &given[index] {
                Some(addresses) if !released => assert_eq!(holds, Some(addresses), "{what}: {request:?}"),
                None if !released && dead.is_none() && matches!(request, Request::Assign { .. }) => {
                    assert_eq!(holds, None, "{what}: {request:?} was refused and has addresses");
                }
                _ => {}
            }
        }
    }
}

/// The store as a client sees it. Every call waits once, so that the schedule decides when it happens.
struct Stepped<'a>(&'a World<'a>);

impl Store for Stepped<'_> {
    async fn read(&self, ranges: &[Range]) -> Result<Snapshot, StoreError> {
        YieldOnce(false).await;
        self.0.store.read(ranges).await
    }

    async fn commit(&self, txn: &Txn) -> Result<CommitOutcome, StoreError> {
        YieldOnce(false).await;
        self.0.commit(txn)
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

/// A path through the tree of choices, and how to get to the next one.
#[derive(Debug, Default)]
struct Script(Mutex<Path>);

#[derive(Debug, Default)]
struct Path {
    /// What to choose, of how many.
    choices: Vec<(usize, usize)>,
    position: usize,
}

impl Script {
    /// The choice among `options` here.
    fn choose(&self, options: usize) -> usize {
        let mut path = self.0.lock().unwrap();
        let position = path.position;
        path.position += 1;
        if position == path.choices.len() {
            path.choices.push((0, options));
        }
        let (choice, known) = path.choices[position];
        assert_eq!(
            known, options,
            "the same choices led elsewhere: something is not deterministic"
        );
        choice
    }

    /// Goes to the next path; false after the last.
    fn advance(&self) -> bool {
        let mut path = self.0.lock().unwrap();
        path.position = 0;
        while let Some((choice, options)) = path.choices.pop() {
            if choice + 1 < options {
                path.choices.push((choice + 1, options));
                return true;
            }
        }
        false
    }
}
