//! Release of what a handle has. The handle says where to look; the blocks say what there is.
//!
//! A handle that does not exist has nothing: releasing again is no error. What is allocated to another handle is never
//! touched, and an address that was assigned anew since the caller looked (another sequence number) stays. An address that is
//! to be kept for its workload goes to the keeper (`keep.rs`).

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;

use crate::block::{Allocation, AllocationBlock};
use crate::error::ReleaseRefusal;
use crate::fence;
use crate::handle::Handle;
use crate::keep::Keep;
use crate::keys;
use crate::store::{Guard, Range, Write};
use crate::timestamp::UnixNanos;
use crate::view::View;

use super::draft::txn;
use super::{
    AssignedAddress, Decision, Expect, ExtraDelete, ExtraGuard, KeepOnRelease, ReleaseRequest, Released,
    Stop, datastore_ready, expected_revision, ipam_config, is_identifier,
};

/// Blocks changed by one transaction at most: keeps it below etcd's 128 operations.
const MAX_BLOCKS: usize = 32;
/// Extra deletes, and extra guards, of one request at most, for the same reason.
const MAX_EXTRAS: usize = 32;

/// The caller's record of whom a release is about (the WorkloadEndpoint): it goes in the same transaction. What is somebody
/// else's under its key by now, or nothing, stays so: if that changes meanwhile, it is looked at again.
#[derive(Clone)]
pub struct OwnRecord {
    key: String,
    is_own: Arc<IsOwn>,
}

/// Whether a value is the record of whom a release is about.
type IsOwn = dyn Fn(&[u8]) -> bool + Send + Sync;

impl OwnRecord {
    /// What is under `key`, if `is_own` says of its value that it is meant.
    pub fn new(key: String, is_own: impl Fn(&[u8]) -> bool + Send + Sync + 'static) -> Self {
        let is_own = Arc::new(is_own);
        Self { key, is_own }
    }

    /// The request with what is to become of the record, as far as it is known.
    pub(crate) fn with(&self, request: &ReleaseRequest, view: &View) -> ReleaseRequest {
        let mut request = request.clone();
        let key = self.key.clone();
        let expect = match view.get(&key) {
            Ok(Some(kv)) => {
                let expect = Expect::Unchanged(kv.mod_revision);
                if (self.is_own)(&kv.value) {
                    request.extra_deletes.push(ExtraDelete { key, expect });
                    return request;
                }
                expect
            }
            Ok(None) => Expect::Absent,
            // It is read together with all else that the plan needs.
            Err(_) => Expect::Anything,
        };
        request.extra_guards.push(ExtraGuard { key, expect });
        request
    }
}

impl fmt::Debug for OwnRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnRecord")
            .field("key", &self.key)
            .finish_non_exhaustive()
    }
}

type Plan<T> = Result<T, Stop<ReleaseRefusal>>;

/// Plans `request`. A handle with very many blocks takes several transactions: see [`Released::more`].
/// With a cool-down the addresses rest from `now` on.
pub fn plan_release(
    view: &View,
    request: &ReleaseRequest,
    now: UnixNanos,
) -> Decision<Released, ReleaseRefusal> {
    match try_plan(view, request, now) {
        Ok(decision) => decision,
        Err(stop) => stop.into(),
    }
}

fn try_plan(
    view: &View,
    request: &ReleaseRequest,
    now: UnixNanos,
) -> Plan<Decision<Released, ReleaseRefusal>> {
    validate(request).map_err(|why| Stop::Refuse(ReleaseRefusal::InvalidRequest(why)))?;
    let handle_key = keys::handle(&request.handle_id);
    let mut needed = vec![
        Range::Key(keys::CLUSTER_INFORMATION.to_owned()),
        Range::Key(keys::IPAM_CONFIG.to_owned()),
        Range::Key(handle_key.clone()),
    ];
    needed.extend(
        request
            .extra_deletes
            .iter()
            .map(|extra| Range::Key(extra.key.clone())),
    );
    needed.extend(
        request
            .extra_guards
            .iter()
            .map(|extra| Range::Key(extra.key.clone())),
    );
    view.require(needed)?;
    let (ready, ready_guard) = datastore_ready(view)?;
    if !ready {
        return Err(Stop::Refuse(ReleaseRefusal::DatastoreLocked));
    }
    let stored = view.get(&handle_key)?;
    let after = if ipam_config::<ReleaseRefusal>(view)?.cooldown_nanos() > 0 {
        After::Rest
    } else {
        After::Free
    };
    let mut release = Release::new(view, ready_guard, now, after);
    release.extra_guards(request)?;
    if let Some(kv) = stored {
        let handle = Handle::parse(&handle_key, &kv.value)?;
        release.guards.insert(handle_key.clone(), kv.mod_revision);
        release.handle(&handle_key, &handle, request)?;
        release.keepers()?;
    }
    release.extra_deletes(request)?;
    if let Some(node) = request.fence.as_ref().filter(|_| !release.released.more) {
        // Also if there is nothing to release: then it is what makes sure that there never will be.
        release
            .guards
            .insert(handle_key, stored.map_or(0, |kv| kv.mod_revision));
        if let Write::Put { key, value } = fence::write(node, now) {
            release.writes.insert(key, Some(value));
        }
    }
    if release.writes.is_empty() {
        return Ok(Decision::Done(release.released));
    }
    Ok(release.finish())
}

