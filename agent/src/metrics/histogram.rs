//! A histogram of durations that many threads count in.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds of the buckets, in microseconds: 0.1 ms to 30 s. What is longer is counted in the total only.
const BOUNDS_MICROS: [u64; 16] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    2_500_000, 10_000_000, 30_000_000,
];

/// Durations since the start.
#[derive(Debug, Default)]
pub struct Histogram {
    /// Each counts what lies within its bound and above the one before.
    buckets: [AtomicU64; BOUNDS_MICROS.len()],
    count: AtomicU64,
    sum_micros: AtomicU64,
}

impl Histogram {
    /// Counts one duration.
    pub fn observe(&self, duration: Duration) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let bucket = BOUNDS_MICROS.partition_point(|bound| *bound < micros);
        if let Some(bucket) = self.buckets.get(bucket) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        self.count.fetch_add(1, Ordering::Relaxed);
        self.sum_micros.fetch_add(micros, Ordering::Relaxed);
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// All of them together, in seconds.
    #[expect(
        clippy::cast_precision_loss,
        reason = "a sum of seconds for people and graphs"
    )]
    pub fn sum_seconds(&self) -> f64 {
        self.sum_micros.load(Ordering::Relaxed) as f64 / 1e6
    }

    /// Upper bounds in seconds, with how many durations lie within each.
    #[expect(clippy::cast_precision_loss, reason = "bounds are small")]
    pub fn cumulative(&self) -> impl Iterator<Item = (f64, u64)> {
        let counts = self.buckets.iter().scan(0_u64, |sum, bucket| {
            *sum = sum.saturating_add(bucket.load(Ordering::Relaxed));
            Some(*sum)
        });
        BOUNDS_MICROS.iter().map(|bound| *bound as f64 / 1e6).zip(counts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_counted_in_every_bucket_that_holds_it() {
        let histogram = Histogram::default();
        for micros in [50, 100, 101, 60_000_000] {
            histogram.observe(Duration::from_micros(micros));
        }
        let counts: Vec<(f64, u64)> = histogram.cumulative().collect();
        assert_eq!(counts[0], (0.0001, 2));
        assert_eq!(counts[1], (0.00025, 3));
        assert_eq!(counts[15], (30.0, 3), "a minute is in none");
        assert_eq!(histogram.count(), 4);
        assert!((histogram.sum_seconds() - 60.000_251).abs() < 1e-9);
    }
}
