//! Network namespaces of a test's own: named, so that `ip netns exec` reaches them, and removed also on failure.

#![allow(dead_code, reason = "each test file uses its part")]

use std::fs::File;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A named network namespace, removed when dropped, and every link in it with it.
pub(crate) struct Namespace {
    name: String,
}

impl Namespace {
    pub(crate) fn new() -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let namespace = Self {
            name: format!("cal-agent-{}-{number}", std::process::id()),
        };
        let output = Command::new("ip")
            .args(["netns", "add", &namespace.name])
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "ip netns add: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        namespace.sh("ip link set lo up");
        namespace
    }

    /// A node and what is outside of it, connected by an interface `up0` of each.
    pub(crate) fn node_and_outside() -> (Self, Self) {
        let (node, outside) = (Self::new(), Self::new());
        node.sh(&format!(
            "ip link add up0 type veth peer name up0 netns {}; ip link set up0 up; \
             ip addr add 192.0.2.1/24 dev up0; ip addr add 2001:db8::1/64 dev up0 nodad",
            outside.name()
        ));
        outside.sh(
            "ip link set up0 up; ip addr add 192.0.2.9/24 dev up0; ip addr add 2001:db8::9/64 dev up0 nodad",
        );
        (node, outside)
    }

    /// Its name below `/run/netns`.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The namespace, held open.
    pub(crate) fn open(&self) -> File {
        File::open(format!("/run/netns/{}", self.name)).unwrap()
    }

    /// Runs `work` in a thread inside the namespace.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let namespace = self.open();
        thread::scope(|scope| {
            let worker = scope.spawn(move || {
                move_into_link_name_space(
                    std::os::fd::AsFd::as_fd(&namespace),
                    Some(LinkNameSpaceType::Network),
                )
                .unwrap();
                work()
            });
            match worker.join() {
                Ok(value) => value,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Runs a shell command inside, expects it to succeed and returns what it printed.
    pub(crate) fn sh(&self, command: &str) -> String {
        let output = self.try_sh(command);
        let (out, err) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        assert!(
            output.status.success(),
            "{command}: {}\n{out}{err}\n{}",
            output.status,
            self.picture()
        );
        out.into_owned()
    }

    /// Runs a shell command inside.
    pub(crate) fn try_sh(&self, command: &str) -> Output {
        Command::new("ip")
            .args(["netns", "exec", &self.name, "sh", "-c", command])
            .output()
            .unwrap()
    }

    /// All there is, for the message of a failed test.
    fn picture(&self) -> String {
        let output = self.try_sh("ip addr; ip route; ip -6 route; nft list ruleset");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).output();
    }
}

/// Whether namespaces can be made here. If not, says so; with `CALIDRIS_NO_SKIP` set that is a failure.
pub(crate) fn possible(test: &str) -> bool {
    let output = Command::new("ip").args(["netns", "list"]).output();
    let is_possible =
        rustix::process::geteuid().is_root() && output.is_ok_and(|output| output.status.success());
    if !is_possible {
        assert!(
            std::env::var_os("CALIDRIS_NO_SKIP").is_none(),
            "{test} needs root and iproute2"
        );
        eprintln!("SKIPPED {test}: needs root and iproute2");
    }
    is_possible
}