fn validate(request: &ReleaseRequest) -> Result<(), String> {
    if !is_identifier(&request.handle_id) {
        let id = &request.handle_id;
        return Err(format!(
            "handle {id:?} is empty, too long, or has a slash or control character"
        ));
    }
    if let Some(node) = request.fence.as_ref().filter(|node| !is_identifier(node)) {
        return Err(format!(
            "node {node:?} is empty, too long, or has a slash or control character"
        ));
    }
    for (what, count) in [
        ("deletes", request.extra_deletes.len()),
        ("guards", request.extra_guards.len()),
    ] {
        if count > MAX_EXTRAS {
            return Err(format!(
                "{count} extra {what}, at most {MAX_EXTRAS} in one request"
            ));
        }
    }
    Ok(())
}

struct Release<'a> {
    view: &'a View,
    guards: BTreeMap<String, i64>,
    writes: BTreeMap<String, Option<Vec<u8>>>,
    /// The blocks that it writes.
    blocks: Vec<Arc<AllocationBlock>>,
    released: Released,
    now: UnixNanos,
    after: After,
    /// What keepers will have of the blocks that change, by their handle.
    keepers: BTreeMap<String, BTreeMap<IpNetwork, u64>>,
}

/// What a released address does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum After {
    /// It is free.
    Free,
    /// It rests.
    Rest,
}

impl<'a> Release<'a> {
    fn new(view: &'a View, ready: Guard, now: UnixNanos, after: After) -> Self {
        let guards = BTreeMap::from([(ready.key, ready.mod_revision)]);
        Self {
            view,
            guards,
            writes: BTreeMap::new(),
            blocks: Vec::new(),
            released: Released::default(),
            now,
            after,
            keepers: BTreeMap::new(),
        }
    }

    fn handle(&mut self, key: &str, stored: &Handle, request: &ReleaseRequest) -> Plan<()> {
        let named: Vec<IpAddr> = request.only.iter().map(|only| only.address).collect();
        let mut blocks: Vec<IpNetwork> = stored.blocks().collect();
        if !named.is_empty() {
            blocks.retain(|cidr| named.iter().any(|&address| cidr.contains(address)));
        }
        self.released.more = blocks.len() > MAX_BLOCKS;
        blocks.truncate(MAX_BLOCKS);
        self.view
            .require(blocks.iter().map(|&cidr| Range::Key(keys::block(cidr))))?;
        let mut handle = stored.clone();
        for cidr in blocks {
            handle = match self.view.block(cidr)?? {
                Some(block) => self.block(&block, handle, request)?,
                // Calico counts before it allocates: a handle may name a block that was never made. What is known of a block
                // may be outdated: that it is not there must be true when the handle goes.
                None => {
                    self.guards.insert(keys::block(cidr), 0);
                    handle.with_count(cidr, 0)
                }
            };
        }
        if handle.is_empty() {
            self.writes.insert(key.to_owned(), None);
        } else if handle != *stored {
            self.writes.insert(key.to_owned(), Some(handle.to_json()));
        }
        Ok(())
    }

