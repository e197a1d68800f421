//! The store as clients see it: every call waits until the schedule lets it happen, and commits may lose their answer.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use calidris_ipam::{
    AllocationBlock, CommitOutcome, MemoryStore, Range, Snapshot, Store, StoreError, Txn, keys,
};

use crate::explore::Clients;
use crate::request::{Given, Request, endpoint};
use crate::script::{Footprint, Script};
use crate::support::{invariants, now_or_never};

/// What goes wrong in a run, at most once.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Trouble {
    Nothing,
    /// A client stops for ever between two calls.
    Crash,
    /// The answer to a commit is lost.
    LostAnswer,
    /// A commit is stuck on its way, whoever called has no more time and gives up.
    GivenUp,
}

pub(crate) const TROUBLES: [Trouble; 4] = [
    Trouble::Nothing,
    Trouble::Crash,
    Trouble::LostAnswer,
    Trouble::GivenUp,
];

/// A store whose calls happen when the schedule says so, and whose commits may lose their answer.
pub(crate) struct World<'a> {
    store: Arc<MemoryStore>,
    script: &'a Script,
    trouble: Mutex<Trouble>,
    in_flight: Mutex<Vec<Txn>>,
    changed: Mutex<bool>,
    /// Whether a commit was stuck just now.
    stuck: Mutex<bool>,
    /// Whether a client can die between a commit and its answer.
    answers_wait: bool,
    /// What each client is about to do.
    pending: Mutex<BTreeMap<usize, Footprint>>,
}

impl<'a> World<'a> {
    /// Without any trouble at first.
    pub(crate) fn new(store: Arc<MemoryStore>, script: &'a Script, clients: Clients) -> Self {
        Self {
            store,
            script,
            trouble: Mutex::new(Trouble::Nothing),
            in_flight: Mutex::default(),
            changed: Mutex::default(),
            stuck: Mutex::default(),
            answers_wait: clients == Clients::One,
            pending: Mutex::default(),
        }
    }

    /// From now on `trouble` can happen, once.
    pub(crate) fn allow(&self, trouble: Trouble) {
        *self.trouble.lock().unwrap() = trouble;
    }

    pub(crate) fn allows(&self, trouble: Trouble) -> bool {
        *self.trouble.lock().unwrap() == trouble
    }

    pub(crate) fn has_something_in_flight(&self) -> bool {
        !self.in_flight.lock().unwrap().is_empty()
    }

    pub(crate) fn is_stuck_just_now(&self) -> bool {
        std::mem::take(&mut *self.stuck.lock().unwrap())
    }

    /// What `client` does when it goes on. A commit can be the one that gets into trouble, as long as there is some.
    pub(crate) fn pending(&self, client: usize) -> Footprint {
        let mut footprint = self.pending.lock().unwrap()[&client].clone();
        footprint.may_be_trouble &= self.allows(Trouble::LostAnswer) || self.allows(Trouble::GivenUp);
        footprint
    }

    pub(crate) fn deliver(&self) {
        *self.changed.lock().unwrap() = true;
        for txn in self.in_flight.lock().unwrap().drain(..) {
            now_or_never(self.store.commit(&txn)).unwrap();
        }
    }

    /// Whether `txn` is stuck on its way; it is carried out later.
    fn gets_stuck(&self, txn: &Txn) -> bool {
        let is_stuck = self.allows(Trouble::GivenUp) && self.script.choose(2) == 1;
        if is_stuck {
            self.allow(Trouble::Nothing);
            *self.stuck.lock().unwrap() = true;
            self.in_flight.lock().unwrap().push(txn.clone());
        }
        is_stuck
    }

    fn commit(&self, txn: &Txn) -> Result<CommitOutcome, StoreError> {
        *self.changed.lock().unwrap() = true;
        let fates = if self.allows(Trouble::LostAnswer) { 4 } else { 1 };
        let fate = self.script.choose(fates);
        if fate == 0 {
            return now_or_never(self.store.commit(txn));
        }
        self.allow(Trouble::Nothing);
        match fate {
            1 => {}
            2 => drop(now_or_never(self.store.commit(txn)).unwrap()),
            _ => self.in_flight.lock().unwrap().push(txn.clone()),
        }
        Err(StoreError::UnknownOutcome("as the schedule wants it".to_owned()))
    }

    pub(crate) fn check_if_changed(&self, what: &str, script: &Script) {
        if std::mem::take(&mut *self.changed.lock().unwrap()) {
            self.check(what, script);
        }
    }

    pub(crate) fn check(&self, what: &str, script: &Script) {
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
    pub(crate) fn check_given(
        &self,
        what: &str,
        requests: &[Request],
        given: &[Given],
        settled: &BTreeSet<usize>,
    ) {
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
pub(crate) struct Stepped<'a> {
    pub(crate) world: &'a World<'a>,
    pub(crate) client: usize,
}

impl Stepped<'_> {
    async fn wait(&self, what: Footprint) {
        self.world.pending.lock().unwrap().insert(self.client, what);
        YieldOnce(false).await;
    }
}

impl Store for Stepped<'_> {
    async fn read(&self, ranges: &[Range]) -> Result<Snapshot, StoreError> {
        let reads = Footprint {
            reads: ranges.to_vec(),
            ..Footprint::default()
        };
        self.wait(reads).await;
        self.world.store.read(ranges).await
    }

    async fn commit(&self, txn: &Txn) -> Result<CommitOutcome, StoreError> {
        let commits = Footprint {
            reads: txn.looked_at(),
            writes: txn.writes.iter().map(|write| write.key().to_owned()).collect(),
            may_be_trouble: true,
            unknown: false,
        };
        self.wait(commits).await;
        if self.world.gets_stuck(txn) {
            std::future::pending::<()>().await;
        }
        let answer = self.world.commit(txn);
        if self.world.answers_wait {
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
