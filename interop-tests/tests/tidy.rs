//! Properties of the code itself that no compiler lint sees: file lengths, module headers, dependency edges,
//! purity of the cores, paths named in the documents, sleeps.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may fail by panicking"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Longest file, tests included. About 500 lines is the aim.
const MAX_FILE_LINES: usize = 800;

/// The places of labs and tests that may sleep: they wait for conditions with a deadline.
const MAY_SLEEP: [&str; 2] = ["agent/tests/eventually/mod.rs", "interop-tests/src/eventually.rs"];

/// This file names what it looks for.
const THIS_FILE: &str = "interop-tests/tests/tidy.rs";

/// Crates that do I/O, read clocks or draw randomness: a pure core must not even link them.
const IMPURE: [&str; 10] = [
    "tokio",
    "mio",
    "socket2",
    "rustix",
    "nix",
    "rand",
    "getrandom",
    "etcd-client",
    "rtnetlink",
    "netlink-sys",
];

/// Everything that may lie at the top.
const TOP_LEVEL: [&str; 20] = [
    ".ci",
    ".gitignore",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "Makefile",
    "README.md",
    "agent",
    "bgp",
    "clippy.toml",
    "cni-plugin",
    "deny.toml",
    "deploy",
    "interop-tests",
    "ipam",
    "rust-toolchain.toml",
    "rustfmt.toml",
];

/// Who may depend on whom, of our own packages, in shipped code.
const EDGES: [(&str, &[&str]); 9] = [
    ("calidris-bgp", &[]),
    ("calidris-ipam", &[]),
    ("calidris-cni", &[]),
    ("calidris-bgp-driver", &["calidris-bgp"]),
    ("calidris-ipam-etcd", &["calidris-ipam"]),
    ("calidris-ipam-redb", &["calidris-ipam"]),
    (
        "calidris-agent",
        &[
            "calidris-bgp",
            "calidris-bgp-driver",
            "calidris-cni",
            "calidris-ipam",
            "calidris-ipam-etcd",
            "calidris-ipam-redb",
        ],
    ),
    // Labs run the agent as a process; as libraries they may only use the protocol core and its driver, as peers, and
    // address management, as clients on many nodes at once.
    (
        "calidris-interop",
        &[
            "calidris-bgp",
            "calidris-bgp-driver",
            "calidris-ipam",
            "calidris-ipam-etcd",
        ],
    ),
    ("calidris-cni-conformance", &[]),
];

/// The folders of packages whose modules use each other in one direction.
const PACKAGES_WITHOUT_CIRCLES: [&str; 6] = ["agent", "bgp", "bgp/driver", "cni-plugin", "ipam", "ipam/etcd"];

#[test]
fn files_are_short_enough_to_read() {
    let long = rust_files().into_iter().filter_map(|file| {
        let lines = read(&file).lines().count();
        (lines > MAX_FILE_LINES).then(|| format!("{file}: {lines} lines, at most {MAX_FILE_LINES}"))
    });
    assert_none(long);
}

#[test]
fn every_module_says_what_it_is() {
    let silent = rust_files()
        .into_iter()
        .filter(|file| !read(file).starts_with("//!"));
    assert_none(silent.map(|file| format!("{file}: no `//!` header")));
}

#[test]
fn labs_and_tests_sleep_in_known_places_only() {
    let calls = ["thread::sleep(", "time::sleep("];
    let sleeping = rust_files()
        .into_iter()
        .filter(|file| file.contains("/tests") || file.starts_with("interop-tests/"))
        .filter(|file| !MAY_SLEEP.contains(&file.as_str()) && file != THIS_FILE)
        .filter(|file| calls.iter().any(|call| read(file).contains(call)));
    assert_none(sleeping.map(|file| format!("{file}: wait for a condition instead of sleeping")));
}

