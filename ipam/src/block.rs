//! An allocation block: the value under `/calico/ipam/v2/assignment/…`, and what can be done with it.
//!
//! Operations return a new block and leave the old one as it was. As in Calico:
//! - `unallocated` is a queue: addresses are given out from the front and come back at the end, so that an address
//!   rests as long as possible. An address asked for by name is taken out of the middle.
//! - `allocations[ordinal]` is the index of an entry of `attributes`. Entries without a user are removed and the
//!   indexes above move down.
//! - `sequenceNumber` begins as the time of the claim in nanoseconds and goes up by one with every change;
//!   `sequenceNumberForAllocation[ordinal]` is the number *before* the change that allocated it. Who releases can name
//!   the number and so never releases an address that somebody else got meanwhile.
//!
//! - With a cool-down, a released address stays allocated, to an entry without a handle that says when (`releasedAt`), so
//!   that it survives a restart of whoever released it. When the rest is over, the next assignment puts it back into the
//!   queue. Who asks for it by name gets it before: a workload that comes back has its own address again.
//!
//! Invariants, checked when a block is read: an ordinal is either allocated (to an entry that exists) or in the queue
//! once, or neither (an address that rests, or is reserved by another program); never both.

mod sequence_numbers;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::Deref;
use std::sync::Arc;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

use crate::pool::{address_at, ordinal_of};
use crate::resource::{ResourceError, parse_json, print_json};
use crate::timestamp::UnixNanos;

use sequence_numbers::SequenceNumbers;

/// The largest block Calico makes: /20 (IPv4), /116 (IPv6).
const MAX_ADDRESSES: usize = 4096;
/// The note of an address that rests.
const RELEASED_AT: &str = "releasedAt";

/// Value of a block.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AllocationBlock {
    cidr: IpNetwork,
    affinity: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    affinity_claim_time: Option<String>,
    allocations: Vec<Option<usize>>,
    #[serde(deserialize_with = "null_as_empty")]
    unallocated: Vec<usize>,
    #[serde(deserialize_with = "null_as_empty")]
    attributes: Vec<Entry>,
    #[serde(rename = "sequenceNumber", default)]
    sequence_number: u64,
    #[serde(
        rename = "sequenceNumberForAllocation",
        default,
        deserialize_with = "null_as_empty"
    )]
    sequence_number_for_allocation: SequenceNumbers,
    #[serde(default)]
    deleted: bool,
    #[serde(flatten)]
    extra: Map<String, Value>,
}

/// An entry of `attributes`. A block and what comes of it share those that stay as they are: nearly all of them, with every
/// change.
#[derive(Clone, Debug, PartialEq)]
struct Entry(Arc<AllocationAttribute>);

/// Who has addresses of a block, and what is noted about it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AllocationAttribute {
    /// The handle.
    pub handle_id: Option<String>,
    /// Notes: `node`, `timestamp`, `pod`, `namespace`, `type`, …
    #[serde(default, deserialize_with = "null_as_empty")]
    pub secondary: BTreeMap<String, String>,
    /// Fields not known here.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// One allocated address.
#[derive(Clone, Debug, PartialEq)]
pub struct Allocation {
    /// The address.
    pub address: IpAddr,
    /// Its block.
    pub block: IpNetwork,
    /// The sequence number of this allocation, to be named at release.
    pub sequence_number: u64,
    /// Who has it.
    pub attribute: AllocationAttribute,
}

/// Why an address of a block cannot be given.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BlockError {
    /// Not in this block.
    #[error("{address} is not in block {block}")]
    Outside {
        /// The address.
        address: IpAddr,
        /// The block.
        block: IpNetwork,
    },
    /// Somebody has it.
    #[error("{address} is assigned to {owner}")]
    Assigned {
        /// The address.
        address: IpAddr,
        /// Its handle.
        owner: String,
    },
    /// Neither assigned nor free: another program set it aside.
    #[error("{address} is neither assigned nor free")]
    SetAside {
        /// The address.
        address: IpAddr,
    },
}

impl AllocationBlock {
    /// A block that `owner` claims now. `cidr` must be a block of a pool (at most 4096 addresses).
    pub fn claim(cidr: IpNetwork, owner: &str, now: UnixNanos) -> Self {
        let size = block_size(cidr).unwrap_or(0);
        Self {
            cidr,
            affinity: Some(host_affinity(owner)),
            affinity_claim_time: Some(now.rfc3339()),
            allocations: vec![None; size],
            unallocated: (0..size).collect(),
            attributes: Vec::new(),
            sequence_number: u64::try_from(now.0).unwrap_or(0),
            sequence_number_for_allocation: SequenceNumbers::default(),
            deleted: false,
            extra: Map::new(),
        }
    }

