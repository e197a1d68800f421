//! The agent's only reader of clocks and source of randomness. Everything else takes them as arguments.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use calidris_ipam::UnixNanos;

/// The moment on the monotonic clock.
#[expect(clippy::disallowed_methods, reason = "this is the place that reads the clock")]
pub fn now() -> Instant {
    Instant::now()
}

/// The moment on the wall clock, for what is written to the datastore.
#[expect(clippy::disallowed_methods, reason = "this is the place that reads the clock")]
pub fn wall() -> UnixNanos {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixNanos(i64::try_from(since_1970.as_nanos()).unwrap_or(i64::MAX))
}

/// A number that differs between nodes and starts, for jitter; not a secret.
pub fn seed() -> u64 {
    let now = wall().0.unsigned_abs();
    now.rotate_left(17) ^ u64::from(std::process::id())
}

/// A new UUID (version 4), from the kernel. All zeros where it has none to give.
pub fn uuid() -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap_or_default();
    let text = text.trim();
    if text.len() == 36 {
        text.to_owned()
    } else {
        "00000000-0000-0000-0000-000000000000".to_owned()
    }
}
