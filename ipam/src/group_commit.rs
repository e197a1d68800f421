//! Group commit: requests that wait while a transaction is under way are planned together and become the next one.
//!
//! The first caller leads: it takes what waits, reads what all of them need, plans each on the view as the ones before it
//! leave it, and commits one transaction. Who comes meanwhile waits, and the first of those leads next. A request alone
//! costs what it costs without company; a hundred at once cost a handful of transactions, not a hundred.
//!
//! - Answers are given only when the transaction is committed: a refusal or a "nothing to do" may rest on what an earlier
//!   request of the group was about to write.
//! - A request that is refused leaves the others alone. If the store will not have the group (too large for it, or a key
//!   that may not be written), each of its requests is tried alone.
//! - A transaction whose answer was lost is resolved by reading back, for each request of its own ([`Settled::Found`]).
//! - A leader that is dropped puts its group back and the next caller leads; what was under way then is an unknown outcome.
//! - A caller that gives up is not served any more, unless the transaction that serves it is already under way.
//!
//! A transaction depends on all that lasts of its view (`View::lasting_guards`), so that it proves it true when it commits. The
//! next group plans on that without reading, and takes the keys of new requests to be absent, and the first block that it would
//! claim: an assignment costs one round trip as a rule. If anything has changed since, the transaction is refused and brings what is there now. What needs no
//! transaction (a refusal, nothing to do) has no such proof and is only ever answered from what was read anew.
//!
//! The queue holds one entry for each caller that waits and is bounded by their number. It needs no runtime: callers are
//! woken by their own wakers.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use crate::block::AllocationBlock;
use crate::decision::Decision;
use crate::plan::Batch;
use crate::store::{CommitOutcome, ErrorClass, Range, Store, StoreError, Txn};
use crate::view::View;

/// Requests planned together at most. About so many with one address and one endpoint each fit in a transaction.
const MAX_GROUP: usize = 64;
/// Transactions tried for one request, as Calico.
pub(crate) const MAX_ATTEMPTS: u32 = 100;
/// Unknown outcomes that one request tries to resolve. Each costs the store's whole time limit.
const MAX_UNKNOWN: u32 = 3;

/// The requests of one client.
#[derive(Default)]
pub(crate) struct GroupCommit {
    queue: Mutex<Queue>,
    /// What was true when the last transaction committed; empty while a group is led.
    known: Mutex<View>,
}

/// How a request ended.
pub(crate) enum Settled<Outcome> {
    Committed(Outcome),
    /// Nothing had to be written. With what an earlier attempt wanted, whose answer was lost.
    Found {
        outcome: Outcome,
        unresolved: Option<Outcome>,
    },
}

/// How a request ended without its outcome.
pub(crate) enum Failure<Refusal> {
    Store(StoreError),
    Contention,
    Refused(Refusal),
}

type Answer<Outcome, Refusal> = Result<Settled<Outcome>, Failure<Refusal>>;
type AnswerSlot<Outcome, Refusal> = Arc<Mutex<Option<Answer<Outcome, Refusal>>>>;
type Planner<Outcome, Refusal> = Box<dyn Fn(&View, Earlier) -> Decision<Outcome, Refusal> + Send>;

/// What became of the attempts before this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Earlier {
    /// None is outstanding.
    Settled,
    /// One may still come through.
    Lost,
}

impl GroupCommit {
    /// Carries out what `plan` plans, together with what others ask for at the same time. `new_keys` are taken to be absent
    /// as long as nothing is known of them: whatever transaction `plan` gives must depend on them.
    pub(crate) async fn run<Outcome, Refusal>(
        &self,
        store: &impl Store,
        new_keys: Vec<String>,
        plan: impl Fn(&View, Earlier) -> Decision<Outcome, Refusal> + Send + 'static,
    ) -> Answer<Outcome, Refusal>
    where
        Outcome: Send + 'static,
        Refusal: Send + 'static,
    {
        let answer = AnswerSlot::default();
        let request = PlannedRequest {
            plan: Box::new(plan),
            decided: None,
            unresolved: None,
            answer: Arc::clone(&answer),
        };
        let id = lock(&self.queue).join(Box::new(request), new_keys);
        let place = Place { commits: self, id };
        loop {
            match poll_fn(|context| place.poll_turn(&answer, context)).await {
                Turn::Answered(answer) => return answer,
                Turn::Lead(mut lead) => lead.carry_out(store).await,
            }
        }
    }
}

