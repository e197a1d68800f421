//! How much memory a thread has, counted where it is given out: what a message may cost is part of the test.
#![expect(
    unsafe_code,
    reason = "an allocator is unsafe by its interface; this one counts and passes on"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    /// Octets this thread has taken and not given back, and the most there ever were.
    static TAKEN: Cell<(isize, isize)> = const { Cell::new((0, 0)) };
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: everything is done by the system's allocator, with the arguments as they came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: as above.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(0, layout.size());
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // The old octets may be there until the new ones are.
        count(new_size, 0);
        count(0, layout.size());
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, new_size) }
    }
}

fn count(taken: usize, given_back: usize) {
    // A thread that is ending is not counted any more.
    let _ending = TAKEN.try_with(|cell| {
        let (now, most) = cell.get();
        let now = now + taken.cast_signed() - given_back.cast_signed();
        cell.set((now, most.max(now)));
    });
}

/// Does something, and says how many octets it had at a time at most, beside those there were before.
pub(super) fn measured<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = TAKEN.with(|cell| {
        let (now, _) = cell.get();
        cell.set((now, now));
        now
    });
    let done = work();
    let (_, most) = TAKEN.get();
    (done, usize::try_from(most - before).unwrap_or_default())
}
