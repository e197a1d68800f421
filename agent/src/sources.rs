//! What happens outside, turned into [`crate::input::Input`] values: one file a source. A source decides nothing.

pub mod bgp;
pub mod datastore;
pub mod netlink;