impl std::fmt::Debug for GroupCommit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let waiting = lock(&self.queue).waiting.len();
        f.debug_struct("GroupCommit")
            .field("waiting", &waiting)
            .finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Queue {
    next_id: u64,
    /// Requests that nobody works on, in the order in which they came.
    waiting: VecDeque<Entry>,
    /// Of callers that were polled and have no answer yet.
    wakers: BTreeMap<u64, Waker>,
    /// Whether a caller works on a group.
    led: bool,
}

/// A request on its way.
struct Entry {
    id: u64,
    request: Box<dyn Request>,
    /// Keys that nobody has written yet, as far as the caller knows.
    new_keys: Vec<String>,
    attempts: u32,
    unknown: u32,
    /// Whether it is to be tried without company.
    alone: bool,
}

impl Queue {
    fn join(&mut self, request: Box<dyn Request>, new_keys: Vec<String>) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        self.waiting.push_back(Entry {
            id,
            request,
            new_keys,
            attempts: 0,
            unknown: 0,
            alone: false,
        });
        id
    }

    /// Takes the next group off the queue.
    fn take_group(&mut self) -> Vec<Entry> {
        let mut group: Vec<Entry> = Vec::new();
        while let Some(next) = self.waiting.front() {
            let fits =
                group.len() < MAX_GROUP && !next.alone && group.first().is_none_or(|first| !first.alone);
            if !group.is_empty() && !fits {
                break;
            }
            group.extend(self.waiting.pop_front());
        }
        group
    }

    /// Somebody must lead if anybody waits.
    fn wake_next_leader(&mut self) {
        if self.led {
            return;
        }
        // The first may be of a caller that has gone, or that looks by itself because it was not polled yet.
        let mut waiting = self.waiting.iter();
        if let Some(waker) = waiting.find_map(|next| self.wakers.get(&next.id)) {
            waker.wake_by_ref();
        }
    }
}

/// A caller's place in the queue, given up when it is dropped.
struct Place<'a> {
    commits: &'a GroupCommit,
    id: u64,
}

/// What a caller that was waiting has to do.
enum Turn<'a, Outcome, Refusal> {
    Answered(Answer<Outcome, Refusal>),
    Lead(Lead<'a>),
}

impl<'a> Place<'a> {
    fn poll_turn<Outcome, Refusal>(
        &self,
        answer: &AnswerSlot<Outcome, Refusal>,
        context: &Context<'_>,
    ) -> Poll<Turn<'a, Outcome, Refusal>> {
        // Before the look at the answer: who answers afterwards finds the waker.
        let mut queue = lock(&self.commits.queue);
        if let Some(answer) = lock(answer).take() {
            return Poll::Ready(Turn::Answered(answer));
        }
        if queue.led {
            queue.wakers.insert(self.id, context.waker().clone());
            return Poll::Pending;
        }
        queue.led = true;
        Poll::Ready(Turn::Lead(Lead {
            commits: self.commits,
            group: queue.take_group(),
            deferred: Vec::new(),
            view: std::mem::take(&mut lock(&self.commits.known)),
            in_flight: false,
        }))
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut queue = lock(&self.commits.queue);
        queue.waiting.retain(|entry| entry.id != self.id);
        queue.wakers.remove(&self.id);
        // It may have been woken to lead.
        queue.wake_next_leader();
    }
}

/// A group in the hands of its leader.
struct Lead<'a> {
    commits: &'a GroupCommit,
    group: Vec<Entry>,
    /// What did not fit.
    deferred: Vec<Entry>,
    /// What is known.
    view: View,
    /// Whether a transaction was sent whose answer has not come.
    in_flight: bool,
}

/// What a request wants to do next.
enum Step {
    Read(Vec<Range>),
    /// With the blocks as they are then.
    Commit(Txn, Vec<Arc<AllocationBlock>>),
    /// There is nothing to write.
    Done,
}

/// What a group wants to do next.
enum GroupStep {
    Read(Vec<Range>),
    /// With the blocks as they are then.
    Commit(Txn, Vec<Arc<AllocationBlock>>),
    /// There is nothing to write.
    Done,
}

