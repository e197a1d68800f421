//! BGP-4 as pure state machines: no sockets, no clock, no randomness of its own.

pub mod family;
pub mod wire;
