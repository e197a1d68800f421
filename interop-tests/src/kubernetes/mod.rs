//! A real Kubernetes on machines of a lab, with Calidris as its network: `make test-kubernetes`.

pub mod cases;
pub mod cluster;
pub mod control_plane;
pub mod kubelet;
pub mod pods;
mod run;

pub use run::prove;
