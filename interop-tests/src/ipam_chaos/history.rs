//! Who owned which address when, and whether anybody shared one.
//!
//! An address is a lock: an assignment takes it at some moment between its call and its answer, a release gives it back at
//! some moment between its call and its answer. What is certain is only that it was owned from the answer of the assignment
//! to the call of the release. The history of an address is linearizable exactly if these certain intervals do not
//! overlap: then the moment of each assignment can be put at its answer and that of each release at its call. An
//! assignment without an answer is certain of nothing; whether one took effect behind everybody's back shows at the end,
//! when all that is allocated must be held by somebody.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::bail;

/// The intervals of all addresses.
#[derive(Debug, Default)]
pub(crate) struct History {
    by_address: BTreeMap<IpAddr, Vec<Interval>>,
}

#[derive(Debug, Clone)]
struct Interval {
    handle: String,
    /// When the assignment was answered.
    from: Duration,
    /// When the release was asked for.
    until: Option<Duration>,
}

impl History {
    /// The assignment of `address` to `handle` was answered.
    pub(crate) fn owns(&mut self, address: IpAddr, handle: &str, now: Duration) {
        self.by_address.entry(address).or_default().push(Interval {
            handle: handle.to_owned(),
            from: now,
            until: None,
        });
    }

    /// A release of `handle` is about to be asked for.
    pub(crate) fn gives_up(&mut self, address: IpAddr, handle: &str, now: Duration) {
        let intervals = self.by_address.entry(address).or_default();
        if let Some(own) = intervals
            .iter_mut()
            .rev()
            .find(|interval| interval.handle == handle && interval.until.is_none())
        {
            own.until = Some(now);
        }
    }

    pub(crate) fn intervals(&self) -> usize {
        self.by_address.values().map(Vec::len).sum()
    }

    pub(crate) fn addresses(&self) -> usize {
        self.by_address.len()
    }

    /// # Errors
    /// The first two owners of one address at one time.
    pub(crate) fn judge(&self) -> anyhow::Result<()> {
        for (address, intervals) in &self.by_address {
            let mut sorted: Vec<&Interval> = intervals.iter().collect();
            sorted.sort_by_key(|interval| interval.from);
            for (before, after) in sorted.iter().zip(sorted.iter().skip(1)) {
                if before.until.is_none_or(|until| until > after.from) {
                    bail!("{address} had two owners: {before:?} and {after:?}");
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn two_owners_at_a_time_are_found_and_one_after_the_other_is_right() {
        let address = IpAddr::from([10, 0, 0, 1]);
        let mut history = History::default();
        history.owns(address, "a", SECOND);
        history.gives_up(address, "a", SECOND * 2);
        history.owns(address, "b", SECOND * 3);
        assert!(history.judge().is_ok());
        history.owns(address, "c", SECOND * 4);
        assert!(history.judge().is_err());
        history.gives_up(address, "b", SECOND * 5);
        let error = history.judge().unwrap_err().to_string();
        assert!(error.contains("10.0.0.1 had two owners"), "{error}");
    }
}
