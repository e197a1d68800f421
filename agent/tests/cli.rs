//! The command line as a process: what goes where, and the exit status.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail by panicking")]

use std::path::PathBuf;
use std::process::{Command, Output};

const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/calidris.toml");

fn calidris(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_calidris"))
        .args(arguments)
        .env("PATH", "/nonexistent")
        .output()
        .unwrap()
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// A file of this test's own, removed at its end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str, text: &str) -> Self {
        let path = std::env::temp_dir().join(format!("calidris-cli-{name}-{}", std::process::id()));
        std::fs::write(&path, text).unwrap();
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _removed = std::fs::remove_file(&self.0);
    }
}

#[test]
fn a_valid_configuration_checks_out() {
    let output = calidris(&["agent", "--config", EXAMPLE, "--check"]);
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    assert!(out(&output).ends_with("valid\n"));
}

#[test]
fn a_wrong_configuration_is_status_2_with_file_and_line() {
    let file = Scratch::new(
        "wrong",
        "[datastore]\nendpoints = [\"http://127.0.0.1:2379\"]\nfoo = 1\n",
    );
    for arguments in [&["agent", "--check"][..], &["agent"][..]] {
        let path = file.0.to_str().unwrap();
        let output = calidris(&[arguments, &["--config", path]].concat());
        assert_eq!(output.status.code(), Some(2), "{}", err(&output));
        assert!(
            err(&output).starts_with(&format!("calidris: {path}:3:1: unknown field `foo`")),
            "{}",
            err(&output)
        );
        assert_eq!(out(&output), "");
    }
}

#[test]
fn a_password_file_that_is_missing_is_status_2() {
    let file = Scratch::new(
        "password",
        "[datastore]\nendpoints = [\"http://127.0.0.1:2379\"]\n[datastore.auth]\nuser = \"u\"\npassword_file = \"/nonexistent/p\"\n",
    );
    let output = calidris(&["agent", "--check", "--config", file.0.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        err(&output).contains("/nonexistent/p: cannot read the password"),
        "{}",
        err(&output)
    );
}

#[test]
fn status_without_an_agent_is_status_4() {
    for output in ["table", "json"] {
        let output = calidris(&["status", "--socket", "/nonexistent/status.sock", "-o", output]);
        assert_eq!(output.status.code(), Some(4));
        assert!(
            err(&output).contains("no agent answers at /nonexistent/status.sock"),
            "{}",
            err(&output)
        );
    }
}

#[test]
fn wrong_usage_is_status_2() {
    for arguments in [
        &["agent", "--cofnig", "x"][..],
        &["status", "-o", "xml"][..],
        &["fly"][..],
        &[][..],
    ] {
        assert_eq!(calidris(arguments).status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn the_version_is_told_in_both_forms() {
    let version = env!("CARGO_PKG_VERSION");
    assert!(out(&calidris(&["version"])).starts_with(&format!("calidris {version} ")));
    let json: serde_json::Value = serde_json::from_str(&out(&calidris(&["version", "-o", "json"]))).unwrap();
    assert_eq!(json["version"], version);
}

#[test]
fn a_lab_that_is_not_installed_is_named() {
    let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR"));
    let alone = folder.join(format!("calidris-alone-{}", std::process::id()));
    // A copy could still be open for writing in a process that another test has just forked: it could not be run then.
    std::fs::hard_link(env!("CARGO_BIN_EXE_calidris"), &alone).unwrap();
    let output = Command::new(&alone)
        .args(["lab", "run"])
        .env("PATH", "/nonexistent")
        .output()
        .unwrap();
    std::fs::remove_file(&alone).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        err(&output).contains("calidris-lab is neither beside this program nor in PATH"),
        "{}",
        err(&output)
    );
}
