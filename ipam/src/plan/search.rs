//! The order in which a node looks at the blocks of a pool when it needs a new one.
//!
//! The order is a permutation of all blocks that depends on the node's name: nodes start at different places and do not
//! follow each other from taken block to taken block. The search ends after a fixed number of blocks, so that a claim
//! costs the same in a large cluster as in a small one; a pool with as many blocks or fewer is searched whole.

use ipnetwork::IpNetwork;

use crate::keys;
use crate::pool::Geometry;
use crate::store::Range;
use crate::view::{Need, View};

/// Blocks looked at in a pool before giving up.
const MAX_PROBES: u128 = 256;
/// Blocks read at once: few at first, since most pools are not nearly full.
const FIRST_BATCH: usize = 8;
const LARGEST_BATCH: usize = 64;

/// The blocks of a pool in the order in which `node` looks at them.
pub(super) struct ProbeSequence {
    geometry: Geometry,
    start: u128,
    step: u128,
    probes: u128,
}

impl ProbeSequence {
    pub(super) fn new(geometry: Geometry, node: &str) -> Self {
        let cidr = geometry.cidr.to_string();
        // The number of blocks is a power of two, so that any odd step visits every block before one comes again.
        let start = wide_hash(&["start", node, &cidr]);
        let step = wide_hash(&["step", node, &cidr]) | 1;
        let blocks = 1u128
            .checked_shl(u32::from(geometry.block_bits()))
            .unwrap_or(u128::MAX);
        Self {
            geometry,
            start,
            step,
            probes: blocks.min(MAX_PROBES),
        }
    }

    /// How many blocks will be looked at.
    pub(super) fn len(&self) -> u128 {
        self.probes
    }

    /// Whether these are all blocks of the pool.
    pub(super) fn is_exhaustive(&self) -> bool {
        self.geometry.block_bits() < 128 && self.probes == 1 << self.geometry.block_bits()
    }

    pub(super) fn blocks(&self) -> impl Iterator<Item = IpNetwork> + '_ {
        (0..self.probes).map(|probe| {
            self.geometry
                .block(self.start.wrapping_add(probe.wrapping_mul(self.step)))
        })
    }
}

/// Succeeds if the first of `blocks` is known. Otherwise asks for it together with those that will be looked at next,
/// more at a time the longer the search has been going on (`looked_at`).
pub(super) fn require_ahead(
    view: &View,
    blocks: impl Iterator<Item = IpNetwork>,
    looked_at: usize,
) -> Result<(), Need> {
    let batch = looked_at.clamp(FIRST_BATCH, LARGEST_BATCH);
    let mut ahead = blocks.map(|cidr| Range::Key(keys::block(cidr))).peekable();
    match ahead.peek() {
        Some(first) if view.require([first.clone()]).is_err() => view.require(ahead.take(batch)),
        _ => Ok(()),
    }
}

fn wide_hash(parts: &[&str]) -> u128 {
    let half = |salt: &str| {
        let mut hash = 0xcbf2_9ce4_8422_2325;
        for part in std::iter::once(&salt).chain(parts) {
            hash = fnv_1a(hash, part.as_bytes());
            // Parts end with a byte that is in none of them.
            hash = fnv_1a(hash, &[0xff]);
        }
        u128::from(scatter(hash))
    };
    (half("high") << 64) | half("low")
}

/// FNV-1a, 64 bit (draft-eastlake-fnv).
fn fnv_1a(mut hash: u64, bytes: &[u8]) -> u64 {
    for &byte in bytes {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    hash
}

/// FNV's low bits follow the last byte too closely for names that differ in a digit at the end; this mixes all bits into
/// all (the finalizer of `SplitMix64`).
fn scatter(mut hash: u64) -> u64 {
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::pool::IpPoolSpec;

    fn geometry(cidr: &str) -> Geometry {
        let spec: IpPoolSpec = serde_json::from_value(serde_json::json!({ "cidr": cidr })).unwrap();
        spec.geometry().unwrap()
    }

    #[test]
    fn a_small_pool_is_searched_whole_and_no_block_comes_twice() {
        for (cidr, blocks) in [
            ("10.0.0.0/26", 1),
            ("10.0.0.0/22", 16),
            ("10.0.0.0/18", 256),
            ("fd00::/48", 256),
        ] {
            let sequence = ProbeSequence::new(geometry(cidr), "node-a");
            assert_eq!(sequence.blocks().collect::<BTreeSet<_>>().len(), blocks, "{cidr}");
            assert_eq!(sequence.is_exhaustive(), cidr != "fd00::/48", "{cidr}");
        }
    }

    #[test]
    fn starts_are_spread_evenly_over_the_pool() {
        let pool = geometry("10.0.0.0/16");
        let mut taken = BTreeSet::new();
        let mut probes = 0;
        // 512 nodes into 1,024 blocks: with ideal hashing a claim needs 1.39 looks on average.
        for node in 0..512 {
            let name = format!("worker-{node}");
            let sequence = ProbeSequence::new(pool, &name);
            let place = sequence.blocks().position(|cidr| taken.insert(cidr)).unwrap();
            probes += place + 1;
        }
        assert!(probes < 512 * 3 / 2, "{probes} looks for 512 claims");
    }

    #[test]
    fn what_is_read_ahead_grows_with_the_search() {
        let view = View::default();
        let sequence = ProbeSequence::new(geometry("10.0.0.0/16"), "n");
        let asked = |looked_at| match require_ahead(&view, sequence.blocks().skip(looked_at), looked_at) {
            Err(Need(ranges)) => ranges.len(),
            Ok(()) => 0,
        };
        assert_eq!(
            [asked(0), asked(16), asked(100), asked(250), asked(256)],
            [8, 16, 64, 6, 0]
        );
    }
}
