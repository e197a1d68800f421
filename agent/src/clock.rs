//! The agent's only reader of clocks and source of seeds. Everything else takes time as an argument.

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