    /// Takes the handle's addresses out of `block`. Returns the handle with what it then has there, counted anew.
    fn block(&mut self, block: &AllocationBlock, handle: Handle, request: &ReleaseRequest) -> Plan<Handle> {
        let cidr = block.cidr();
        let mut addresses = Vec::new();
        let mut kept: Vec<(Keep, Allocation)> = Vec::new();
        for allocation in block.allocations_of(&request.handle_id) {
            if is_meant(&allocation, request)? {
                let keep = Keep::noted(&allocation.attribute);
                match keep.filter(|_| request.keep == KeepOnRelease::AsNoted) {
                    Some(keep) => kept.push((keep, allocation.clone())),
                    None => addresses.push(allocation.address),
                }
                self.released.addresses.push(AssignedAddress {
                    address: allocation.address,
                    block: cidr,
                    sequence_number: allocation.sequence_number,
                });
            }
        }
        let mut next = match self.after {
            After::Rest => block.rest(&addresses, self.now),
            After::Free => block.release(&addresses),
        };
        for (keep, allocation) in &kept {
            let keeper = keep.kept(&allocation.attribute, self.now);
            next = next.hand_over(&[allocation.address], &keeper);
            let its = next.allocations_of(keep.keeper()).count();
            let counts = self.keepers.entry(keep.keeper().to_owned()).or_default();
            counts.insert(cidr, its as u64);
        }
        let left = next.allocations_of(&request.handle_id).count();
        let is_same = addresses.is_empty() && kept.is_empty();
        if is_same && handle.count(cidr) == left as u64 {
            return Ok(handle);
        }
        let key = keys::block(cidr);
        let revision = self.view.get(&key)?.map_or(0, |kv| kv.mod_revision);
        self.guards.insert(key.clone(), revision);
        if !is_same {
            // A block that belongs to nobody exists only for its allocations.
            let gone = next.is_ownerless() && next.is_empty();
            self.writes.insert(key, (!gone).then(|| next.to_json()));
            self.blocks.extend((!gone).then(|| Arc::new(next)));
        }
        Ok(handle.with_count(cidr, left as u64))
    }

    /// The handles of the keepers with what they have been given.
    fn keepers(&mut self) -> Plan<()> {
        self.view
            .require(self.keepers.keys().map(|keeper| Range::Key(keys::handle(keeper))))?;
        for (keeper, counts) in std::mem::take(&mut self.keepers) {
            let key = keys::handle(&keeper);
            let stored = self.view.get(&key)?;
            let revision = stored.map_or(0, |kv| kv.mod_revision);
            let handle = stored.map(|kv| Handle::parse(&key, &kv.value)).transpose()?;
            let handle = counts
                .into_iter()
                .fold(handle.unwrap_or_default(), |handle, (cidr, count)| {
                    handle.with_count(cidr, count)
                });
            self.guards.insert(key.clone(), revision);
            self.writes.insert(key, Some(handle.to_json()));
        }
        Ok(())
    }

    fn extra_guards(&mut self, request: &ReleaseRequest) -> Plan<()> {
        for extra in &request.extra_guards {
            let Ok(revision) = expected_revision(self.view, &extra.key, extra.expect)? else {
                let key = extra.key.clone();
                return Err(Stop::Refuse(ReleaseRefusal::ExtraConflict { key }));
            };
            self.guards
                .extend(revision.map(|revision| (extra.key.clone(), revision)));
        }
        Ok(())
    }

    fn extra_deletes(&mut self, request: &ReleaseRequest) -> Plan<()> {
        if self.released.more {
            return Ok(());
        }
        for extra in &request.extra_deletes {
            let Some(stored) = self.view.get(&extra.key)? else {
                // Whoever makes it meanwhile makes this look again.
                self.guards.insert(extra.key.clone(), 0);
                continue;
            };
            match expected_revision(self.view, &extra.key, extra.expect)? {
                Err(()) => {
                    return Err(Stop::Refuse(ReleaseRefusal::ExtraConflict {
                        key: extra.key.clone(),
                    }));
                }
                Ok(_) => {
                    self.guards.insert(extra.key.clone(), stored.mod_revision);
                }
            }
            self.writes.insert(extra.key.clone(), None);
        }
        Ok(())
    }

    fn finish(self) -> Decision<Released, ReleaseRefusal> {
        Decision::Commit {
            txn: txn(self.guards, self.writes),
            blocks: self.blocks,
            outcome: self.released,
        }
    }
}

/// Whether the request means this allocation; refused if it means an earlier one of the same address.
fn is_meant(allocation: &Allocation, request: &ReleaseRequest) -> Plan<bool> {
    if request.only.is_empty() {
        return Ok(true);
    }
    let Some(only) = request
        .only
        .iter()
        .find(|only| only.address == allocation.address)
    else {
        return Ok(false);
    };
    match only.sequence_number {
        Some(expected) if expected != allocation.sequence_number => {
            Err(Stop::Refuse(ReleaseRefusal::Reassigned {
                address: allocation.address,
                expected,
                present: allocation.sequence_number,
            }))
        }
        _ => Ok(true),
    }
}
