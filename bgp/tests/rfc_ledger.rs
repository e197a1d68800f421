//! The ledger `RFC.md` tells the truth about its tests: each one it names is there, and nothing is done without one.
#![allow(clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

use std::path::Path;

const LEDGER: &str = include_str!("../RFC.md");

/// The cells of every row that is no head.
fn rows() -> impl Iterator<Item = Vec<&'static str>> {
    LEDGER
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| Requirement"))
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
}

#[test]
fn every_test_the_ledger_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the top");
    let mut missing = Vec::new();
    for name in LEDGER.split('`').skip(1).step_by(2) {
        let Some((file, test)) = name.split_once("::") else {
            continue;
        };
        let text = std::fs::read_to_string(root.join(file)).unwrap_or_default();
        if !text.contains(&format!("fn {test}(")) {
            missing.push(name);
        }
    }
    assert!(missing.is_empty(), "no such tests: {missing:#?}");
}

#[test]
fn what_is_done_has_a_test_and_every_status_is_one() {
    assert!(rows().count() > 50, "the ledger was read");
    for row in rows() {
        let [requirement, status, shown_by] = row.as_slice() else {
            panic!("a row of {} cells: {row:?}", row.len());
        };
        let known = ["done", "partial: ", "missing", "not meant: "];
        assert!(
            known.iter().any(|word| status.starts_with(word)),
            "{requirement}: status {status:?}"
        );
        assert!(
            *status != "done" || shown_by.contains("::"),
            "{requirement}: done without a test"
        );
    }
}
