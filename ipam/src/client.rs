//! The loop: read, plan, commit; and again with what is there now when somebody else was faster.
//!
//! It is the only place that talks to a [`Store`] on behalf of a plan. Every refused transaction means that another one
//! succeeded, so the loop as a whole always makes progress; a single request gives up after a fixed number of attempts.

use crate::affinity::{Affinity, NodeBlock};
use crate::block::{Allocation, AllocationBlock};
use crate::error::{AssignError, Family, ReadError, ReleaseError, RepairError};
use crate::handle::Handle;
use crate::inventory::Inventory;
use crate::keys;
use crate::plan::{
    AssignRequest, Assigned, Decision, ReleaseRequest, Released, RepairRequest, Repaired, plan_assign,
    plan_release, plan_repair,
};
use crate::store::{CommitOutcome, Range, Store, StoreError};
use crate::timestamp::UnixNanos;
use crate::view::View;

/// Transactions tried for one request, as Calico.
const MAX_ATTEMPTS: u32 = 100;
/// Unknown outcomes that one request tries to resolve. Each costs the store's whole time limit.
const MAX_UNKNOWN: u32 = 3;

/// Address management over a store.
#[derive(Debug)]
pub struct Ipam<S> {
    store: S,
}

/// How a request ended without its outcome.
enum Failure<Refusal> {
    Store(StoreError),
    Contention,
    Refused(Refusal),
}

/// How a request ended.
enum Success<Outcome> {
    Committed(Outcome),
    /// Nothing had to be written. With what an earlier attempt wanted, whose answer was lost.
    Found {
        outcome: Outcome,
        unresolved: Option<Outcome>,
    },
}

impl<S: Store> Ipam<S> {
    /// Address management over `store`.
    pub fn new(store: S) -> Self {
        Self { store }
    }

    /// The store.
    pub fn store(&self) -> &S {
        &self.store
    }

    /// Assigns all the addresses that `request` asks for, in one transaction, or none. The same request with the same
    /// `now` can be made again after an error: it finds what it did.
    pub async fn assign(&self, request: &AssignRequest, now: UnixNanos) -> Result<Assigned, AssignError> {
        match self.run(|view| plan_assign(view, request, now)).await {
            Ok(Success::Committed(outcome) | Success::Found { outcome, .. }) => Ok(outcome),
            Err(Failure::Store(error)) => Err(error.into()),
            Err(Failure::Contention) => Err(AssignError::Contention {
                attempts: MAX_ATTEMPTS,
            }),
            Err(Failure::Refused(refusal)) => Err(refusal.into()),
        }
    }

    /// Releases what the handle of `request` has and returns it. Unknown handles have nothing.
    pub async fn release(&self, request: &ReleaseRequest) -> Result<Released, ReleaseError> {
        let mut released = Released::default();
        loop {
            let part = match self.run(|view| plan_release(view, request)).await {
                Ok(Success::Committed(outcome)) => outcome,
                // The attempt whose answer was lost did it (or somebody else did).
                Ok(Success::Found { outcome, unresolved }) => unresolved.unwrap_or(outcome),
                Err(Failure::Store(error)) => return Err(error.into()),
                Err(Failure::Contention) => {
                    return Err(ReleaseError::Contention {
                        attempts: MAX_ATTEMPTS,
                    });
                }
                Err(Failure::Refused(refusal)) => return Err(refusal.into()),
            };
            released.addresses.extend(part.addresses);
            if !part.more {
                return Ok(released);
            }
        }
    }

    /// Carries out one repair.
    pub async fn repair(&self, request: &RepairRequest) -> Result<Repaired, RepairError> {
        match self.run(|view| plan_repair(view, request)).await {
            Ok(Success::Committed(outcome)) => Ok(outcome),
            // The attempt whose answer was lost did it (or somebody else did).
            Ok(Success::Found { outcome, unresolved }) => Ok(unresolved.unwrap_or(outcome)),
            Err(Failure::Store(error)) => Err(error.into()),
            Err(Failure::Contention) => Err(RepairError::Contention {
                attempts: MAX_ATTEMPTS,
            }),
            Err(Failure::Refused(refusal)) => Err(refusal.into()),
        }
    }

