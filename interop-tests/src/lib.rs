//! Labs: whole networks of Linux network namespaces with real routers, a real etcd and real nodes, on one machine.
//!
//! From the bottom up: [`netns`] enters namespaces, [`process`] runs programs in them, [`journal`] remembers on disk
//! what was made, [`lab`] ties the three together so that everything can always be taken down; [`fabric`] is the
//! cables and switches. [`daemon`] runs what others wrote (etcd, BIRD, FRR).
//! [`eventually`] is the only clock and the only sleep: everything waits for a condition with a deadline.

pub mod daemon;
pub mod eventually;
pub mod fabric;
pub mod journal;
pub mod lab;
pub mod netns;
pub mod process;
pub mod require;
pub mod signals;
pub mod topology;