impl Lead<'_> {
    /// Works until all of the group have their answer or are to be tried again later.
    async fn carry_out(&mut self, store: &impl Store) {
        // Whether all that is known was read, or refused a transaction, since this group began.
        let mut is_fresh = self.view.is_empty();
        if !is_fresh {
            let new_keys = self.group.iter().flat_map(|entry| &entry.new_keys);
            new_keys.for_each(|key| self.view.presume_absent(key));
        }
        self.view.let_presume();
        loop {
            self.group.retain(|entry| !entry.request.is_abandoned());
            if self.group.is_empty() {
                return;
            }
            match self.plan() {
                GroupStep::Read(ranges) => match store.read(&ranges).await {
                    Ok(snapshot) => self.view.absorb(&ranges, snapshot),
                    Err(error) => return self.failed(&error),
                },
                GroupStep::Commit(txn, blocks) if is_fresh || self.all_write() => {
                    self.in_flight = true;
                    let outcome = store.commit(&txn).await;
                    self.in_flight = false;
                    match outcome {
                        Ok(CommitOutcome::Committed { revision }) => {
                            self.view.commit(txn, blocks, revision);
                            return self.settled();
                        }
                        Ok(CommitOutcome::Conflict(present)) => {
                            self.view.absorb_conflict(&txn, present);
                            is_fresh = true;
                            self.overtaken();
                        }
                        Err(error @ StoreError::UnknownOutcome(_)) => {
                            (self.view, is_fresh) = (View::default(), true);
                            self.lost(&error);
                        }
                        Err(error) => return self.failed(&error),
                    }
                }
                GroupStep::Done if is_fresh => return self.settled(),
                GroupStep::Commit(..) | GroupStep::Done => {
                    let ranges = self.view.ranges();
                    match store.read(&ranges).await {
                        Ok(snapshot) => self.view.absorb(&ranges, snapshot),
                        Err(error) => return self.failed(&error),
                    }
                    is_fresh = true;
                }
            }
        }
    }

    /// Whether every request of the group has something to write.
    fn all_write(&self) -> bool {
        self.group.iter().all(|entry| entry.request.writes())
    }

    /// Plans all of the group, each on what those before it leave.
    fn plan(&mut self) -> GroupStep {
        let mut batch = Batch::new(&self.view);
        let mut missing: BTreeSet<Range> = BTreeSet::new();
        let mut fitting = self.group.len();
        for (index, entry) in self.group.iter_mut().enumerate() {
            match entry.request.plan(batch.view()) {
                Step::Read(ranges) => missing.extend(ranges),
                Step::Done => {}
                Step::Commit(txn, blocks) => {
                    if !batch.add(txn, blocks) {
                        fitting = index;
                        break;
                    }
                }
            }
        }
        if !missing.is_empty() {
            return GroupStep::Read(missing.into_iter().collect());
        }
        let mut deferred = self.group.split_off(fitting);
        deferred.append(&mut self.deferred);
        self.deferred = deferred;
        match batch.into_txn() {
            Some((txn, blocks)) => GroupStep::Commit(txn, blocks),
            None => GroupStep::Done,
        }
    }

    fn settled(&mut self) {
        self.answer_those(|_| true, |request| request.settle());
    }

    /// A guard did not hold.
    fn overtaken(&mut self) {
        for entry in &mut self.group {
            entry.attempts += 1;
        }
        self.answer_those(
            |entry| entry.attempts >= MAX_ATTEMPTS,
            |request| request.fail(None),
        );
    }

    /// The transaction may have happened.
    fn lost(&mut self, error: &StoreError) {
        for entry in &mut self.group {
            entry.unknown += 1;
            entry.request.lost(error);
        }
        self.answer_those(
            |entry| entry.unknown > MAX_UNKNOWN,
            |request| request.fail(Some(error)),
        );
    }

    /// The store did not do it. What it will not do for all it may do for each.
    fn failed(&mut self, error: &StoreError) {
        if error.class() == ErrorClass::Refused && self.group.len() > 1 {
            for entry in &mut self.group {
                entry.alone = true;
            }
        } else {
            self.answer_those(|_| true, |request| request.fail(Some(error)));
        }
    }

    fn answer_those(&mut self, which: impl Fn(&Entry) -> bool, answer: impl Fn(&mut dyn Request)) {
        for entry in self.group.extract_if(.., |entry| which(entry)) {
            let Entry { id, mut request, .. } = entry;
            answer(&mut *request);
            if let Some(waker) = lock(&self.commits.queue).wakers.remove(&id) {
                waker.wake();
            }
        }
    }
}

