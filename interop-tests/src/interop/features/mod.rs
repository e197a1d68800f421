//! The features, in the order of the table.

mod capabilities;
mod families;
mod malformed;
mod policy;
mod protection;
mod reflection;
mod restart;
mod routes;
mod sessions;

use super::site::Site;

/// One line of the table.
#[derive(Clone, Copy)]
pub struct Feature {
    /// Its name on the command line.
    pub name: &'static str,
    /// What the table calls it.
    pub title: &'static str,
    /// Whether it belongs to the part that runs with every test: short, and for all peers.
    pub quick: bool,
    /// Starts both sides and looks. Returns what is to be said about a cell that works, usually nothing.
    pub run: fn(&Site) -> anyhow::Result<String>,
}

/// All features.
pub const ALL: &[&[Feature]] = &[
    sessions::FEATURES,
    capabilities::FEATURES,
    protection::FEATURES,
    families::FEATURES,
    routes::FEATURES,
    reflection::FEATURES,
    policy::FEATURES,
    restart::FEATURES,
    malformed::FEATURES,
];

/// All features, one after the other.
pub fn all() -> impl Iterator<Item = &'static Feature> {
    ALL.iter().copied().flatten()
}

/// A cell that works and needs no words.
fn works() -> anyhow::Result<String> {
    Ok(String::new())
}
