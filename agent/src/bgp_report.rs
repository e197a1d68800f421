//! BGP for people: what `calidris bgp` prints, made from what the speaker says of itself. Pure.
//!
//! The words are those of the RFCs, the arrangement that of `birdc show protocols all`, `show route all` and
//! `vtysh -c 'show bgp'`, so that whoever knows those finds everything.

mod peers;
mod routes;

use std::fmt;
use std::time::Duration;

use serde::Serialize;

pub use peers::{PeerDetails, PeerTable};
pub use routes::{RouteDetails, RouteTable, View};

/// A line of a description: its name in a column of its own, then its text.
fn write_fact(f: &mut fmt::Formatter<'_>, name: &str, text: impl fmt::Display) -> fmt::Result {
    writeln!(f, "{name:<14}{text}")
}

/// How a value is called in JSON, with spaces: `as_path_length` is "as path length".
fn words(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(name)) => name.replace('_', " "),
        _ => String::new(),
    }
}

/// "-" for nothing.
fn or_dash<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

fn age(age: Duration) -> crate::report::table::Age {
    crate::report::table::Age(age.as_secs())
}
