//! Assignment: the request as a whole, and addresses asked for by name. What was kept for the workload: `kept.rs`; automatic
//! addresses: `automatic.rs`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;

use crate::block::{AllocationAttribute, AllocationBlock, BlockError};
use crate::config::IpamConfig;
use crate::error::{AssignRefusal, Family};
use crate::handle::Handle;
use crate::keys;
use crate::store::Range;
use crate::timestamp::UnixNanos;
use crate::view::View;

use super::draft::Draft;
use super::pools;
use super::{
    AddressRequest, AssignRequest, Assigned, AssignedAddress, Decision, Expect, IntendedUse, Stop,
    datastore_ready, expected_revision, ipam_config, is_identifier,
};

/// Most addresses of one family in one request: keeps a transaction below etcd's 128 operations.
const MAX_ADDRESSES: usize = 16;

pub(super) type Plan<T> = Result<T, Stop<AssignRefusal>>;

/// Plans `request` at time `now`.
pub fn plan_assign(
    view: &View,
    request: &AssignRequest,
    now: UnixNanos,
) -> Decision<Assigned, AssignRefusal> {
    match try_plan(view, request, now) {
        Ok(decision) => decision,
        Err(stop) => stop.into(),
    }
}

fn try_plan(view: &View, request: &AssignRequest, now: UnixNanos) -> Plan<Decision<Assigned, AssignRefusal>> {
    validate(request).map_err(|why| Stop::Refuse(AssignRefusal::InvalidRequest(why)))?;
    view.require(always_needed(request))?;
    let (ready, ready_guard) = datastore_ready(view)?;
    if !ready {
        return Err(Stop::Refuse(AssignRefusal::DatastoreLocked));
    }
    let attribute = attribute(request, now);
    let handle_key = keys::handle(&request.handle_id);
    let handle = view
        .get(&handle_key)?
        .map(|kv| Handle::parse(&handle_key, &kv.value))
        .transpose()?;
    if let Some(handle) = &handle {
        let done = already_assigned(view, request, handle, &attribute)?;
        if is_what_was_asked(request, &done) {
            return Ok(Decision::Done(done));
        }
    }
    let config = ipam_config(view)?;
    let cooldown_nanos = config.cooldown_nanos();
    let mut assignment = Assignment {
        request,
        config,
        reserved: [pools::reservations(view)?, request.excluded.clone()].concat(),
        draft: Draft::new(view, &request.node, attribute, now, cooldown_nanos),
    };
    assignment.draft.guard(ready_guard);
    assignment.draft.guard_stored(&keys::fence(&request.node));
    assignment
        .draft
        .guard_stored(&keys::resource("nodes", &request.node));
    let (v4, v6) = assignment.kept(&request.v4, &request.v6)?;
    assignment.family(Family::V4, &v4)?;
    assignment.family(Family::V6, &v6)?;
    assignment.finish(handle)
}

fn validate(request: &AssignRequest) -> Result<(), String> {
    let keeper = request.keep.iter().map(|keep| ("keeper", keep.keeper()));
    let ids = [
        ("handle", request.handle_id.as_str()),
        ("node", request.node.as_str()),
    ];
    for (what, id) in ids.into_iter().chain(keeper) {
        if !is_identifier(id) {
            return Err(format!(
                "{what} {id:?} is empty, too long, or has a slash or control character"
            ));
        }
    }
    let mut wanted = 0;
    for (family, asked) in [(Family::V4, &request.v4), (Family::V6, &request.v6)] {
        let count = match asked {
            AddressRequest::None => 0,
            AddressRequest::Count(count) => *count,
            AddressRequest::Exactly(addresses) => {
                for (index, address) in addresses.iter().enumerate() {
                    if Family::of(*address) != family {
                        return Err(format!("{address} is no {family} address"));
                    }
                    if addresses.iter().take(index).any(|earlier| earlier == address) {
                        return Err(format!("{address} is asked for twice"));
                    }
                }
                addresses.len()
            }
        };
        if count > MAX_ADDRESSES {
            return Err(format!(
                "{count} {family} addresses, at most {MAX_ADDRESSES} in one request"
            ));
        }
        wanted += count;
    }
    if wanted == 0 {
        Err("no address is asked for".to_owned())
    } else {
        Ok(())
    }
}