#[test]
fn nothing_is_left_for_later() {
    let marks = ["TODO", "FIXME", "XXX", "todo!(", "unimplemented!("];
    let left = rust_files()
        .into_iter()
        .filter(|file| file != THIS_FILE)
        .filter(|file| marks.iter().any(|mark| read(file).contains(mark)));
    assert_none(left.map(|file| format!("{file}: left for later")));
}

#[test]
fn only_known_names_lie_at_the_top() {
    let unknown = tracked_files()
        .into_iter()
        .filter(|file| !TOP_LEVEL.contains(&file.split('/').next().unwrap_or_default()));
    assert_none(unknown.map(|file| format!("{file}: not a known name at the top")));
}

#[test]
fn packages_depend_only_along_the_arrows() {
    let allowed: BTreeMap<&str, &[&str]> = EDGES.into_iter().collect();
    let edges = own_dependencies();
    let forbidden = edges.iter().flat_map(|(package, dependencies)| {
        let allowed = allowed.get(package.as_str()).copied();
        dependencies
            .iter()
            .filter(move |dependency| !allowed.is_some_and(|allowed| allowed.contains(&dependency.as_str())))
            .map(move |dependency| format!("forbidden edge: {package} -> {dependency}"))
    });
    assert_none(forbidden);
}

/// Data flows one way within a package, too: its modules, the files and folders of `src`, use each other without a circle.
#[test]
fn modules_use_each_other_in_one_direction() {
    let rows = PACKAGES_WITHOUT_CIRCLES.iter().filter_map(|package| {
        let circle = circle(module_uses(package))?;
        Some(format!(
            "{package}: {} use each other in a circle",
            circle.join(", ")
        ))
    });
    assert_none(rows);
}

#[test]
fn the_cores_are_pure() {
    for core in ["calidris-bgp", "calidris-ipam"] {
        let tree = cargo(&[
            "tree", "--locked", "-p", core, "-e", "normal", "--prefix", "none", "--format", "{p}",
        ]);
        let names: BTreeSet<&str> = tree
            .lines()
            .filter_map(|line| line.split_whitespace().next())
            .collect();
        assert!(
            names.contains(core),
            "cargo tree did not answer for {core}:\n{tree}"
        );
        let impure = IMPURE.iter().filter(|name| names.contains(*name));
        assert_none(impure.map(|name| format!("{core} is a pure core but depends on {name}")));
    }
}

#[test]
fn every_path_named_in_the_documents_exists() {
    let tracked: BTreeSet<String> = tracked_files().into_iter().collect();
    let exists = |path: &str| {
        let path = path.trim_end_matches('/');
        tracked.contains(path) || tracked.iter().any(|file| file.starts_with(&format!("{path}/")))
    };
    let mut missing = Vec::new();
    for document in tracked.iter().filter(|file| file.ends_with(".md")) {
        let text = read(document);
        for name in code_spans(&text)
            .chain(link_targets(&text))
            .filter(|name| looks_like_a_path(name))
        {
            let beside = Path::new(document).with_file_name(name);
            if !exists(name) && !beside.to_str().is_some_and(&exists) {
                missing.push(format!("{document} names {name}"));
            }
        }
    }
    assert_none(missing);
}

/// Fails with one line for every finding.
fn assert_none(findings: impl IntoIterator<Item = String>) {
    let findings: Vec<String> = findings.into_iter().collect();
    assert!(findings.is_empty(), "\n{}", findings.join("\n"));
}

/// Text between single backticks on one line, outside fenced blocks.
fn code_spans(text: &str) -> impl Iterator<Item = &str> {
    let mut fenced = false;
    text.lines()
        .filter(move |line| {
            let fence = line.trim_start().starts_with("```");
            fenced ^= fence;
            !fenced && !fence
        })
        .flat_map(|line| line.split('`').skip(1).step_by(2))
}

/// Targets of Markdown links.
fn link_targets(text: &str) -> impl Iterator<Item = &str> {
    text.split("](")
        .skip(1)
        .filter_map(|rest| rest.split([')', '#']).next())
}

