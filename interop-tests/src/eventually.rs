//! Waiting for a condition, with a deadline: the only clock and the only sleep of the labs.
//!
//! Nothing here or in a test sleeps for a time that "ought to be enough". A wait names what it waits for, tries
//! until it holds, and when the deadline passes it says what it saw last.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::bail;

use crate::signals;

/// The first pause between two attempts; each next one is half as long again.
const FIRST_PAUSE: Duration = Duration::from_millis(4);
/// The longest pause between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// Tries `attempt` until it succeeds, and returns what it gave.
///
/// An attempt that does not hold yet returns an error that describes the state it saw, or [`Hopeless`].
///
/// # Errors
/// After `within` without success: `what`, the deadline and the last state. At once when an attempt is [`Hopeless`],
/// and on SIGINT or SIGTERM.
pub fn eventually<T>(
    what: &str,
    within: Duration,
    attempt: impl FnMut() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    wait((what, within, LONGEST_PAUSE), attempt, signals::interrupted)
}

/// As [`eventually`], but tries every few milliseconds to the end: to measure when it came true.
///
/// # Errors
/// As [`eventually`].
pub fn closely<T>(
    what: &str,
    within: Duration,
    attempt: impl FnMut() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    wait((what, within, FIRST_PAUSE), attempt, signals::interrupted)
}

/// As [`eventually`], but goes on when the user interrupts: for taking things down.
///
/// # Errors
/// After `within` without success: `what`, the deadline and the last state.
pub fn eventually_uninterrupted<T>(
    what: &str,
    within: Duration,
    attempt: impl FnMut() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    wait((what, within, LONGEST_PAUSE), attempt, || false)
}

/// Looks again and again until the time is over: for what must not happen. A window, not a proof: keep it long against what
/// would make it happen.
///
/// # Errors
/// As soon as `look` fails, and on SIGINT or SIGTERM.
pub fn steadily(
    what: &str,
    window: Duration,
    mut look: impl FnMut() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let watch = Stopwatch::start();
    while watch.elapsed() < window {
        if let Err(state) = look() {
            bail!("{what}, but after {:?}: {state:#}", watch.elapsed());
        }
        if signals::interrupted() {
            bail!("interrupted while looking: {what}");
        }
        pace(LONGEST_PAUSE);
    }
    Ok(())
}

/// The error of an attempt after which no other can succeed, such as the end of the process that is waited for.
#[derive(Debug)]
pub struct Hopeless(pub String);

impl fmt::Display for Hopeless {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Hopeless {}

/// How long something has taken so far.
#[derive(Clone, Copy, Debug)]
pub struct Stopwatch(Instant);

impl Stopwatch {
    /// Starts now.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "the one clock of the labs")]
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// The time since [`Stopwatch::start`].
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
}

/// A pause for something that happens at a rate of its own (a steady stream of probes), never to wait for a state.
pub fn pace(pause: Duration) {
    #[expect(clippy::disallowed_methods, reason = "the one sleep of the labs")]
    std::thread::sleep(pause);
}

fn wait<T>(
    (what, within, longest_pause): (&str, Duration, Duration),
    mut attempt: impl FnMut() -> anyhow::Result<T>,
    interrupted: impl Fn() -> bool,
) -> anyhow::Result<T> {
    let watch = Stopwatch::start();
    let mut pause = FIRST_PAUSE;
    loop {
        let state = match attempt() {
            Ok(value) => return Ok(value),
            Err(state) => state,
        };
        if state.is::<Hopeless>() {
            bail!("{what}: {state:#}");
        }
        if interrupted() {
            bail!("interrupted while waiting for: {what}");
        }
        if watch.elapsed() >= within {
            bail!("not within {within:?}: {what}; last state: {state:#}");
        }
        pace(pause);
        pause = (pause * 3 / 2).min(longest_pause);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_that_comes_true_ends_the_wait() {
        let mut attempts = 0;
        let value = eventually("third time", Duration::from_secs(5), || {
            attempts += 1;
            if attempts < 3 {
                bail!("attempt {attempts}")
            } else {
                Ok(attempts)
            }
        });
        assert_eq!(value.unwrap(), 3);
    }

    #[test]
    fn a_hopeless_attempt_is_the_last() {
        let mut attempts = 0;
        let result: anyhow::Result<()> = eventually("life", Duration::from_secs(60), || {
            attempts += 1;
            Err(Hopeless("it is dead".to_owned()).into())
        });
        assert_eq!(result.unwrap_err().to_string(), "life: it is dead");
        assert_eq!(attempts, 1);
    }

    #[test]
    fn a_passed_deadline_tells_the_last_state() {
        let result: anyhow::Result<()> =
            eventually("the moon", Duration::from_millis(1), || bail!("no moon yet"));
        let text = result.unwrap_err().to_string();
        assert!(
            text.contains("the moon") && text.contains("no moon yet"),
            "{text}"
        );
    }
}
