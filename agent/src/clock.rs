//! The agent's only reader of clocks and source of randomness. Everything else takes them as arguments.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use calidris_ipam::UnixNanos;
use rustix::rand::GetRandomFlags;

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

/// A new UUID (version 4, RFC 9562 §5.4), from the kernel. All zeros where it has no randomness to give.
pub fn uuid() -> String {
    let mut bytes = [0; 16];
    // So few bytes come whole or not at all (getrandom(2)).
    let is_random = rustix::rand::getrandom(&mut bytes, GetRandomFlags::empty()).is_ok();
    let random = u128::from_be_bytes(bytes);
    let marked = random & !(0xf << 76) & !(0x3 << 62) | (0x4 << 76) | (0x2 << 62);
    let digits = format!("{:032x}", if is_random { marked } else { 0 });
    let (low_time, rest) = digits.split_at(8);
    let (mid_time, rest) = rest.split_at(4);
    let (version, rest) = rest.split_at(4);
    let (variant, node) = rest.split_at(4);
    format!("{low_time}-{mid_time}-{version}-{variant}-{node}")
}

#[cfg(test)]
mod tests {
    use super::uuid;

    #[test]
    fn uuids_say_that_they_are_random_and_differ() {
        let (one, other) = (uuid(), uuid());
        assert_ne!(one, other);
        let parts: Vec<&str> = one.split('-').collect();
        assert_eq!(
            parts.iter().map(|part| part.len()).collect::<Vec<_>>(),
            [8, 4, 4, 4, 12]
        );
        assert!(parts.concat().bytes().all(|digit| digit.is_ascii_hexdigit()));
        assert!(parts[2].starts_with('4'), "{one}");
        assert!(parts[3].starts_with(['8', '9', 'a', 'b']), "{one}");
    }
}
