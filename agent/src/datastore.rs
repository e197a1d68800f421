//! The datastore: which it is, and what the agent reads and writes in it besides addresses (Calico's WorkloadEndpoint, Node
//! and IPPool).

pub mod live_migration;
pub mod node;
pub mod peering;
pub mod pool;
pub mod remote;
pub mod store;
pub mod workload_endpoint;
