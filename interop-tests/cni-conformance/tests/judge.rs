//! The judge judged: it passes a plugin that does a thing right, and says no to the same plugin with that thing broken.
//!
//! The plugin is the reference `ptp` of Debian's containernetworking-plugins; it is broken by a shell script around it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test code")]

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;

const PTP: &str = "/usr/lib/cni/ptp";

/// Makes `ptp` speak 1.1.0: STATUS always succeeds, GC is what `$GC` says, everything else is 1.0.0 underneath.
const SPEAKS_1_1: &str = r#"
conf=$(cat)
data=$(printf '%s' "$conf" | sed -n 's/.*"dataDir":"\([^"]*\)".*/\1/p')
case "$CNI_COMMAND" in
VERSION) echo '{"cniVersion":"1.1.0","supportedVersions":["1.1.0"]}'; exit 0 ;;
STATUS) exit 0 ;;
GC) GC_ACTION; exit 0 ;;
esac
out=$(printf '%s' "$conf" | sed 's/1\.1\.0/1.0.0/g' | /usr/lib/cni/ptp)
code=$?
printf '%s' "$out" | sed 's/1\.0\.0/1.1.0/g'
exit $code
"#;

/// What is broken, the script that breaks it, and the verdicts to be given.
type Breakage = (
    &'static str,
    &'static str,
    &'static [(&'static str, &'static str)],
);

#[test]
fn a_good_plugin_passes_what_it_does_right_and_the_report_says_what_it_does_not() {
    if skipped() {
        return;
    }
    let run = run(Path::new(PTP), &["add.", "del.", "concurrency.", "chain."]);
    let verdicts = verdicts(&run);
    for case in [
        "add.result",
        "add.interfaces-are-real",
        "add.addresses-are-real",
        "add.routes-are-real",
    ] {
        assert_eq!(verdicts[case], "pass", "{case}: {}", text(&run));
    }
    for case in [
        "add.existing-interface",
        "del.interface",
        "del.host-side",
        "del.twice",
        "concurrency.containers",
    ] {
        assert_eq!(verdicts[case], "pass", "{case}: {}", text(&run));
    }
    assert_eq!(
        verdicts["chain.prevresult-is-kept"], "fail",
        "ptp ignores prevResult"
    );
    assert_eq!(run.status.code(), Some(1), "a failed case is exit code 1");
}

#[test]
fn every_breakage_is_seen_by_the_case_about_it() {
    if skipped() {
        return;
    }
    let breakages: &[Breakage] = &[
        ("says yes to everything and does nothing", "exit 0", &[]),
        (
            "prints another version",
            r#"if [ "$CNI_COMMAND" = ADD ]; then /usr/lib/cni/ptp | sed 's/"cniVersion": *"[^"]*"/"cniVersion":"9.9.9"/'; else exec /usr/lib/cni/ptp; fi"#,
            &[("add.result", "fail")],
        ),
        (
            "lies about its address",
            r#"if [ "$CNI_COMMAND" = ADD ]; then /usr/lib/cni/ptp | sed 's/10\.88\.[0-9.]*\/16/10.88.200.200\/16/'; else exec /usr/lib/cni/ptp; fi"#,
            &[
                ("add.addresses-are-real", "fail"),
                ("concurrency.containers", "fail"),
                ("add.interface", "pass"),
            ],
        ),
        (
            "talks on stdout",
            r#"[ "$CNI_COMMAND" = ADD ] && echo hello; exec /usr/lib/cni/ptp"#,
            &[("add.stdout", "fail"), ("errors.object", "warn")],
        ),
        (
            "talks on stdout of DEL and CHECK",
            r#"case "$CNI_COMMAND" in DEL|CHECK) echo OK ;; esac; exec /usr/lib/cni/ptp"#,
            &[("del.prints-nothing", "warn"), ("check.prints-nothing", "fail")],
        ),
        (
            "does not detach",
            r#"[ "$CNI_COMMAND" = DEL ] && exit 0; exec /usr/lib/cni/ptp"#,
            &[
                ("del.interface", "fail"),
                ("del.host-side", "fail"),
                ("del.twice", "pass"),
            ],
        ),
        (
            "wants to find what it detaches",
            r#"[ "$CNI_COMMAND" = DEL ] && { nsenter --net="$CNI_NETNS" ip link show "$CNI_IFNAME" >/dev/null 2>&1 || exit 1; }
exec /usr/lib/cni/ptp"#,
            &[("del.twice", "fail"), ("del.interface", "pass")],
        ),
        (
            "never looks",
            r#"[ "$CNI_COMMAND" = CHECK ] && exit 0; exec /usr/lib/cni/ptp"#,
            &[
                ("check.interface-gone", "warn"),
                ("check.address-gone", "warn"),
                ("check.after-add", "pass"),
            ],
        ),
        (
            "exits with 0 on errors",
            "/usr/lib/cni/ptp; exit 0",
            &[
                ("errors.malformed-json", "fail"),
                ("errors.unknown-version", "fail"),
                ("add.existing-interface", "fail"),
            ],
        ),
    ];
    for (name, script, expected) in breakages {
        let plugin = Script::new(script);
        let prefixes: Vec<&str> = expected.iter().map(|(case, _)| *case).collect();
        let run = run(
            plugin.path(),
            if prefixes.is_empty() { &["add."] } else { &prefixes },
        );
        if expected.is_empty() {
            assert_eq!(
                run.status.code(),
                Some(2),
                "{name}: without VERSION nothing can be judged: {}",
                text(&run)
            );
            continue;
        }
        let verdicts = verdicts(&run);
        for (case, verdict) in *expected {
            assert_eq!(verdicts[*case], *verdict, "{name}, {case}: {}", text(&run));
        }
    }
}

