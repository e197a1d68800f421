//! The timers of a session: one slot per timer, the next deadline with its name.
//!
//! RFC 4271 §8 and §10 (ConnectRetry, Hold, Keepalive, DelayOpen, IdleHold), RFC 9687 (SendHold), RFC 4724 §4.2 and RFC 9494 §4.2 (restart
//! and stale timers of the receiving speaker). A timer that is not set has no deadline; setting it again moves it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::time::Time;

/// Every timer a peer or one of its connections may have running.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Timer {
    /// When to try a TCP connection again (RFC 4271 §8, ConnectRetryTimer), jittered.
    ConnectRetry,
    /// How long a peer that failed stays Idle (RFC 4271 §8.1.1, IdleHoldTimer); grows with each failure.
    IdleHold,
    /// How long to wait for the other side's OPEN before sending ours (RFC 4271 §8.1.1, DelayOpenTimer).
    DelayOpen,
    /// How long the other side may be silent (RFC 4271 §4.2, HoldTimer). Four minutes until an OPEN arrived.
    Hold,
    /// When our next KEEPALIVE is due (RFC 4271 §4.4), jittered.
    Keepalive,
    /// How long the transport may refuse to take our bytes (RFC 9687).
    SendHold,
    /// How long routes of a restarting peer are kept while it is away (RFC 4724 §4.2).
    Restart,
    /// How long routes stay stale after the peer came back and sent no End-of-RIB (RFC 4724 §4.2).
    Stale,
    /// How long stale routes of a peer are kept beyond its restart time (RFC 9494 §4.2); of several families the next to end.
    LongLived,
    /// How long a peer that was made by a range of addresses is remembered without a connection.
    Forget,
}

impl Timer {
    const ALL: [Self; 10] = [
        Self::ConnectRetry,
        Self::IdleHold,
        Self::DelayOpen,
        Self::Hold,
        Self::Keepalive,
        Self::SendHold,
        Self::Restart,
        Self::Stale,
        Self::LongLived,
        Self::Forget,
    ];
}

/// A deadline per [`Timer`].
#[derive(Debug, Clone, Default)]
pub struct TimerTable {
    deadlines: [Option<Time>; Timer::ALL.len()],
}

impl TimerTable {
    /// Starts `timer`, or moves it: it fires at `at`.
    pub fn set(&mut self, timer: Timer, at: Time) {
        self.deadlines[timer as usize] = Some(at);
    }

    /// Stops `timer`; a stopped timer never fires.
    pub fn stop(&mut self, timer: Timer) {
        self.deadlines[timer as usize] = None;
    }

    /// Stops every timer.
    pub fn stop_all(&mut self) {
        self.deadlines = Default::default();
    }

    /// When `timer` fires, if it runs.
    pub fn deadline(&self, timer: Timer) -> Option<Time> {
        self.deadlines[timer as usize]
    }

    /// The earliest deadline and whose it is; ties go to the timer named first.
    pub fn next(&self) -> Option<(Time, Timer)> {
        Timer::ALL
            .into_iter()
            .filter_map(|timer| Some((self.deadline(timer)?, timer)))
            .min()
    }

    /// Takes the earliest timer that is due at `now`: it is stopped and returned. Call until `None`.
    pub fn take_expired(&mut self, now: Time) -> Option<Timer> {
        let (deadline, timer) = self.next()?;
        (deadline <= now).then(|| {
            self.stop(timer);
            timer
        })
    }

    /// What is running, and how long until each fires.
    pub fn running(&self, now: Time) -> Vec<(Timer, Duration)> {
        Timer::ALL
            .into_iter()
            .filter_map(|timer| Some((timer, self.deadline(timer)?.since(now))))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: u64) -> Time {
        Time::from_start(Duration::from_secs(secs))
    }

    #[test]
    fn timers_expire_in_order_of_deadline_and_only_once() {
        let mut table = TimerTable::default();
        table.set(Timer::Hold, at(90));
        table.set(Timer::Keepalive, at(30));
        assert_eq!(table.next(), Some((at(30), Timer::Keepalive)));
        assert_eq!(table.take_expired(at(29)), None);
        assert_eq!(table.take_expired(at(100)), Some(Timer::Keepalive));
        assert_eq!(table.take_expired(at(100)), Some(Timer::Hold));
        assert_eq!(table.take_expired(at(100)), None);
    }

    #[test]
    fn every_timer_has_a_slot_of_its_own() {
        let mut table = TimerTable::default();
        for (i, timer) in Timer::ALL.into_iter().enumerate() {
            assert_eq!(timer as usize, i);
            table.set(timer, at(i as u64));
        }
        assert_eq!(table.running(at(0)).len(), Timer::ALL.len());
    }
}
