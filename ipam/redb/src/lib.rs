//! The address management store in one file, for a single node without etcd, and a watch on it.
//!
//! - [`RedbStore`] implements [`calidris_ipam::Store`] on redb (<https://www.redb.org>): a commit is one durable
//!   transaction, a read sees one revision. Only one process can have the file open.
//! - [`Watch`] delivers the keys under some prefixes and then every change of them. All writers are in this process, so that
//!   it needs no connection.
//!
//! The keys and values are those that etcd would have.

mod database;
mod store;
mod watch;

pub use calidris_ipam::{Change, WatchEvent};
pub use database::OpenError;
pub use store::RedbStore;
pub use watch::Watch;
