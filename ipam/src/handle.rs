//! A handle: everything that one owner (a container's attachment, a tunnel device) was given, by block.
//!
//! The value maps block to number of addresses and is deleted when there are none.

use std::collections::BTreeMap;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::resource::{ResourceError, parse_json, print_json};

/// Value of a handle.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Handle {
    /// Number of addresses, by the block's CIDR. Text keys: they sort as Calico sorts them.
    block: BTreeMap<String, u64>,
    #[serde(default)]
    deleted: bool,
    #[serde(flatten)]
    extra: Map<String, Value>,
}

impl Handle {
    /// Reads the stored `value` of `key`. A block that is no CIDR is an error.
    pub fn parse(key: &str, value: &[u8]) -> Result<Self, ResourceError> {
        let handle: Self = parse_json(key, "handle", value)?;
        for cidr in handle.block.keys() {
            if cidr.parse::<IpNetwork>().is_err() {
                let why = format!("block {cidr:?} is not a CIDR");
                return Err(ResourceError {
                    key: key.to_owned(),
                    what: "handle",
                    why,
                });
            }
        }
        Ok(handle)
    }

    /// The stored form.
    pub fn to_json(&self) -> Vec<u8> {
        print_json(self)
    }

    /// The blocks, in the order of their text.
    pub fn blocks(&self) -> impl Iterator<Item = IpNetwork> + '_ {
        self.block.keys().filter_map(|cidr| cidr.parse().ok())
    }

    /// How many addresses of `block` the handle has.
    pub fn count(&self, block: IpNetwork) -> u64 {
        self.block.get(&block.to_string()).copied().unwrap_or(0)
    }

    /// Sets how many addresses of `block` the handle has; zero forgets the block.
    #[must_use]
    pub fn with_count(mut self, block: IpNetwork, count: u64) -> Self {
        if count == 0 {
            self.block.remove(&block.to_string());
        } else {
            self.block.insert(block.to_string(), count);
        }
        self
    }

    /// Whether it has no address: it must be deleted then.
    pub fn is_empty(&self) -> bool {
        self.block.is_empty()
    }
}
