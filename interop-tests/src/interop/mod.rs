//! Our speaker against the others: a table of features by peers, filled by running every pair in namespaces of its own.
//!
//! A feature is a function over a [`site::Site`]: it says what both sides are to do, starts them, and looks from both sides
//! whether it came about. It knows no daemon: a [`peer::Peer`] turns the [`setup::Setup`] into its own language, or
//! says what it has no means for, and such a cell says "peer cannot". Likewise [`ours::Ours`] where our configuration has no key
//! for it yet. [`matrix`] runs the pairs, [`results`] is the table as it is kept in `interop-tests/RESULTS.md`.

pub mod command;
pub mod features;
pub mod matrix;
pub mod ours;
pub mod peer;
pub mod peers;
pub mod results;
pub mod setup;
pub mod site;
