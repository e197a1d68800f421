//! Durations in JSON: numbers of seconds, to the millisecond.

use std::time::Duration;

use serde::de::{Deserialize, Deserializer, Error};
use serde::ser::{Serialize, Serializer};

pub(super) fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    rounded(*duration).serialize(serializer)
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    Duration::try_from_secs_f64(f64::deserialize(deserializer)?).map_err(D::Error::custom)
}

fn rounded(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1000.0).round() / 1000.0
}

/// Timers as an object: the timer's name, and how long until it fires.
pub(super) mod of_timers {
    use std::collections::BTreeMap;

    use super::*;
    use crate::session::Timer;

    pub(crate) fn serialize<S: Serializer>(
        timers: &[(Timer, Duration)],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_map(timers.iter().map(|(timer, left)| (timer, rounded(*left))))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<(Timer, Duration)>, D::Error> {
        let timers = BTreeMap::<Timer, f64>::deserialize(deserializer)?;
        timers
            .into_iter()
            .map(|(timer, left)| {
                Ok((
                    timer,
                    Duration::try_from_secs_f64(left).map_err(D::Error::custom)?,
                ))
            })
            .collect()
    }
}
