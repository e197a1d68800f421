//! Time as an argument.
//!
//! The speaker reads no clock. Whoever drives it passes the present moment into every call as a [`Time`]: microseconds on
//! a monotonic line that the driver chose (its own start, say). Tests move it by hand.

use std::ops::{Add, Sub};
use std::time::Duration;

use serde::Serialize;

/// A moment on the driver's monotonic line, in microseconds since a point that never moves while the speaker lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize)]
pub struct Time(u64);

impl Time {
    /// The beginning of the line.
    pub const ZERO: Self = Self(0);

    /// The moment `since_start` after the beginning of the line; what does not fit is the last moment there is.
    pub fn from_start(since_start: Duration) -> Self {
        Self(u64::try_from(since_start.as_micros()).unwrap_or(u64::MAX))
    }

    /// How far this moment is from the beginning of the line.
    pub const fn since_start(self) -> Duration {
        Duration::from_micros(self.0)
    }

    /// The time that passed since `earlier`; zero when `earlier` is in fact later.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }

    /// Whole seconds since the beginning of the line, as routes remember the moment they were learnt.
    pub fn seconds(self) -> u32 {
        u32::try_from(self.0 / 1_000_000).unwrap_or(u32::MAX)
    }
}

impl Add<Duration> for Time {
    type Output = Self;

    fn add(self, rhs: Duration) -> Self {
        Self(
            self.0
                .saturating_add(u64::try_from(rhs.as_micros()).unwrap_or(u64::MAX)),
        )
    }
}

impl Sub for Time {
    type Output = Duration;

    fn sub(self, rhs: Self) -> Duration {
        self.since(rhs)
    }
}
