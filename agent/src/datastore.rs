//! What the agent reads and writes in the datastore besides addresses: Calico's WorkloadEndpoint and Node.

pub mod node;
pub mod workload_endpoint;
