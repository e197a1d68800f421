//! What failed, and when it is tried again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use tracing::debug;

use super::{Failure, Op, Subject};

/// Delay after the first failure; doubles with each further one.
const FIRST_DELAY: Duration = Duration::from_millis(100);
/// Longest delay.
const LAST_DELAY: Duration = Duration::from_secs(30);

/// Failed operations by what they are about. Bounded by the number of desired and observed objects.
#[derive(Default)]
pub(super) struct Retry {
    waiting: BTreeMap<Subject, Waiting>,
}

struct Waiting {
    op: Op,
    reason: String,
    attempts: u32,
    /// `None`: at once.
    retry_at: Option<Instant>,
}

impl Retry {
    /// Of the wanted operations those to be carried out now: they did not fail, or it was another operation that
    /// failed, or the delay is over. What is no longer wanted is forgotten.
    pub(super) fn due(&mut self, wanted: Vec<Op>, now: Instant) -> Vec<Op> {
        if self.waiting.is_empty() {
            return wanted;
        }
        let subjects: BTreeSet<Subject> = wanted.iter().map(Op::subject).collect();
        self.waiting.retain(|subject, _| subjects.contains(subject));
        let is_due = |op: &Op| match self.waiting.get(&op.subject()) {
            Some(waiting) => waiting.op != *op || waiting.retry_at.is_none_or(|at| at <= now),
            None => true,
        };
        wanted.into_iter().filter(is_due).collect()
    }

    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(super) fn succeeded(&mut self, op: &Op) {
        if !self.waiting.is_empty() {
            self.waiting.remove(&op.subject());
        }
    }

    pub(super) fn failed(&mut self, op: Op, reason: String, now: Instant) {
        let subject = op.subject();
        let before = self.waiting.remove(&subject);
        if before.as_ref().is_some_and(|before| before.reason == reason) {
            debug!(%op, reason, "failed again");
        } else {
            debug!(%op, reason, "failed, will be tried again");
        }
        let attempts = before.map_or(0, |before| before.attempts).saturating_add(1);
        let retry_at = Some(now + delay(attempts));
        self.waiting.insert(
            subject,
            Waiting {
                op,
                reason,
                attempts,
                retry_at,
            },
        );
    }

    pub(super) fn try_all_again(&mut self) {
        self.try_again(|_| true);
    }

    /// Has the failed operations that `concerns` says carried out at once.
    pub(super) fn try_again(&mut self, concerns: impl Fn(&Op) -> bool) {
        for waiting in self.waiting.values_mut().filter(|waiting| concerns(&waiting.op)) {
            waiting.retry_at = None;
        }
    }

    pub(super) fn failures(&self) -> impl Iterator<Item = Failure> {
        self.waiting.iter().map(|(subject, waiting)| Failure {
            what: subject.to_string(),
            reason: waiting.reason.clone(),
            attempts: waiting.attempts,
            subject: Some(subject.clone()),
        })
    }

    pub(super) fn earliest(&self) -> Option<Instant> {
        self.waiting.values().filter_map(|waiting| waiting.retry_at).min()
    }
}

fn delay(attempts: u32) -> Duration {
    let doublings = attempts.saturating_sub(1).min(16);
    FIRST_DELAY.saturating_mul(1 << doublings).min(LAST_DELAY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_delay_doubles_up_to_half_a_minute() {
        let delays: Vec<u128> = [1, 2, 3, 9, 10, u32::MAX].map(|n| delay(n).as_millis()).into();
        assert_eq!(delays, [100, 200, 400, 25_600, 30_000, 30_000]);
    }
}