/// Whether a name means a file or folder of this repository: its first part is one, and nothing in it is a pattern.
fn looks_like_a_path(name: &str) -> bool {
    let first = name.split('/').next().unwrap_or_default();
    let is_ours = TOP_LEVEL.contains(&first) || (name.contains('/') && name.ends_with(".md"));
    is_ours && !name.contains(char::is_whitespace) && !name.contains(['*', '{', '<', '$', ':'])
}

/// Of every package of the workspace: the packages of the workspace that its shipped code depends on.
fn own_dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let text = cargo(&["metadata", "--locked", "--no-deps", "--format-version", "1"]);
    let metadata: serde_json::Value = serde_json::from_str(&text).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    packages
        .iter()
        .map(|package| {
            let name = package["name"].as_str().unwrap().to_owned();
            let dependencies = package["dependencies"].as_array().unwrap().iter();
            let own = dependencies
                .filter(|dependency| dependency["kind"].as_str() != Some("dev"))
                .filter_map(|dependency| dependency["name"].as_str())
                .filter(|dependency| dependency.starts_with("calidris"))
                .map(str::to_owned)
                .collect();
            (name, own)
        })
        .collect()
}

/// Who uses whom by `crate::NAME`, tests aside, of the modules of a package.
fn module_uses(package: &str) -> BTreeMap<String, BTreeSet<String>> {
    let source = format!("{package}/src/");
    let mut uses: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for file in rust_files() {
        let Some(inside) = file
            .strip_prefix(&source)
            .filter(|inside| !inside.contains("test"))
        else {
            continue;
        };
        let module = inside.split(['/', '.']).next().unwrap_or_default();
        let text = read(&file);
        let shipped = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
        let code: Vec<&str> = shipped
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"))
            .collect();
        let code = code.join(" ");
        let named = code.split("crate::").skip(1).flat_map(named_first);
        let others = named.filter(|name| *name != module).map(str::to_owned);
        uses.entry(module.to_owned()).or_default().extend(others);
    }
    uses
}

/// The name that what follows `crate::` begins with, or the first names of a list in braces.
fn named_first(text: &str) -> impl Iterator<Item = &str> {
    let list = match text.strip_prefix('{') {
        Some(list) => list.split('}').next(),
        None => text.split(|c: char| !c.is_alphanumeric() && c != '_').next(),
    };
    let names = list.unwrap_or_default().split(',');
    names.filter_map(|name| name.split(':').next()).map(str::trim)
}

/// What is left when everything that uses nothing left is taken away, again and again, and then what nothing left uses: circles.
fn circle(mut uses: BTreeMap<String, BTreeSet<String>>) -> Option<Vec<String>> {
    loop {
        let left: BTreeSet<String> = uses.keys().cloned().collect();
        let used: BTreeSet<String> = uses.values().flatten().cloned().collect();
        uses.retain(|module, others| {
            others.retain(|other| left.contains(other));
            !others.is_empty() && used.contains(module)
        });
        if uses.len() == left.len() {
            return (!uses.is_empty()).then(|| uses.into_keys().collect());
        }
    }
}

fn rust_files() -> Vec<String> {
    tracked_files()
        .into_iter()
        .filter(|file| file.ends_with(".rs"))
        .collect()
}

/// Files of the repository: tracked ones, and new ones that are not ignored.
fn tracked_files() -> Vec<String> {
    let output = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .expect("git must be there to list the files");
    assert!(
        output.status.success(),
        "git ls-files: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let files: Vec<String> = String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .filter(|file| root().join(file).exists())
        .map(str::to_owned)
        .collect();
    assert!(!files.is_empty(), "git lists no files");
    files
}

fn cargo(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO"))
        .args(arguments)
        .current_dir(root())
        .output()
        .expect("cargo must be there");
    assert!(
        output.status.success(),
        "cargo {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

fn read(file: &str) -> String {
    fs::read_to_string(root().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the package lies one folder below the top")
        .to_owned()
}