    /// Reads the stored `value` of `key` and checks the invariants.
    pub fn parse(key: &str, value: &[u8]) -> Result<Self, ResourceError> {
        let block: Self = parse_json(key, "allocation block", value)?;
        match block.inconsistency() {
            None => Ok(block),
            Some(why) => Err(ResourceError {
                key: key.to_owned(),
                what: "allocation block",
                why,
            }),
        }
    }

    /// The stored form.
    pub fn to_json(&self) -> Vec<u8> {
        print_json(self)
    }

    /// The addresses it covers.
    pub fn cidr(&self) -> IpNetwork {
        self.cidr
    }

    /// The node it belongs to, `None` if to none (or to something virtual).
    pub fn host(&self) -> Option<&str> {
        self.affinity.as_deref()?.strip_prefix("host:")
    }

    /// Its owner as stored: `host:NODE`, `virtual:NAME`, or `None`.
    pub fn owner(&self) -> Option<&str> {
        self.affinity.as_deref()
    }

    /// Whether it belongs to nobody, neither a node nor something virtual.
    pub fn is_ownerless(&self) -> bool {
        self.affinity.is_none()
    }

    /// When it was claimed, if that is noted.
    pub fn claimed_at(&self) -> Option<UnixNanos> {
        UnixNanos::parse_rfc3339(self.affinity_claim_time.as_deref()?)
    }

    /// Its sequence number: another one after every change.
    pub fn sequence_number(&self) -> u64 {
        self.sequence_number
    }

    /// Whether no address is allocated.
    pub fn is_empty(&self) -> bool {
        self.allocations.iter().all(Option::is_none)
    }

    /// The free addresses, in the order in which they would be given out.
    pub fn free(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.unallocated
            .iter()
            .map(|&ordinal| address_at(self.cidr, ordinal))
    }

