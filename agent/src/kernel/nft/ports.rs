//! Which netlink sockets change nftables for us.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

/// Ports remembered: more than notifications can be late by.
const REMEMBERED: usize = 64;

/// Ports of the netlink sockets that changed nftables for us, the latest last: those of our own sockets, and those of the
/// program `nft`, whose port is its process number (the kernel's choice for the first socket of a process).
/// Clones share them.
#[derive(Debug, Clone, Default)]
pub struct OwnPorts(Arc<Mutex<VecDeque<u32>>>);

impl OwnPorts {
    /// Remembers a port as the latest; the oldest is forgotten.
    pub fn add(&self, port: u32) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.back() == Some(&port) {
            return;
        }
        known.retain(|other| *other != port);
        if known.len() == REMEMBERED {
            known.pop_front();
        }
        known.push_back(port);
    }

    /// Whether it is one of them.
    #[must_use]
    pub fn contains(&self, port: u32) -> bool {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.contains(&port)
    }
}