#[test]
fn garbage_collection_is_judged_in_both_directions() {
    if skipped() {
        return;
    }
    let lazy = Script::new(&SPEAKS_1_1.replace("GC_ACTION", ":"));
    let verdicts_of_lazy = verdicts(&run(lazy.path(), &["gc.", "status."]));
    assert_eq!(verdicts_of_lazy["gc.keeps-valid"], "pass");
    assert_eq!(verdicts_of_lazy["gc.removes-stale"], "warn");
    assert_eq!(verdicts_of_lazy["gc.other-network"], "pass");
    assert_eq!(verdicts_of_lazy["status.ready"], "pass");
    let greedy = Script::new(&SPEAKS_1_1.replace("GC_ACTION", r#"rm -rf "$data""#));
    let verdicts_of_greedy = verdicts(&run(greedy.path(), &["gc."]));
    assert_eq!(verdicts_of_greedy["gc.keeps-valid"], "fail");
    assert_eq!(verdicts_of_greedy["gc.other-network"], "fail");
    assert_eq!(verdicts_of_greedy["gc.then-del"], "pass");
}

#[test]
fn a_run_leaves_nothing_behind() {
    if skipped() {
        return;
    }
    let mark = format!("CALIDRIS_JUDGE_MARK=finished-{}", std::process::id());
    let child = marked(&mark, &["add.result", "del.namespace-gone"]);
    let scratch = std::env::temp_dir().join(format!("calidris-cni-conformance-{}", child.id()));
    assert!(child.wait_with_output().unwrap().status.success());
    assert!(!scratch.exists(), "{} is left", scratch.display());
    wait_for_the_end_of(&processes_with(&mark));
}

#[test]
fn a_run_that_is_killed_leaves_no_namespace_and_the_next_one_removes_its_folder() {
    if skipped() {
        return;
    }
    let mark = format!("CALIDRIS_JUDGE_MARK=killed-{}", std::process::id());
    let mut child = marked(&mark, &["add.", "del."]);
    let scratch = std::env::temp_dir().join(format!("calidris-cni-conformance-{}", child.id()));
    // The runner itself, the node's namespace and a container's: then it is in the middle of a case.
    while processes_with(&mark).len() < 3 {
        assert!(
            child.try_wait().unwrap().is_none(),
            "ended before it could be killed"
        );
        std::thread::yield_now();
    }
    child.kill().unwrap();
    child.wait().unwrap();
    wait_for_the_end_of(&processes_with(&mark));
    assert!(scratch.exists(), "nobody could remove it");
    assert!(run(Path::new(PTP), &["version.needs"]).status.success());
    assert!(!scratch.exists(), "{} is left", scratch.display());
}

/// A run whose processes can be recognised by their environment.
fn marked(mark: &str, cases: &[&str]) -> Child {
    let (name, value) = mark.split_once('=').unwrap();
    command(Path::new(PTP), cases)
        .env(name, value)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn processes_with(mark: &str) -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid: &u32| {
            let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment
                .split(|byte| *byte == 0)
                .any(|variable| variable == mark.as_bytes())
        })
        .collect()
}

fn wait_for_the_end_of(processes: &[u32]) {
    for pid in processes {
        let pid = pid.to_string();
        let ended = Command::new("timeout")
            .args(["30", "tail", "--pid", &pid, "-f", "/dev/null"])
            .status()
            .unwrap();
        assert!(ended.success(), "process {pid} is left");
    }
}

#[test]
fn a_run_that_cannot_be_is_exit_code_2() {
    let missing = Command::new(env!("CARGO_BIN_EXE_calidris-cni-conformance"))
        .args(["--plugin", "/nowhere/plugin", "--conf", &conf()])
        .output()
        .unwrap();
    assert_eq!(missing.status.code(), Some(2));
    let unknown = command(Path::new(PTP), &["no.such-case"]).output().unwrap();
    assert_eq!(unknown.status.code(), Some(2));
    assert!(
        String::from_utf8_lossy(&unknown.stderr).contains("--list"),
        "{}",
        text(&unknown)
    );
}

/// A plugin made of shell.
struct Script(PathBuf);

impl Script {
    fn new(body: &str) -> Self {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let path =
            std::env::temp_dir().join(format!("calidris-broken-plugin-{}-{number}", std::process::id()));
        std::fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        Self(path)
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Whether this machine cannot do it; says so where the test harness does not hide it.
fn skipped() -> bool {
    let reason = if !Path::new(PTP).exists() {
        "SKIPPED: no /usr/lib/cni/ptp (Debian: containernetworking-plugins)"
    } else if !Command::new("unshare")
        .args(["--net", "true"])
        .status()
        .is_ok_and(|status| status.success())
    {
        "SKIPPED: cannot make network namespaces (not root?)"
    } else {
        return false;
    };
    let _ = writeln!(std::io::stderr(), "{reason}");
    true
}

fn conf() -> String {
    concat!(env!("CARGO_MANIFEST_DIR"), "/conf/ptp.conf").to_owned()
}

fn command(plugin: &Path, cases: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_calidris-cni-conformance"));
    command
        .arg("--plugin")
        .arg(plugin)
        .args(["--output", "json", "--conf", &conf()]);
    command.args(cases.iter().flat_map(|case| ["--case", *case]));
    command
}

fn run(plugin: &Path, cases: &[&str]) -> Output {
    command(plugin, cases).output().unwrap()
}

/// The worst verdict of each case over all versions.
fn verdicts(run: &Output) -> BTreeMap<String, String> {
    let report: Value =
        serde_json::from_slice(&run.stdout).unwrap_or_else(|_| panic!("no report: {}", text(run)));
    let worst = |case: &Value| {
        let found: Vec<&str> = case["outcomes"]
            .as_object()
            .unwrap()
            .values()
            .map(|o| o["verdict"].as_str().unwrap())
            .collect();
        ["fail", "warn", "pass", "skip"]
            .into_iter()
            .find(|verdict| found.contains(verdict))
            .unwrap_or("none")
            .to_owned()
    };
    let cases = report["cases"].as_array().unwrap().iter();
    cases
        .map(|case| (case["name"].as_str().unwrap().to_owned(), worst(case)))
        .collect()
}

fn text(run: &Output) -> String {
    format!(
        "{}\n{}",
        String::from_utf8_lossy(&run.stdout),
        String::from_utf8_lossy(&run.stderr)
    )
}
