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

/// What the speaker is meant to keep.
const MEANT: [u16; 29] = [
    1997, 2385, 2918, 4271, 4360, 4456, 4486, 4724, 4760, 5082, 5492, 6286, 6608, 6793, 7313, 7606, 7911,
    7947, 7999, 8092, 8212, 8326, 8538, 8654, 8950, 9003, 9234, 9494, 9687,
];

#[test]
fn every_rfc_that_is_meant_has_a_row() {
    let named = |number: &u16| {
        let heads = LEDGER
            .lines()
            .filter(|line| line.starts_with("## ") || line.starts_with("| "));
        let mut words = heads.flat_map(|line| line.split(|c: char| !c.is_ascii_digit()));
        words.any(|word| word == number.to_string())
    };
    let missing: Vec<_> = MEANT.iter().filter(|number| !named(number)).collect();
    assert!(missing.is_empty(), "no rows for {missing:?}");
}
