//! What is kept for the workload of a request: it has it back, as far as it asks for it and the pools allow it.

use std::net::IpAddr;

use crate::error::{AssignRefusal, Family};
use crate::handle::Handle;
use crate::keys;
use crate::store::Range;

use super::assign::{Assignment, Plan};
use super::{AddressRequest, Stop, pools};

impl Assignment<'_> {
    /// Takes what is kept. Returns what is still wanted.
    pub(super) fn kept(
        &mut self,
        v4: &AddressRequest,
        v6: &AddressRequest,
    ) -> Plan<(AddressRequest, AddressRequest)> {
        let request = self.request;
        let Some(keep) = &request.keep else {
            return Ok((v4.clone(), v6.clone()));
        };
        let keeper_key = keys::handle(keep.keeper());
        self.draft.guard_stored(&keeper_key);
        let Some(stored) = self.draft.view.get(&keeper_key)? else {
            return Ok((v4.clone(), v6.clone()));
        };
        let mut keeper = Handle::parse(&keeper_key, &stored.value)?;
        let blocks: Vec<_> = keeper.blocks().collect();
        self.draft
            .view
            .require(blocks.iter().map(|&cidr| Range::Key(keys::block(cidr))))?;
        let mut wanted = (v4.clone(), v6.clone());
        for cidr in blocks {
            let of_family = match Family::of(cidr.ip()) {
                Family::V4 => &mut wanted.0,
                Family::V6 => &mut wanted.1,
            };
            if !self.is_usable(cidr, of_family)? {
                continue;
            }
            let Some(block) = self.draft.view.block(cidr)?? else {
                continue;
            };
            let mut taken: Vec<IpAddr> = Vec::new();
            for allocation in block.allocations_of(keep.keeper()) {
                if is_still_wanted(of_family, allocation.address) {
                    taken.push(allocation.address);
                }
            }
            if taken.is_empty() {
                continue;
            }
            if self.config.strict_affinity && block.host() != Some(&request.node) {
                let owner = block.host().unwrap_or("nobody");
                return Err(Stop::Refuse(AssignRefusal::BlockUnusable {
                    address: taken.first().copied().unwrap_or(cidr.ip()),
                    block: cidr,
                    why: format!(
                        "it is kept for this workload, but belongs to {owner} and strict affinity is on"
                    ),
                }));
            }
            keeper = self.draft.take_over(&block, &taken, (keep.keeper(), keeper));
        }
        Ok(wanted)
    }

    /// Whether a pool that the request may use has `cidr`. Addresses asked for by name are judged by `exactly`'s rule.
    fn is_usable(&mut self, cidr: ipnetwork::IpNetwork, wanted: &AddressRequest) -> Plan<bool> {
        let pool = match wanted {
            AddressRequest::None => None,
            AddressRequest::Exactly(_) => pools::containing(self.draft.view, cidr.ip())?,
            AddressRequest::Count(_) => {
                let choice = pools::choose(self.draft.view, self.request, Family::of(cidr.ip()))?;
                let mut usable = choice.usable.into_iter();
                usable.find(|pool| pool.geometry.contains_block(cidr))
            }
        };
        if let Some(pool) = &pool {
            self.draft.guard_stored(&pool.key);
        }
        Ok(pool.is_some())
    }
}

/// Whether `address` answers part of `wanted`, which then asks for that much less.
fn is_still_wanted(wanted: &mut AddressRequest, address: IpAddr) -> bool {
    match wanted {
        AddressRequest::None => false,
        AddressRequest::Count(1) => {
            *wanted = AddressRequest::None;
            true
        }
        AddressRequest::Count(count) => {
            let is_wanted = *count > 0;
            *count = count.saturating_sub(1);
            is_wanted
        }
        AddressRequest::Exactly(addresses) => {
            let place = addresses.iter().position(|&asked| asked == address);
            if let Some(place) = place {
                addresses.remove(place);
            }
            if addresses.is_empty() {
                *wanted = AddressRequest::None;
            }
            place.is_some()
        }
    }
}
