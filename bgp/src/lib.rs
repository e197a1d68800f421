//! BGP-4 as pure state machines.
//!
//! Nothing in this package does I/O, reads a clock or draws random numbers. [`Speaker`] is the single entry point:
//! it owns the peers and their sessions, the routing tables and the decisions, and is driven from outside in one
//! vocabulary:
//!
//! - `handle_*(…, now)` tells it what happened: a connection came up, bytes arrived, a deadline passed, the operator changed
//!   something;
//! - `poll_*` asks what to do: [`Speaker::poll_action`] until `None`, then [`Speaker::poll_transmit`] for every connection that
//!   can take bytes, then [`Speaker::poll_timeout`] for the moment of the next [`Speaker::handle_timeout`];
//! - everything else only looks.
//!
//! Time is a [`Time`], handed in; jitter comes from a seed, handed in. Two runs with the same inputs are the same run.
//!
//! | folder | holds |
//! |---|---|
//! | `wire/` | bytes ⇄ values |
//! | `session/` | one peer: FSM of one connection, two connections and their collision, negotiation, timers |
//! | `rib/` | Adj-RIB-In, Loc-RIB, Adj-RIB-Out, the decision process, interned attributes |
//! | `policy/` | import and export: match, change, accept or refuse, and which term did |
//!
//! RFC 4271 with 1997, 2918, 4456, 4486, 4724, 4760, 5492, 6286, 6608, 6793, 7606, 7607, 8092, 8212, 8538, 8950, 9003, 9494, 9687.

mod attributes_summary;
pub mod config;
pub mod family;
pub mod jitter;
pub mod policy;
pub mod priority;
pub mod rib;
pub mod route;
pub mod session;
pub mod speaker;
pub mod status;
pub mod time;
pub mod wire;

pub use config::{PeerConfig, SpeakerConfig};
pub use speaker::Speaker;
pub use time::Time;
