//! A real Kubernetes on machines of a lab, with Calidris as its network: `make test-kubernetes`.

pub mod cluster;
pub mod control_plane;
pub mod kubelet;
pub mod programs;
mod run;

pub use run::run;
