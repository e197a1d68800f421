//! Who has one address, and since when.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use calidris_ipam::{Inventory, keys};
use serde::Serialize;

/// One address.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct AddressView {
    address: IpAddr,
    state: State,
    pool: Option<String>,
    block: Option<String>,
    block_owner: Option<String>,
    handle_id: Option<String>,
    sequence_number: Option<u64>,
    /// What was noted when it was assigned.
    notes: BTreeMap<String, String>,
    /// Endpoints and tunnel devices that have it.
    used_by: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum State {
    /// Somebody was given it.
    Allocated,
    /// Released; it will be free in a while.
    Resting,
    /// Released; its workload has it back if it comes again in time.
    Kept,
    /// It can be given.
    Free,
    /// It can be given to somebody who asks for it by name.
    Reserved,
    /// It is in a block that cannot be read.
    Unknown,
    /// It is in no pool.
    OutsidePools,
}

impl AddressView {
    pub(super) fn of(inventory: &Inventory, address: IpAddr) -> Self {
        let allocation = inventory.allocation_of(address);
        let pool = inventory.pools_of(address).next();
        let possible = keys::possible_blocks(address);
        let block = possible
            .iter()
            .find_map(|cidr| inventory.blocks.get_key_value(cidr));
        let state = match &allocation {
            Some(allocation) if allocation.attribute.is_resting() => State::Resting,
            Some(allocation) if allocation.attribute.kept_until().is_some() => State::Kept,
            Some(_) => State::Allocated,
            None if possible
                .iter()
                .any(|cidr| inventory.invalid_blocks.contains(cidr)) =>
            {
                State::Unknown
            }
            None if pool.is_none() => State::OutsidePools,
            None if inventory.reservations.iter().any(|range| range.contains(address)) => State::Reserved,
            None => State::Free,
        };
        let attribute = allocation.as_ref().map(|allocation| &allocation.attribute);
        Self {
            address,
            state,
            pool: pool.map(|(name, pool)| format!("{name} {}", pool.cidr)),
            block: block.map(|(cidr, _)| cidr.to_string()),
            block_owner: block.and_then(|(_, block)| block.owner()).map(str::to_owned),
            handle_id: attribute
                .and_then(|attribute| attribute.handle())
                .map(str::to_owned),
            sequence_number: allocation.as_ref().map(|allocation| allocation.sequence_number),
            notes: attribute
                .map(|attribute| attribute.secondary.clone())
                .unwrap_or_default(),
            used_by: users(inventory, address),
        }
    }
}

/// Endpoints and tunnel devices that have `address`, for people.
pub(in crate::cli::ipam) fn users(inventory: &Inventory, address: IpAddr) -> Vec<String> {
    let endpoints = inventory
        .endpoints
        .values()
        .filter(|endpoint| endpoint.addresses.contains(&address));
    let endpoints = endpoints.map(|endpoint| format!("endpoint {}/{}", endpoint.namespace, endpoint.name));
    let tunnels = inventory
        .nodes
        .iter()
        .filter(|(_, tunnels)| tunnels.contains(&address));
    let tunnels = tunnels.map(|(node, _)| format!("a tunnel device of {node}"));
    endpoints.chain(tunnels).collect()
}

impl fmt::Display for AddressView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            State::Allocated => "allocated",
            State::Resting => "resting after a release",
            State::Kept => "kept for its workload",
            State::Free => "free",
            State::Reserved => "reserved",
            State::Unknown => "UNKNOWN: its block cannot be read",
            State::OutsidePools => "in no pool",
        };
        let line = |f: &mut fmt::Formatter<'_>, title: &str, value: &str| writeln!(f, "{title:<12}{value}");
        line(f, "address", &self.address.to_string())?;
        line(f, "state", state)?;
        line(f, "pool", self.pool.as_deref().unwrap_or("-"))?;
        match (&self.block, &self.block_owner) {
            (Some(block), Some(owner)) => line(f, "block", &format!("{block} of {owner}"))?,
            (Some(block), None) => line(f, "block", &format!("{block} of nobody"))?,
            (None, _) => line(f, "block", "-")?,
        }
        line(f, "handle", self.handle_id.as_deref().unwrap_or("-"))?;
        for (note, value) in &self.notes {
            line(f, note, value)?;
        }
        if self.used_by.is_empty() {
            line(f, "used by", "-")?;
        }
        self.used_by.iter().try_for_each(|user| line(f, "used by", user))
    }
}
