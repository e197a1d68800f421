//! Benchmarks beside the peers: every subject does the same work in the same run, taken in turn, so that a drifting
//! machine drifts for all. Claims are ratios of medians from one run.

pub mod bgp;
pub mod cni;
pub mod command;
pub mod ipam;
pub mod report;
pub mod routes;
mod usage;