    /// The allocated addresses, ascending.
    pub fn allocations(&self) -> impl Iterator<Item = Allocation> + '_ {
        self.allocated()
            .map(|(ordinal, attribute)| self.allocation_at(ordinal, attribute))
    }

    /// The attributes of every allocated address, one per address, ascending.
    pub fn allocated_attributes(&self) -> impl Iterator<Item = &AllocationAttribute> + '_ {
        let indexes = self.allocations.iter().flatten();
        indexes.filter_map(|&index| Some(&**self.attributes.get(index)?))
    }

    /// The allocation of `address`, if it is of this block and allocated.
    pub fn allocation(&self, address: IpAddr) -> Option<Allocation> {
        let ordinal = ordinal_of(self.cidr, address)?;
        let index = (*self.allocations.get(ordinal)?)?;
        Some(self.allocation_at(ordinal, self.attributes.get(index)?))
    }

    /// The addresses that `handle_id` has, ascending.
    pub fn allocations_of<'a>(&'a self, handle_id: &'a str) -> impl Iterator<Item = Allocation> + 'a {
        self.allocated()
            .filter(move |(_, attribute)| attribute.belongs_to(handle_id))
            .map(|(ordinal, attribute)| self.allocation_at(ordinal, attribute))
    }

    /// Gives `addresses` of this block to `attribute`: all of them, in one change, or none.
    pub fn assign(&self, addresses: &[IpAddr], attribute: &AllocationAttribute) -> Result<Self, BlockError> {
        let mut next = self.clone();
        let index = self.index_of(attribute);
        if index == next.attributes.len() {
            next.attributes.push(Entry::new(attribute));
        }
        for &address in addresses {
            let ordinal = next.free_ordinal(address)?;
            next.unallocated.retain(|&free| free != ordinal);
            if let Some(allocation) = next.allocations.get_mut(ordinal) {
                *allocation = Some(index);
            }
            next.sequence_number_for_allocation
                .insert(ordinal, self.sequence_number);
        }
        next.drop_unused_attributes();
        next.sequence_number = self.sequence_number.wrapping_add(1);
        Ok(next)
    }

    /// Takes `addresses` back, in this order, to the end of the queue. Those not allocated are passed over; without any
    /// change the block is the same.
    #[must_use]
    pub fn release(&self, addresses: &[IpAddr]) -> Self {
        let mut next = self.clone();
        let mut changed = false;
        for &address in addresses {
            let Some(ordinal) = ordinal_of(self.cidr, address) else {
                continue;
            };
            let Some(allocation) = next.allocations.get_mut(ordinal) else {
                continue;
            };
            if allocation.take().is_some() {
                next.unallocated.push(ordinal);
                next.sequence_number_for_allocation.remove(ordinal);
                changed = true;
            }
        }
        if changed {
            next.drop_unused_attributes();
            next.sequence_number = self.sequence_number.wrapping_add(1);
        }
        next
    }

    /// Lets `addresses` rest from `now` on. Those not allocated are passed over; without any change the block is the same.
    #[must_use]
    pub fn rest(&self, addresses: &[IpAddr], now: UnixNanos) -> Self {
        self.hand_over(addresses, &AllocationAttribute::resting_since(now))
    }

    /// Gives `addresses`, which somebody has, to `attribute`: they are never free in between. Those not allocated are passed
    /// over; without any change the block is the same.
    #[must_use]
    pub fn hand_over(&self, addresses: &[IpAddr], attribute: &AllocationAttribute) -> Self {
        let mut next = self.clone();
        let index = self.index_of(attribute);
        let mut changed = false;
        for ordinal in addresses
            .iter()
            .filter_map(|&address| ordinal_of(self.cidr, address))
        {
            if let Some(Some(allocation)) = next.allocations.get_mut(ordinal) {
                *allocation = index;
                let numbers = &mut next.sequence_number_for_allocation;
                if attribute.is_resting() {
                    numbers.remove(ordinal);
                } else {
                    numbers.insert(ordinal, self.sequence_number);
                }
                changed = true;
            }
        }
        if changed {
            if index == next.attributes.len() {
                next.attributes.push(Entry::new(attribute));
            }
            next.drop_unused_attributes();
            next.sequence_number = self.sequence_number.wrapping_add(1);
        }
        next
    }

    /// The same block with the addresses that have rested for `cooldown_nanos` back in the queue, those first that have
    /// rested longest.
    #[must_use]
    pub fn rested(&self, now: UnixNanos, cooldown_nanos: i64) -> Self {
        let mut over: Vec<(UnixNanos, IpAddr)> = self
            .allocations()
            .filter(|allocation| allocation.attribute.is_resting())
            .filter_map(|allocation| {
                // A time that cannot be read would be a rest without end.
                let since = allocation.attribute.resting_from().unwrap_or(UnixNanos(0));
                // So would one in a future that only a wrong clock can have written.
                let age = now.0.saturating_sub(since.0);
                (age >= cooldown_nanos || age < -cooldown_nanos).then_some((since, allocation.address))
            })
            .collect();
        over.sort();
        let over: Vec<IpAddr> = over.into_iter().map(|(_, address)| address).collect();
        self.release(&over)
    }

    /// The same block in the hands of another node, which claims it now.
    #[must_use]
    pub fn taken_over(&self, owner: &str, now: UnixNanos) -> Self {
        let mut next = self.clone();
        next.affinity = Some(host_affinity(owner));
        next.affinity_claim_time = Some(now.rfc3339());
        next.sequence_number = self.sequence_number.wrapping_add(1);
        next
    }

    /// The same block in nobody's hands. What is allocated stays.
    #[must_use]
    pub fn disowned(&self) -> Self {
        let mut next = self.clone();
        next.affinity = None;
        next.affinity_claim_time = None;
        next.sequence_number = self.sequence_number.wrapping_add(1);
        next
    }

    /// Whether any address rests.
    pub(crate) fn has_resting(&self) -> bool {
        self.attributes.iter().any(|entry| entry.is_resting())
    }

    /// The ordinals that are allocated, and to what.
    fn allocated(&self) -> impl Iterator<Item = (usize, &AllocationAttribute)> {
        let indexes = self.allocations.iter().enumerate();
        indexes.filter_map(|(ordinal, index)| Some((ordinal, &**self.attributes.get((*index)?)?)))
    }

    fn allocation_at(&self, ordinal: usize, attribute: &AllocationAttribute) -> Allocation {
        Allocation {
            address: address_at(self.cidr, ordinal),
            block: self.cidr,
            sequence_number: self.allocation_sequence_number(ordinal),
            attribute: attribute.clone(),
        }
    }

    fn free_ordinal(&self, address: IpAddr) -> Result<usize, BlockError> {
        let outside = BlockError::Outside {
            address,
            block: self.cidr,
        };
        let ordinal = ordinal_of(self.cidr, address).ok_or(outside)?;
        if let Some(index) = self.allocations.get(ordinal).copied().flatten() {
            let attribute = self.attributes.get(index);
            if attribute.is_some_and(|entry| entry.is_resting()) {
                return Ok(ordinal);
            }
            let owner = attribute.and_then(|attribute| attribute.handle_id.clone());
            return Err(BlockError::Assigned {
                address,
                owner: owner.unwrap_or_else(|| "nobody known".to_owned()),
            });
        }
        if !self.unallocated.contains(&ordinal) {
            return Err(BlockError::SetAside { address });
        }
        Ok(ordinal)
    }

    fn allocation_sequence_number(&self, ordinal: usize) -> u64 {
        self.sequence_number_for_allocation.of(ordinal).unwrap_or(0)
    }

    /// The index of the entry that is `attribute`, or of the one that it would be if it came to them.
    fn index_of(&self, attribute: &AllocationAttribute) -> usize {
        let known = self.attributes.iter().position(|entry| **entry == *attribute);
        known.unwrap_or(self.attributes.len())
    }

    fn drop_unused_attributes(&mut self) {
        let mut is_used = vec![false; self.attributes.len()];
        for &index in self.allocations.iter().flatten() {
            if let Some(is_used) = is_used.get_mut(index) {
                *is_used = true;
            }
        }
        if is_used.iter().all(|&is_used| is_used) {
            return;
        }
        let mut unused_before = 0;
        let new_index: Vec<usize> = is_used
            .iter()
            .enumerate()
            .map(|(index, &is_used)| {
                let new_index = index - unused_before;
                unused_before += usize::from(!is_used);
                new_index
            })
            .collect();
        let mut is_used = is_used.into_iter();
        self.attributes.retain(|_| is_used.next().unwrap_or(false));
        for allocation in self.allocations.iter_mut().flatten() {
            *allocation = new_index.get(*allocation).copied().unwrap_or(*allocation);
        }
    }

    fn inconsistency(&self) -> Option<String> {
        let Some(size) = block_size(self.cidr) else {
            return Some(format!("{} has more than {MAX_ADDRESSES} addresses", self.cidr));
        };
        if self.cidr.network() != self.cidr.ip() {
            return Some(format!("{} has host bits set", self.cidr));
        }
        if self.allocations.len() != size {
            let entries = self.allocations.len();
            return Some(format!(
                "allocations has {entries} entries, expected {size} for {}",
                self.cidr
            ));
        }
        let entries = self.attributes.len();
        if let Some(index) = self.allocations.iter().flatten().find(|&&index| index >= entries) {
            return Some(format!(
                "an allocation refers to attribute {index}, but there are {entries}"
            ));
        }
        let mut seen = BTreeSet::new();
        for &ordinal in &self.unallocated {
            match self.allocations.get(ordinal) {
                None => return Some(format!("unallocated names ordinal {ordinal} of {size}")),
                Some(Some(_)) => return Some(format!("ordinal {ordinal} is both allocated and unallocated")),
                Some(None) if !seen.insert(ordinal) => {
                    return Some(format!("ordinal {ordinal} is twice in unallocated"));
                }
                Some(None) => {}
            }
        }
        None
    }
}