    /// Everything that is kept, at one revision. For operators: a large cluster has hundreds of megabytes.
    pub async fn inventory(&self) -> Result<Inventory, StoreError> {
        Ok(Inventory::parse(&self.store.read(&Inventory::ranges()).await?))
    }

    /// The blocks that `node` has or is claiming, IPv4 first. Announce and route the confirmed ones only.
    pub async fn affinities(&self, node: &str) -> Result<Vec<NodeBlock>, ReadError> {
        let prefixes = [Family::V4, Family::V6].map(|family| keys::affinities_of(node, family.unspecified()));
        let snapshot = self.store.read(&prefixes.map(Range::Prefix)).await?;
        let mut blocks = Vec::new();
        for kv in &snapshot.kvs {
            if let Some((_, cidr)) = keys::parse_affinity(&kv.key) {
                blocks.push(NodeBlock {
                    cidr,
                    state: Affinity::parse(&kv.key, &kv.value)?.state,
                });
            }
        }
        Ok(blocks)
    }

    /// What `handle_id` has, by block.
    pub async fn addresses_of_handle(&self, handle_id: &str) -> Result<Vec<Allocation>, ReadError> {
        let key = keys::handle(handle_id);
        let snapshot = self.store.read(&[Range::Key(key.clone())]).await?;
        let Some(kv) = snapshot.kvs.first() else {
            return Ok(Vec::new());
        };
        let blocks: Vec<Range> = Handle::parse(&key, &kv.value)?
            .blocks()
            .map(|cidr| Range::Key(keys::block(cidr)))
            .collect();
        let snapshot = self.store.read(&blocks).await?;
        let mut allocations = Vec::new();
        for kv in &snapshot.kvs {
            let block = AllocationBlock::parse(&kv.key, &kv.value)?;
            allocations.extend(block.allocations_of(handle_id));
        }
        Ok(allocations)
    }

    async fn run<Outcome, Refusal>(
        &self,
        plan: impl Fn(&View) -> Decision<Outcome, Refusal>,
    ) -> Result<Success<Outcome>, Failure<Refusal>> {
        let mut view = View::default();
        // The last attempt whose answer was lost. It may still take effect until another attempt commits, which it then
        // cannot survive: every attempt guards the handle.
        let mut unresolved: Option<(Outcome, StoreError)> = None;
        let (mut attempts, mut unknown) = (0, 0);
        loop {
            match plan(&view) {
                Decision::Read(ranges) => match self.store.read(&ranges).await {
                    Ok(snapshot) => view.absorb(&ranges, snapshot),
                    Err(error) => return Err(Failure::Store(lost_answer(unresolved, error))),
                },
                Decision::Done(outcome) => {
                    return Ok(Success::Found {
                        outcome,
                        unresolved: unresolved.map(|(outcome, _)| outcome),
                    });
                }
                Decision::Refuse(refusal) => {
                    // Not settled: the lost attempt may come through after this look.
                    return Err(match unresolved {
                        Some((_, error)) => Failure::Store(error),
                        None => Failure::Refused(refusal),
                    });
                }
                Decision::Commit { txn, outcome } => {
                    attempts += 1;
                    match self.store.commit(&txn).await {
                        Ok(CommitOutcome::Committed { .. }) => return Ok(Success::Committed(outcome)),
                        Ok(CommitOutcome::Conflict(present)) => view.absorb_conflict(&txn.guards, present),
                        Err(error @ StoreError::UnknownOutcome(_)) if unknown < MAX_UNKNOWN => {
                            unknown += 1;
                            unresolved = Some((outcome, error));
                            view = View::default();
                        }
                        Err(error) => return Err(Failure::Store(lost_answer(unresolved, error))),
                    }
                    if attempts == MAX_ATTEMPTS {
                        return Err(match unresolved {
                            Some((_, error)) => Failure::Store(error),
                            None => Failure::Contention,
                        });
                    }
                }
            }
        }
    }
}

/// The error to report: an attempt that may have taken effect outweighs whatever happened after it.
fn lost_answer<Outcome>(unresolved: Option<(Outcome, StoreError)>, error: StoreError) -> StoreError {
    unresolved.map_or(error, |(_, lost)| lost)
}
