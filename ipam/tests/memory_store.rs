//! The memory store keeps the contract of a store.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use calidris_ipam::MemoryStore;
use support::{now_or_never, store_suite};

#[test]
fn the_memory_store_keeps_the_contract() {
    now_or_never(store_suite::all_cases(&MemoryStore::default()));
}