impl Entry {
    fn new(attribute: &AllocationAttribute) -> Self {
        Self(Arc::new(attribute.clone()))
    }
}

impl Deref for Entry {
    type Target = AllocationAttribute;

    fn deref(&self) -> &AllocationAttribute {
        &self.0
    }
}

impl Serialize for Entry {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Entry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        AllocationAttribute::deserialize(deserializer).map(|attribute| Self(Arc::new(attribute)))
    }
}

impl AllocationAttribute {
    /// The handle. Calico once stored handles with a carriage return and more behind it; what is before it counts.
    pub fn handle(&self) -> Option<&str> {
        self.handle_id
            .as_deref()
            .and_then(|stored| stored.split('\r').next())
    }

    /// Whether this is `handle_id`'s.
    pub fn belongs_to(&self, handle_id: &str) -> bool {
        self.handle() == Some(handle_id)
    }

    /// Whether the address was released and rests (Calico's `ipCooldownSeconds`): nobody has it, nobody gets it yet.
    pub fn is_resting(&self) -> bool {
        self.extra.get(RELEASED_AT).is_some_and(|at| !at.is_null())
    }

    fn resting_since(now: UnixNanos) -> Self {
        // In whole seconds, rounded up: no rest is shorter than was said.
        let now = UnixNanos(now.0.saturating_add(999_999_999));
        let released_at = (RELEASED_AT.to_owned(), Value::from(now.rfc3339()));
        Self {
            handle_id: None,
            secondary: BTreeMap::new(),
            extra: Map::from_iter([released_at]),
        }
    }

    /// Since when it rests, if that can be read.
    fn resting_from(&self) -> Option<UnixNanos> {
        UnixNanos::parse_rfc3339(self.extra.get(RELEASED_AT)?.as_str()?)
    }
}

fn host_affinity(node: &str) -> String {
    format!("host:{node}")
}

/// Number of addresses, if it is one that a block can have.
fn block_size(cidr: IpNetwork) -> Option<usize> {
    let width = if cidr.is_ipv4() { 32 } else { 128 };
    let size = 1usize.checked_shl(u32::from(width - cidr.prefix()))?;
    (1..=MAX_ADDRESSES).contains(&size).then_some(size)
}

/// Go prints a list or map that was never made as `null`.
fn null_as_empty<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests;
