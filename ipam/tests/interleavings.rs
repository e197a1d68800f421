//! All interleavings of small sets of requests on the memory store, one store call at a time; with a client that dies
//! between any two calls, or a commit whose answer is lost (not applied, applied, or applied at any later moment).
//!
//! The requests are of clients of their own, or of one client that commits them in groups: then, too, between a commit and
//! its answer the caller that leads may die, and who waits must be woken for what is left to do.
//!
//! After every call the invariants hold. After the dead client's handle was released, everything is accounted for.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};

use calidris_ipam::{
    AddressRequest, AllocationBlock, AssignRequest, CommitOutcome, Expect, ExtraDelete, ExtraWrite, Ipam,
    MemoryStore, Range, ReleaseOnly, ReleaseRequest, Snapshot, Store, StoreError, Txn, keys,
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
    /// A commit is stuck on its way, whoever called has no more time and gives up.
    GivenUp,
}

const TROUBLES: [Trouble; 4] = [
    Trouble::Nothing,
    Trouble::Crash,
    Trouble::LostAnswer,
    Trouble::GivenUp,
];

/// Whose requests they are.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Clients {
    /// Each has its own.
    Apart,
    /// All are made through one.
    One,
}

#[test]
fn two_nodes_that_claim_in_the_same_pool() {
    for trouble in TROUBLES {
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
    for trouble in TROUBLES {
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
    for trouble in TROUBLES {
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
    for trouble in TROUBLES {
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
    for trouble in TROUBLES {
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

#[test]
fn three_clients_of_which_one_dies_between_any_two_steps() {
    // Four addresses in two blocks. The third client lives on what it borrows; one address is free, or comes free.
    let setup = Setup::new(30).with_clients_that_have(&[("n1", "w1"), ("n2", "w2"), ("n3", "w3")]);
    let requests = [assign("n1", "a", 1), assign("n2", "b", 1), release("w3")];
    explore(
        "two for two, one of them released",
        Trouble::Crash,
        &setup,
        &requests,
    );
}

#[test]
fn requests_of_one_client_that_are_committed_together() {
    let old = Setup::new(30).assigned(&[("n1", "old", 2)]);
    let cases: [(&str, &Setup, &[Request]); 4] = [
        (
            "two assignments",
            &Setup::new(30),
            &[assign("n1", "a", 1), assign("n1", "b", 1)],
        ),
        (
            "one of them refused",
            &Setup::new(31),
            &[assign("n1", "a", 2), assign("n1", "b", 1)],
        ),
        (
            "a release, an assignment",
            &old,
            &[release("old"), assign("n1", "b", 1)],
        ),
        (
            "one request twice",
            &Setup::new(30),
            &[assign("n1", "a", 1), assign("n1", "a", 1)],
        ),
    ];
    for (what, setup, requests) in cases {
        for trouble in TROUBLES {
            explore_clients(what, Clients::One, trouble, setup, requests);
        }
    }
}

#[test]
fn three_requests_of_one_client_of_which_two_wait_for_the_first() {
    let setup = Setup::new(30).assigned(&[("n1", "old", 2)]);
    let requests = [assign("n1", "a", 1), release("old"), assign("n1", "c", 2)];
    for trouble in TROUBLES {
        explore_clients("three", Clients::One, trouble, &setup, &requests);
    }
}

#[test]
fn clients_that_know_from_before_what_others_are_about_to_change() {
    // Each has one address of a block of its own, and what it knows says that the other is free.
    let setup = Setup::new(30).with_clients_that_have(&[("n1", "w1"), ("n2", "w2")]);
    for trouble in TROUBLES {
        let requests = [assign("n1", "a", 2), assign("n2", "b", 1)];
        explore("two that know", trouble, &setup, &requests);
        let requests = [assign("n1", "a", 1), release("w2")];
        explore("one that knows", trouble, &setup, &requests);
    }
    let one = Setup::new(30).with_clients_that_have(&[("n1", "w1")]);
    for trouble in TROUBLES {
        let requests = [assign("n1", "a", 1), assign("n1", "b", 2)];
        explore_clients("one client that knows", Clients::One, trouble, &one, &requests);
    }
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

/// The release of all that a handle has, with its endpoint.
fn whole(handle: &str) -> ReleaseRequest {
    ReleaseRequest {
        handle_id: handle.to_owned(),
        extra_deletes: vec![ExtraDelete {
            key: endpoint(handle),
            expect: Expect::Anything,
        }],
        ..ReleaseRequest::default()
    }
}

fn endpoint(handle: &str) -> String {
    format!("/endpoint/{handle}")
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

impl Request {
    async fn run(&self, ipam: &Ipam<impl Store>) -> Given {
        match self {
            Self::Assign { node, handle, count } => {
                let mut request = AssignRequest::new(handle, node);
                request.v4 = AddressRequest::Count(*count);
                request.extra_writes = vec![ExtraWrite::new(endpoint(handle), Expect::Anything, |_| {
                    Vec::new()
                })];
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
                let request = ReleaseRequest {
                    only: only.into_iter().collect(),
                    ..whole(handle)
                };
                let _ = ipam.release(&request, at(0)).await;
                None
            }
        }
    }

    fn handle(&self) -> &str {
        match self {
            Self::Assign { handle, .. } | Self::Release(handle, _) => handle,
        }
    }

    fn node(&self) -> Option<&str> {
        match self {
            Self::Assign { node, .. } => Some(node),
            Self::Release(..) => None,
        }
    }
}

/// The keys that a run begins with.
#[derive(Clone)]
struct Setup {
    kvs: BTreeMap<String, Vec<u8>>,
    /// What each client does before anything can go wrong.
    before: Vec<Request>,
}

impl Setup {
    /// One pool 10.0.0.0/`prefix` with blocks of two addresses.
    fn new(prefix: u8) -> Self {
        let cidr = format!("10.0.0.0/{prefix}");
        let pool = json!({"kind": "IPPool", "apiVersion": "projectcalico.org/v3", "metadata": {"name": "p"},
            "spec": {"cidr": cidr, "blockSize": 31}});
        Self {
            kvs: BTreeMap::from([(format!("{}p", keys::IP_POOLS), pool.to_string().into_bytes())]),
            before: Vec::new(),
        }
    }

    /// With clients each of which has assigned an address itself: node, handle.
    fn with_clients_that_have(mut self, before: &[(&str, &str)]) -> Self {
        let before = before.iter().map(|&(node, handle)| assign(node, handle, 1));
        self.before = before.collect();
        self
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
        now_or_never(Ipam::new(&*store).release(&whole(handle), at(0))).unwrap();
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

/// Runs every schedule of `requests`, each of a client of its own.
fn explore(what: &str, trouble: Trouble, setup: &Setup, requests: &[Request]) {
    explore_clients(what, Clients::Apart, trouble, setup, requests);
}

fn explore_clients(what: &str, clients: Clients, trouble: Trouble, setup: &Setup, requests: &[Request]) {
    let script = Script::default();
    let mut runs = 0;
    loop {
        run_once(what, clients, trouble, setup, requests, &script);
        runs += 1;
        if !script.advance() {
            break;
        }
    }
    // A schedule that is never explored proves nothing: clients with two and three calls already have ten, and those that
    // know from before have one call each. Of one client only one works at a time, and only trouble makes a difference.
    let least = match (clients, trouble) {
        (Clients::One, Trouble::Nothing) => 1,
        _ if setup.before.is_empty() => 4,
        _ => 2,
    };
    assert!(runs >= least, "{what}: only {runs} schedules");
}

fn run_once(
    what: &str,
    clients: Clients,
    trouble: Trouble,
    setup: &Setup,
    requests: &[Request],
    script: &Script,
) {
    let world = World {
        store: setup.store(),
        script,
        trouble: Mutex::new(Trouble::Nothing),
        in_flight: Mutex::default(),
        changed: Mutex::default(),
        stuck: Mutex::default(),
        answers_wait: clients == Clients::One,
    };
    let count = if clients == Clients::One {
        1
    } else {
        requests.len()
    };
    let ipams: Vec<Ipam<Stepped<'_>>> = (0..count).map(|_| Ipam::new(Stepped(&world))).collect();
    forget_predecessors(&ipams, requests);
    for (request, ipam) in setup.before.iter().zip(&ipams) {
        run_alone(request.run(ipam));
    }
    *world.trouble.lock().unwrap() = trouble;
    let mut tasks: Vec<Option<Task<'_>>> = requests
        .iter()
        .zip(ipams.iter().cycle())
        .map(|(request, ipam)| Some(Task::new(request.run(ipam))))
        .collect();
    // Up to the first call, which no schedule can tell from having done nothing.
    for task in tasks.iter_mut().flatten() {
        assert!(task.poll().is_pending());
    }
    let mut given: Vec<Given> = vec![None; tasks.len()];
    let mut dead = None;
    loop {
        let live: Vec<usize> = (0..tasks.len()).filter(|&index| tasks[index].is_some()).collect();
        if live.is_empty() {
            break;
        }
        let is_woken = |index: &usize| tasks[*index].as_ref().is_some_and(Task::is_woken);
        let woken: Vec<usize> = live.iter().copied().filter(is_woken).collect();
        assert!(
            !woken.is_empty(),
            "{what}: {live:?} wait for nobody after {script:?}"
        );
        let late = usize::from(!world.in_flight.lock().unwrap().is_empty());
        let crashes = if *world.trouble.lock().unwrap() == Trouble::Crash {
            live.len()
        } else {
            0
        };
        let choice = script.choose(woken.len() + late + crashes);
        if choice < woken.len() {
            let index = woken[choice];
            if let Poll::Ready(result) = tasks[index].as_mut().unwrap().poll() {
                given[index] = result;
                tasks[index] = None;
            } else if std::mem::take(&mut *world.stuck.lock().unwrap()) {
                tasks[index] = None;
                dead = Some(index);
            }
        } else if choice < woken.len() + late {
            world.deliver();
        } else {
            let index = live[choice - woken.len() - late];
            *world.trouble.lock().unwrap() = Trouble::Nothing;
            tasks[index] = None;
            dead = Some(index);
        }
        world.check_if_changed(what, script);
    }
    *world.trouble.lock().unwrap() = Trouble::Nothing;
    let waits = !world.in_flight.lock().unwrap().is_empty() && script.choose(2) == 1;
    if !waits {
        world.deliver();
    }
    world.check(what, script);
    let settled = recover(&ipams, requests, &given, dead);
    world.check(what, script);
    world.deliver();
    world.check(what, script);
    world.check_given(what, requests, &given, &settled);
}

/// A request under way, and whether it was woken since it was polled.
struct Task<'a> {
    future: Pin<Box<dyn Future<Output = Given> + 'a>>,
    woken: Arc<Woken>,
}

struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl<'a> Task<'a> {
    fn new(future: impl Future<Output = Given> + 'a) -> Self {
        Self {
            future: Box::pin(future),
            woken: Arc::new(Woken(AtomicBool::new(true))),
        }
    }

    fn is_woken(&self) -> bool {
        self.woken.0.load(Ordering::Relaxed)
    }

    fn poll(&mut self) -> Poll<Given> {
        self.woken.0.store(false, Ordering::Relaxed);
        let waker = Waker::from(Arc::clone(&self.woken));
        self.future.as_mut().poll(&mut Context::from_waker(&waker))
    }
}

/// A fresh client takes it that a predecessor's assignment may be outstanding. These are to know better: what keeps a lost
/// attempt out must be what they saw themselves.
fn forget_predecessors(ipams: &[Ipam<Stepped<'_>>], requests: &[Request]) {
    for node in requests.iter().filter_map(Request::node) {
        let request = ReleaseRequest {
            handle_id: "nobody".to_owned(),
            fence: Some(node.to_owned()),
            ..ReleaseRequest::default()
        };
        for ipam in ipams {
            run_alone(ipam.release(&request, at(0))).unwrap();
        }
    }
}

/// What an agent does about requests that did not end well: it releases what they may have got. Returns which.
fn recover(
    ipams: &[Ipam<Stepped<'_>>],
    requests: &[Request],
    given: &[Given],
    dead: Option<usize>,
) -> BTreeSet<usize> {
    let mut settled = BTreeSet::new();
    for (index, request) in requests.iter().enumerate() {
        let unsettled =
            Some(index) == dead || (given[index].is_none() && matches!(request, Request::Assign { .. }));
        let known_by_another = requests
            .iter()
            .zip(given)
            .any(|(other, given)| other.handle() == request.handle() && given.is_some());
        if unsettled && !known_by_another {
            let release = ReleaseRequest {
                fence: request.node().map(str::to_owned),
                ..whole(request.handle())
            };
            run_alone(ipams[index % ipams.len()].release(&release, at(0))).unwrap();
            settled.insert(index);
        }
    }
    settled
}

/// Runs `future` to its end while nothing else happens.
fn run_alone<T>(future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return value;
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
    /// Whether a commit was stuck just now.
    stuck: Mutex<bool>,
    /// Whether a client can die between a commit and its answer.
    answers_wait: bool,
}

impl World<'_> {
    fn deliver(&self) {
        *self.changed.lock().unwrap() = true;
        for txn in self.in_flight.lock().unwrap().drain(..) {
            now_or_never(self.store.commit(&txn)).unwrap();
        }
    }

    /// Whether `txn` is stuck on its way; it is carried out later.
    fn gets_stuck(&self, txn: &Txn) -> bool {
        let may = *self.trouble.lock().unwrap() == Trouble::GivenUp;
        let is_stuck = may && self.script.choose(2) == 1;
        if is_stuck {
            *self.trouble.lock().unwrap() = Trouble::Nothing;
            *self.stuck.lock().unwrap() = true;
            self.in_flight.lock().unwrap().push(txn.clone());
        }
        is_stuck
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
        let stored = self.store.dump();
        let violations = invariants::violations(&stored);
        assert!(violations.is_empty(), "{what}: {violations:?} after {script:?}");
        for handle in stored.keys().filter_map(|key| key.strip_prefix(&endpoint(""))) {
            assert!(
                stored.contains_key(&keys::handle(handle)),
                "{what}: an endpoint of {handle} without addresses after {script:?}"
            );
        }
    }

    /// Who was told that it has addresses has them (unless it was asked to release them); nobody else has any.
    fn check_given(&self, what: &str, requests: &[Request], given: &[Given], settled: &BTreeSet<usize>) {
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
                None if settled.contains(&index) && matches!(request, Request::Assign { .. }) => {
                    assert_eq!(
                        holds, None,
                        "{what}: {request:?} has addresses, and nobody who knows of them"
                    );
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
        if self.0.gets_stuck(txn) {
            std::future::pending::<()>().await;
        }
        let answer = self.0.commit(txn);
        if self.0.answers_wait {
            YieldOnce(false).await;
        }
        answer
    }
}

struct YieldOnce(bool);

impl Future for YieldOnce {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if std::mem::replace(&mut self.0, true) {
            Poll::Ready(())
        } else {
            context.waker().wake_by_ref();
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