/// What every assignment looks at: read in one go.
fn always_needed(request: &AssignRequest) -> Vec<Range> {
    let mut ranges = vec![
        Range::Key(keys::CLUSTER_INFORMATION.to_owned()),
        Range::Key(keys::IPAM_CONFIG.to_owned()),
        Range::Key(keys::handle(&request.handle_id)),
        Range::Key(keys::resource("nodes", &request.node)),
        Range::Key(keys::fence(&request.node)),
        Range::Prefix(keys::IP_POOLS.to_owned()),
        Range::Prefix(keys::IP_RESERVATIONS.to_owned()),
    ];
    for (family, asked) in [(Family::V4, &request.v4), (Family::V6, &request.v6)] {
        if *asked != AddressRequest::None {
            ranges.push(Range::Prefix(keys::affinities_of(
                &request.node,
                family.unspecified(),
            )));
        }
    }
    ranges.extend(
        request
            .keep
            .iter()
            .map(|keep| Range::Key(keys::handle(keep.keeper()))),
    );
    let looked_at = request
        .extra_writes
        .iter()
        .filter(|extra| extra.expect != Expect::Anything);
    ranges.extend(looked_at.map(|extra| Range::Key(extra.key.clone())));
    ranges
}

fn attribute(request: &AssignRequest, now: UnixNanos) -> AllocationAttribute {
    let mut secondary = request.attributes.clone();
    secondary
        .entry("node".to_owned())
        .or_insert_with(|| request.node.clone());
    // Calico notes none for tunnel devices; without it whoever asks again finds what is there.
    if request.intended_use == IntendedUse::Workload {
        secondary
            .entry("timestamp".to_owned())
            .or_insert_with(|| now.go_string());
    }
    if let Some(keep) = &request.keep {
        keep.note(&mut secondary);
    }
    AllocationAttribute {
        handle_id: Some(request.handle_id.clone()),
        secondary,
        extra: serde_json::Map::new(),
    }
}

/// What an earlier attempt at the same request assigned.
fn already_assigned(
    view: &View,
    request: &AssignRequest,
    handle: &Handle,
    attribute: &AllocationAttribute,
) -> Plan<Assigned> {
    let blocks: Vec<IpNetwork> = handle.blocks().collect();
    view.require(blocks.iter().map(|&cidr| Range::Key(keys::block(cidr))))?;
    let mut done = Assigned::default();
    for cidr in blocks {
        let Ok(Some(block)) = view.block(cidr)? else {
            continue;
        };
        let mine = block
            .allocations_of(&request.handle_id)
            .filter(|allocation| allocation.attribute == *attribute);
        done.addresses.extend(mine.map(|allocation| AssignedAddress {
            address: allocation.address,
            block: cidr,
            sequence_number: allocation.sequence_number,
        }));
    }
    done.addresses
        .sort_by_key(|assigned| place(request, assigned.address));
    Ok(done)
}

/// Whether `done` answers `request`. It was one transaction, so that it is either all of it or another request's.
fn is_what_was_asked(request: &AssignRequest, done: &Assigned) -> bool {
    [(Family::V4, &request.v4), (Family::V6, &request.v6)]
        .into_iter()
        .all(|(family, asked)| {
            let mut given = done
                .addresses
                .iter()
                .map(|a| a.address)
                .filter(|&address| Family::of(address) == family);
            match asked {
                AddressRequest::None => given.next().is_none(),
                AddressRequest::Count(count) => given.count() == *count,
                // They are in the order of the request, with strangers at the end.
                AddressRequest::Exactly(addresses) => given.eq(addresses.iter().copied()),
            }
        })
}

/// Where an address stands in the answer: IPv4 before IPv6, named ones as they were named.
fn place(request: &AssignRequest, address: IpAddr) -> (Family, usize, IpAddr) {
    let family = Family::of(address);
    let asked = if family == Family::V4 {
        &request.v4
    } else {
        &request.v6
    };
    let index = match asked {
        AddressRequest::Exactly(addresses) => addresses
            .iter()
            .position(|&a| a == address)
            .unwrap_or(addresses.len()),
        _ => 0,
    };
    (family, index, address)
}

