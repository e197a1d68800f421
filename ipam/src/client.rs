//! The loop: read, plan, commit; and again with what is there now when somebody else was faster.
//!
//! The loop itself, for the requests of many callers at once, is `group_commit.rs`. Every refused transaction means that
//! another one succeeded, so the loop as a whole always makes progress; a single request gives up after a fixed number of
//! attempts.

use crate::affinity::{Affinity, NodeBlock};
use crate::block::{Allocation, AllocationBlock};
use crate::decision::Decision;
use crate::error::{AssignError, Family, ReadError, ReleaseError, RepairError};
use crate::fence::{self, Fences};
use crate::group_commit::{Earlier, Failure, GroupCommit, MAX_ATTEMPTS, Settled};
use crate::handle::Handle;
use crate::inventory::Inventory;
use crate::keys;
use crate::plan::{
    AssignRequest, Assigned, OwnRecord, ReleaseRequest, Released, RepairRequest, Repaired, plan_assign,
    plan_release, plan_repair,
};
use crate::store::{Range, Store, StoreError};
use crate::timestamp::UnixNanos;
use crate::view::View;

/// Address management over a store.
#[derive(Debug)]
pub struct Ipam<S> {
    store: S,
    commits: GroupCommit,
    fences: Fences,
}

impl<S: Store> Ipam<S> {
    /// Address management over `store`.
    pub fn new(store: S) -> Self {
        Self {
            store,
            commits: GroupCommit::default(),
            fences: Fences::default(),
        }
    }

    /// The store.
    pub fn store(&self) -> &S {
        &self.store
    }

    /// Assigns all the addresses that `request` asks for, in one transaction, or none. The same request with the same
    /// `now` can be made again after an error: it finds what it did. After an error that leaves the outcome open, or if
    /// the call is dropped, a release of the handle with [`ReleaseRequest::fence`] settles it.
    pub async fn assign(&self, request: &AssignRequest, now: UnixNanos) -> Result<Assigned, AssignError> {
        let attempt = self.fences.attempt(&request.node);
        let plan = {
            let request = request.clone();
            move |view: &View, earlier| {
                let decision = plan_assign(view, &request, now);
                match earlier {
                    Earlier::Settled => decision,
                    Earlier::Lost => fence::closed(decision, &request.node, now),
                }
            }
        };
        let answer = self.commits.run(&self.store, request.new_keys(), plan).await;
        let is_open = matches!(
            answer,
            Err(Failure::Store(StoreError::UnknownOutcome(_)))
                | Ok(Settled::Found {
                    unresolved: Some(_),
                    ..
                })
        );
        if !is_open {
            attempt.settled();
        }
        match answer {
            Ok(Settled::Committed(outcome) | Settled::Found { outcome, .. }) => Ok(outcome),
            Err(Failure::Store(error)) => Err(error.into()),
            Err(Failure::Contention) => Err(AssignError::Contention {
                attempts: MAX_ATTEMPTS,
            }),
            Err(Failure::Refused(refusal)) => Err(refusal.into()),
        }
    }

    /// Whether [`Self::assign`] would succeed now. Nothing is written.
    pub async fn could_assign(&self, request: &AssignRequest, now: UnixNanos) -> Result<(), AssignError> {
        let mut view = View::default();
        loop {
            match plan_assign(&view, request, now) {
                Decision::Read(ranges) => view.absorb(&ranges, self.store.read(&ranges).await?),
                Decision::Commit { .. } | Decision::Done(_) => return Ok(()),
                Decision::Refuse(refusal) => return Err(refusal.into()),
            }
        }
    }

    /// Releases what the handle of `request` has and returns it. Unknown handles have nothing. With a cool-down the
    /// addresses rest from `now` on.
    pub async fn release(&self, request: &ReleaseRequest, now: UnixNanos) -> Result<Released, ReleaseError> {
        self.release_all(request, None, now).await
    }

    /// As [`Self::release`], and `record` goes in the same transaction if it is still of whom it is about.
    pub async fn release_with(
        &self,
        request: &ReleaseRequest,
        record: &OwnRecord,
        now: UnixNanos,
    ) -> Result<Released, ReleaseError> {
        self.release_all(request, Some(record), now).await
    }

    async fn release_all(
        &self,
        request: &ReleaseRequest,
        record: Option<&OwnRecord>,
        now: UnixNanos,
    ) -> Result<Released, ReleaseError> {
        let outstanding = request
            .fence
            .as_ref()
            .and_then(|node| Some((node, self.fences.outstanding(node)?)));
        let request = ReleaseRequest {
            fence: outstanding.map(|(node, _)| node.clone()),
            ..request.clone()
        };
        let mut released = Released::default();
        loop {
            let part = self.release_part(request.clone(), record.cloned(), now).await?;
            released.addresses.extend(part.addresses);
            if !part.more {
                break;
            }
        }
        if let Some((node, outstanding)) = outstanding {
            self.fences.fenced(node, outstanding);
        }
        Ok(released)
    }

    /// One transaction's worth of a release.
    async fn release_part(
        &self,
        request: ReleaseRequest,
        record: Option<OwnRecord>,
        now: UnixNanos,
    ) -> Result<Released, ReleaseError> {
        match self
            .commits
            .run(&self.store, Vec::new(), move |view, _| match &record {
                Some(record) => plan_release(view, &record.with(&request, view), now),
                None => plan_release(view, &request, now),
            })
            .await
        {
            Ok(Settled::Committed(outcome)) => Ok(outcome),
            // The attempt whose answer was lost did it (or somebody else did).
            Ok(Settled::Found { outcome, unresolved }) => Ok(unresolved.unwrap_or(outcome)),
            Err(Failure::Store(error)) => Err(error.into()),
            Err(Failure::Contention) => Err(ReleaseError::Contention {
                attempts: MAX_ATTEMPTS,
            }),
            Err(Failure::Refused(refusal)) => Err(refusal.into()),
        }
    }

    /// Carries out one repair.
    pub async fn repair(&self, request: &RepairRequest) -> Result<Repaired, RepairError> {
        let request = request.clone();
        match self
            .commits
            .run(&self.store, Vec::new(), move |view, _| {
                plan_repair(view, &request)
            })
            .await
        {
            Ok(Settled::Committed(outcome)) => Ok(outcome),
            // The attempt whose answer was lost did it (or somebody else did).
            Ok(Settled::Found { outcome, unresolved }) => Ok(unresolved.unwrap_or(outcome)),
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
}
