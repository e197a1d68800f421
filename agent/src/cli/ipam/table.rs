//! Tables for people: aligned columns, nothing for no rows.

use std::fmt;

use crate::report::table::write_table;

/// Titles and rows.
pub(super) struct Table {
    pub(super) titles: &'static [&'static str],
    pub(super) rows: Vec<Vec<String>>,
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        write_table(&mut text, self.titles, self.rows.clone())?;
        // The empty line that sets a section apart is the caller's business here.
        f.write_str(text.trim_start_matches('\n'))
    }
}

/// `-` for nothing.
pub(super) fn or_dash(value: Option<&str>) -> String {
    value.filter(|value| !value.is_empty()).unwrap_or("-").to_owned()
}
