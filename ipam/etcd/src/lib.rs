//! The address management store on etcd, and a watch that survives what etcd does.
//!
//! - [`EtcdStore`] implements [`calidris_ipam::Store`]: one etcd transaction per commit, all ranges of a read at one
//!   revision, errors told apart by whether a write may have happened.
//! - [`Watch`] delivers the keys under some prefixes and then every change of them, across lost connections, restarts,
//!   frozen servers and compaction.
//!
//! etcd's API: <https://etcd.io/docs/v3.5/learning/api/>. Works with etcd 3.4 and later.

mod config;
mod failure;
mod list;
mod store;
mod watch;

pub use calidris_ipam::{Change, WatchEvent};
pub use config::{EtcdConfig, TlsFiles};
pub use store::EtcdStore;
pub use watch::Watch;
