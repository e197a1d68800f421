//! The node agent: one process per node that owns addresses, routes and BGP together.
//!
//! Data flows one way: `sources/` turn what happens outside into [`model::Input`] values, one thread owns the
//! [`model::Model`] and absorbs them, `desired/` computes what should be, `apply/` reads back what is and makes the
//! difference so. `model`, `desired` and `delta` are pure: no I/O, no clock, no randomness.

pub mod apply;
pub mod bgp_report;
pub mod cleanup;
pub mod cli;
pub mod clock;
pub mod cni_config;
pub mod cni_server;
pub mod config;
pub mod control;
pub mod datastore;
pub mod delta;
pub mod desired;
pub mod host_routes;
pub mod inbox;
pub mod ipam_collector;
pub mod kernel;
pub mod listen;
pub mod logging;
pub mod metrics;
pub mod model;
pub mod namespaces;
pub mod offline_plan;
pub mod open_files;
pub mod ours;
pub mod plan;
pub mod pod_link;
pub mod reload;
pub mod report;
pub mod sources;
pub mod speaker;
pub mod status;
pub mod tunnel_addresses;
pub mod turn;
pub mod wiring;
