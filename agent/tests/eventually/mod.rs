//! Waiting for a condition with a deadline: the only sleep of the agent's tests.

use std::time::{Duration, Instant};

/// Long enough for a loaded machine; who waits in vain fails then.
const DEADLINE: Duration = Duration::from_secs(60);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(50);

/// Looks until something is found, and returns it.
#[expect(
    clippy::disallowed_methods,
    reason = "a deadline in a test with real processes"
)]
pub(crate) fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "never came about: {what}");
        std::thread::sleep(PAUSE);
    }
}
