//! One request at a time per host interface.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

/// The locks that somebody holds or waits for.
#[derive(Debug, Default)]
pub(super) struct Locks {
    by_name: Arc<Mutex<BTreeMap<String, Arc<AsyncMutex<()>>>>>,
}

/// Holds the lock of a name until it is dropped.
#[derive(Debug)]
pub(super) struct Held {
    name: String,
    by_name: Arc<Mutex<BTreeMap<String, Arc<AsyncMutex<()>>>>>,
    guard: Option<OwnedMutexGuard<()>>,
}

impl Locks {
    /// Waits its turn.
    pub(super) async fn hold(&self, name: &str) -> Held {
        let lock = {
            let mut by_name = self.by_name.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(by_name.entry(name.to_owned()).or_default())
        };
        // From here on, also when this future is dropped while it waits, `Held` cleans up.
        let mut held = Held {
            name: name.to_owned(),
            by_name: Arc::clone(&self.by_name),
            guard: None,
        };
        held.guard = Some(lock.lock_owned().await);
        held
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut by_name = self.by_name.lock().unwrap_or_else(PoisonError::into_inner);
        self.guard = None;
        // Clones are made under this mutex only, so a count of one means that nobody else has it.
        if by_name
            .get(&self.name)
            .is_some_and(|lock| Arc::strong_count(lock) == 1)
        {
            by_name.remove(&self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn holders_of_one_name_follow_each_other_and_nothing_stays_behind() {
        let locks = Locks::default();
        let first = locks.hold("a").await;
        let _other = locks.hold("b").await;
        let second = locks.hold("a");
        tokio::pin!(second);
        assert!(futures_util::poll!(&mut second).is_pending());
        drop(first);
        drop(second.await);
        assert_eq!(locks.by_name.lock().unwrap().keys().collect::<Vec<_>>(), ["b"]);
    }

    #[tokio::test]
    async fn who_stops_waiting_leaves_nothing_behind() {
        let locks = Locks::default();
        let first = locks.hold("a").await;
        {
            let second = locks.hold("a");
            tokio::pin!(second);
            assert!(futures_util::poll!(&mut second).is_pending());
        }
        drop(first);
        assert!(locks.by_name.lock().unwrap().is_empty());
    }
}
