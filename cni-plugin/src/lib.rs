//! The CNI plugin's library: the specification's types, and the contract with the agent.
//!
//! The plugin is thin. It checks what the runtime gave it against the CNI specification (0.3.1 to 1.1.0), hands it to
//! the agent over a unix socket, and prints the answer in the version the runtime speaks. The agent owns links,
//! addresses and routes; it uses [`contract`] and [`socket`] from here.
//!
//! | module | what it holds |
//! |---|---|
//! | [`spec`], [`args`] | what the runtime says: configuration, `CNI_ARGS` |
//! | [`result`], [`version`], [`error`] | what the runtime is told |
//! | [`contract`] | request and reply, as values and bytes |
//! | [`socket`] | moves them, with the namespace's descriptor |
//!
//! Invariants: nothing here panics on input; every read has a size limit and a time limit; a result is converted to
//! another version in one place, [`result::AddResult::to_json`].

pub mod args;
pub mod contract;
pub mod error;
pub mod result;
pub mod socket;
pub mod spec;
pub mod version;
