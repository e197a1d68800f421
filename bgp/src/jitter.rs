//! Jitter from a seed: the only randomness of the speaker, and it is an argument.
//!
//! RFC 4271 §10 multiplies ConnectRetry, Keepalive and the advertisement timers by a factor between 0.75 and 1.0.
//! The generator is SplitMix64 (Steele, Lea, Flood 2014): a counter and a mixing function, enough to spread timers,
//! useless for secrets.

use std::time::Duration;

/// A stream of numbers that is the same for the same seed.
#[derive(Debug, Clone)]
pub struct Jitter {
    state: u64,
}

impl Jitter {
    /// The stream that `seed` names.
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// `base` multiplied by a factor from 0.75 to 1.0, in steps of 1/1024 of the range.
    pub fn spread(&mut self, base: Duration) -> Duration {
        let step = u32::try_from(self.next() >> 54).unwrap_or(0); // 10 bits
        let quarter = base / 4;
        base - quarter + quarter * step / 1024
    }

    /// A seed for another stream, different for every `salt`.
    pub fn fork(&mut self, salt: u64) -> u64 {
        self.next() ^ salt
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spread_stays_between_three_quarters_and_the_whole_and_repeats_with_the_seed() {
        let (mut a, mut b) = (Jitter::new(7), Jitter::new(7));
        for _ in 0..1000 {
            let base = Duration::from_secs(120);
            let spread = a.spread(base);
            assert!(spread >= Duration::from_secs(90) && spread <= base, "{spread:?}");
            assert_eq!(spread, b.spread(base));
        }
    }
}
