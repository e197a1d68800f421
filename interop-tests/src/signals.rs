//! SIGINT and SIGTERM become a flag, so that an interrupted lab takes itself down.
//!
//! The handler only stores to an atomic; whoever waits (see [`crate::eventually`]) looks at it.

#![expect(unsafe_code, reason = "the standard library has no way to catch a signal")]

use std::sync::atomic::{AtomicBool, Ordering};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// From now on SIGINT and SIGTERM set the flag instead of ending the process.
pub fn catch() {
    let handler: extern "C" fn(libc::c_int) = note;
    for signal in [libc::SIGINT, libc::SIGTERM] {
        // SAFETY: the handler only stores to a lock-free atomic, which is async-signal-safe, and lives forever.
        unsafe { libc::signal(signal, handler as libc::sighandler_t) };
    }
}

/// Whether the user asked us to stop.
#[must_use]
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

extern "C" fn note(_signal: libc::c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}