/// One request on its way to a transaction.
pub(super) struct Assignment<'a> {
    pub(super) request: &'a AssignRequest,
    pub(super) config: Arc<IpamConfig>,
    pub(super) reserved: Vec<IpNetwork>,
    pub(super) draft: Draft<'a>,
}

impl Assignment<'_> {
    fn family(&mut self, family: Family, asked: &AddressRequest) -> Plan<()> {
        match asked {
            AddressRequest::None => Ok(()),
            AddressRequest::Count(count) => self.automatic(family, *count),
            AddressRequest::Exactly(addresses) => self.exactly(addresses),
        }
    }

    fn finish(mut self, handle: Option<Handle>) -> Plan<Decision<Assigned, AssignRefusal>> {
        self.draft.assigned.sort_by_key(|assigned| {
            let (family, index, _) = place(self.request, assigned.address);
            (family, index)
        });
        let outcome = Assigned {
            addresses: self.draft.assigned.clone(),
            claimed_blocks: self.draft.claimed.clone(),
        };
        for extra in &self.request.extra_writes {
            match expected_revision(self.draft.view, &extra.key, extra.expect)? {
                Err(()) => {
                    return Err(Stop::Refuse(AssignRefusal::ExtraConflict {
                        key: extra.key.clone(),
                    }));
                }
                Ok(Some(_)) => self.draft.guard_stored(&extra.key),
                Ok(None) => {}
            }
            self.draft
                .put(extra.key.clone(), (extra.value)(&outcome.addresses));
        }
        let (txn, blocks) = self.draft.into_txn(&self.request.handle_id, handle);
        Ok(Decision::Commit { txn, blocks, outcome })
    }

    /// Addresses asked for by name: all of a block in one change. A free block is claimed for the node.
    fn exactly(&mut self, addresses: &[IpAddr]) -> Plan<()> {
        let mut by_block: BTreeMap<IpNetwork, Vec<IpAddr>> = BTreeMap::new();
        for &address in addresses {
            let pool = pools::containing(self.draft.view, address)?;
            let pool = pool.ok_or(Stop::Refuse(AssignRefusal::OutsidePools { address }))?;
            by_block
                .entry(pool.geometry.block_of(address))
                .or_default()
                .push(address);
            self.draft.guard_stored(&pool.key);
        }
        self.draft
            .view
            .require(by_block.keys().map(|&cidr| Range::Key(keys::block(cidr))))?;
        for (cidr, addresses) in by_block {
            let block = match self.draft.block(cidr)?? {
                None => Arc::new(self.claim(cidr)?),
                Some(block) if block.host() == Some(&self.request.node) => {
                    self.draft.confirm_affinity(cidr)?;
                    block
                }
                Some(block) if self.config.strict_affinity => {
                    let owner = block.host().unwrap_or("nobody").to_owned();
                    let why = format!("it belongs to {owner} and strict affinity is on");
                    let address = addresses.first().copied().unwrap_or(cidr.ip());
                    return Err(Stop::Refuse(AssignRefusal::BlockUnusable {
                        address,
                        block: cidr,
                        why,
                    }));
                }
                Some(block) => block,
            };
            self.draft
                .take(&block, &addresses)
                .map_err(|error| Stop::Refuse(refusal_of(error, cidr)))?;
        }
        Ok(())
    }

    /// A new block of the node, not in the draft before an address is taken.
    pub(super) fn claim(&mut self, cidr: IpNetwork) -> Plan<AllocationBlock> {
        self.draft
            .view
            .require([Range::Key(keys::affinity(&self.request.node, cidr))])?;
        self.draft.confirm_affinity(cidr)?;
        self.draft.claimed.push(cidr);
        Ok(AllocationBlock::claim(cidr, &self.request.node, self.draft.now))
    }
}

pub(super) fn refusal_of(error: BlockError, block: IpNetwork) -> AssignRefusal {
    match error {
        BlockError::Assigned { address, owner } => AssignRefusal::AlreadyAssigned { address, owner },
        BlockError::SetAside { address } | BlockError::Outside { address, .. } => {
            AssignRefusal::BlockUnusable {
                address,
                block,
                why: error.to_string(),
            }
        }
    }
}
