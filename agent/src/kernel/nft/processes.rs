//! Which processes change nftables for us.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

/// Processes remembered: more than notifications can be late by.
const REMEMBERED: usize = 64;

/// The latest processes that changed nftables for us. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct OwnProcesses(Arc<Mutex<VecDeque<u32>>>);

impl OwnProcesses {
    /// Remembers a process; the oldest is forgotten.
    pub fn add(&self, process: u32) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() == REMEMBERED {
            known.pop_front();
        }
        known.push_back(process);
    }

    /// Whether it is one of them.
    #[must_use]
    pub fn contains(&self, process: u32) -> bool {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.contains(&process)
    }
}