impl Drop for Lead<'_> {
    fn drop(&mut self) {
        if self.in_flight {
            let error = StoreError::UnknownOutcome("the call that committed was given up".to_owned());
            self.lost(&error);
        }
        self.view.keep_what_lasts();
        *lock(&self.commits.known) = std::mem::take(&mut self.view);
        let mut queue = lock(&self.commits.queue);
        for entry in self.group.drain(..).chain(self.deferred.drain(..)).rev() {
            queue.waiting.push_front(entry);
        }
        queue.led = false;
        queue.wake_next_leader();
    }
}

/// A request, whatever its kind.
trait Request: Send {
    /// Plans on `view` and keeps what was decided.
    fn plan(&mut self, view: &View) -> Step;
    /// What was decided is true now.
    fn settle(&mut self);
    /// What was decided may be true.
    fn lost(&mut self, error: &StoreError);
    /// Given up, because of an error of the store or of contention.
    fn fail(&mut self, error: Option<&StoreError>);
    /// Whether what was planned last writes something.
    fn writes(&self) -> bool;
    /// Whether nobody waits for the answer any more.
    fn is_abandoned(&self) -> bool;
}

struct PlannedRequest<Outcome, Refusal> {
    plan: Planner<Outcome, Refusal>,
    decided: Option<Decided<Outcome, Refusal>>,
    /// The last attempt whose answer was lost. It may still take effect until another attempt commits, which it then
    /// cannot survive: every attempt guards the handle, and an assignment the node's fence too (`fence.rs`).
    unresolved: Option<(Outcome, StoreError)>,
    answer: AnswerSlot<Outcome, Refusal>,
}

enum Decided<Outcome, Refusal> {
    Write(Outcome),
    Done(Outcome),
    Refuse(Refusal),
}

impl<Outcome: Send, Refusal: Send> Request for PlannedRequest<Outcome, Refusal> {
    fn plan(&mut self, view: &View) -> Step {
        let earlier = match self.unresolved {
            Some(_) => Earlier::Lost,
            None => Earlier::Settled,
        };
        let (step, decided) = match (self.plan)(view, earlier) {
            Decision::Read(ranges) => (Step::Read(ranges), None),
            Decision::Commit { txn, blocks, outcome } => {
                (Step::Commit(txn, blocks), Some(Decided::Write(outcome)))
            }
            Decision::Done(outcome) => (Step::Done, Some(Decided::Done(outcome))),
            Decision::Refuse(refusal) => (Step::Done, Some(Decided::Refuse(refusal))),
        };
        self.decided = decided;
        step
    }

    fn settle(&mut self) {
        let unresolved = self.unresolved.take();
        let answer = match self.decided.take() {
            Some(Decided::Write(outcome)) => Ok(Settled::Committed(outcome)),
            Some(Decided::Done(outcome)) => Ok(Settled::Found {
                outcome,
                unresolved: unresolved.map(|(outcome, _)| outcome),
            }),
            Some(Decided::Refuse(refusal)) => Err(match unresolved {
                // Not settled: the lost attempt may come through after this look.
                Some((_, error)) => Failure::Store(error),
                None => Failure::Refused(refusal),
            }),
            // Only what was planned last is settled.
            None => Err(Failure::Contention),
        };
        *lock(&self.answer) = Some(answer);
    }

    fn lost(&mut self, error: &StoreError) {
        if let Some(Decided::Write(outcome)) = self.decided.take() {
            self.unresolved = Some((outcome, error.clone()));
        }
    }

    fn fail(&mut self, error: Option<&StoreError>) {
        // An attempt that may have taken effect outweighs whatever happened after it.
        let error = self.unresolved.take().map(|(_, lost)| lost).or(error.cloned());
        *lock(&self.answer) = Some(Err(error.map_or(Failure::Contention, Failure::Store)));
    }

    fn writes(&self) -> bool {
        matches!(self.decided, Some(Decided::Write(_)))
    }

    fn is_abandoned(&self) -> bool {
        // The caller has the other half, as long as it waits.
        Arc::strong_count(&self.answer) == 1
    }
}

/// What these mutexes guard is whole between any two statements: a panic elsewhere cannot leave it half changed.
fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
