//! Labs: whole networks of Linux network namespaces with real routers, a real etcd and real nodes, on one machine.
//!
//! From the bottom up: [`netns`] enters namespaces, [`process`] runs programs in them, [`journal`] remembers on disk
//! what was made, [`lab`] ties the three together so that everything can always be taken down; [`fabric`] is the
//! cables and switches. [`daemon`] runs what others wrote (etcd, BIRD, FRR); [`node`] runs our agent and [`cni`] our
//! plugin, as a container runtime does, which makes a [`pod`]. [`topology`] says what a lab is to look like,
//! [`cluster`] brings it up, [`proof`] shows that it works. [`interop`] runs our speaker against every other one, feature
//! by feature. [`eventually`] is the only clock and the only sleep:
//! everything waits for a condition with a deadline.

pub mod bench;
pub mod binaries;
pub mod calico;
pub mod calico_turns;
pub mod cgroup;
pub mod cluster;
pub mod cni;
pub mod conformance;
pub mod daemon;
pub mod eventually;
pub mod fabric;
pub mod http;
pub mod image;
pub mod interop;
pub mod ipam_chaos;
pub mod journal;
pub mod kernel;
pub mod kubernetes;
pub mod lab;
pub mod machine;
pub mod netns;
pub mod node;
pub mod overlay;
pub mod pinger;
pub mod pod;
pub mod process;
pub mod programs;
pub mod progress;
pub mod proof;
pub mod racks;
mod random;
pub mod require;
pub mod signals;
pub mod topology;
pub mod vm;
