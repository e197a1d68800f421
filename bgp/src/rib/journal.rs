//! The journal: which destinations changed, in order, each at most once for a reader that comes late.
//!
//! Every change gets the next number of a sequence that never wraps. A reader keeps the number up to which it has read. An entry whose
//! destination changed again later is skipped by readers and dropped by compaction, so that the journal never holds more than twice the
//! destinations there are, however slow a reader is.

use std::collections::VecDeque;

use super::DestId;

/// Entries below this number are not worth compacting.
const COMPACT_MIN: usize = 1024;

/// Changed destinations in order.
#[derive(Debug, Default)]
pub(super) struct Journal {
    entries: VecDeque<(u64, DestId)>,
    next: u64,
}

impl Journal {
    /// The number the next change will get: a reader that starts here has read everything.
    pub(super) const fn end(&self) -> u64 {
        self.next
    }

    /// Records a change and returns its number.
    pub(super) fn push(&mut self, dest: DestId) -> u64 {
        let number = self.next;
        self.next += 1;
        self.entries.push_back((number, dest));
        number
    }

    /// The first entry with a number of at least `from`, for which `is_current` says that it is its destination's last.
    pub(super) fn first_from(
        &self,
        from: u64,
        is_current: impl Fn(u64, DestId) -> bool,
    ) -> Option<(u64, DestId)> {
        let start = self.entries.partition_point(|(number, _)| *number < from);
        self.entries
            .range(start..)
            .copied()
            .find(|(number, dest)| is_current(*number, *dest))
    }

    /// Takes the oldest entry if its number is below `before`: every reader has read it.
    pub(super) fn pop_before(&mut self, before: u64) -> Option<(u64, DestId)> {
        if self.entries.front()?.0 >= before {
            return None;
        }
        self.entries.pop_front()
    }

    /// How many entries there are, outdated ones included.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether dropping outdated entries is due, given the number of destinations.
    pub(super) fn wants_compaction(&self, destinations: usize) -> bool {
        self.entries.len() > COMPACT_MIN + 2 * destinations
    }

    /// Drops the entries for which `is_current` does not hold.
    pub(super) fn compact(&mut self, is_current: impl Fn(u64, DestId) -> bool) {
        self.entries.retain(|(number, dest)| is_current(*number, *dest));
    }
}
