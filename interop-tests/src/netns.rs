//! Named network namespaces, and doing things inside them.
//!
//! A namespace is entered by a thread that is made for it and ends with the work: a namespace belongs to a thread,
//! and one that never changes namespace cannot forget to change back. What the thread starts or opens (a process, a
//! socket) stays in the namespace.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use anyhow::{Context, bail};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::process::Place;

/// Where iproute2 keeps its named namespaces (ip-netns(8)).
const DIRECTORY: &str = "/run/netns";

/// A network namespace under `/run/netns`. Making it and deleting it is the lab's business.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// The namespace of that name, which need not exist.
    #[must_use]
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: name.into() }
    }

    /// Makes it, with its loopback interface up.
    ///
    /// # Errors
    /// When there is one of that name, or the kernel refuses.
    pub fn create(&self) -> anyhow::Result<()> {
        run(Command::new("ip").args(["netns", "add", &self.name]))?;
        self.ip("link set lo up")?;
        Ok(())
    }

    /// Deletes it; the kernel drops it with the last process in it. One that does not exist is fine.
    ///
    /// # Errors
    /// When `ip netns del` fails.
    pub fn delete(&self) -> anyhow::Result<()> {
        if self.exists() {
            run(Command::new("ip").args(["netns", "del", &self.name]))?;
        }
        Ok(())
    }

    /// Whether there is a namespace of this name.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.path().exists()
    }

    /// The processes inside.
    ///
    /// # Errors
    /// When `ip netns pids` fails.
    pub fn processes(&self) -> anyhow::Result<Vec<u32>> {
        let text = run(Command::new("ip").args(["netns", "pids", &self.name]))?;
        text.split_ascii_whitespace()
            .map(|pid| pid.parse().with_context(|| format!("ip netns pids: {pid:?}")))
            .collect()
    }

    /// Its full name, which `ip netns exec` takes.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its path, which a CNI plugin gets as `CNI_NETNS`.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        Path::new(DIRECTORY).join(&self.name)
    }

    /// Runs `work` in a thread inside the namespace.
    ///
    /// # Errors
    /// When the namespace cannot be entered, or `work` panics.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> anyhow::Result<T> {
        let path = self.path();
        let file = File::open(&path).with_context(|| format!("open namespace {}", path.display()))?;
        let inside = || {
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
                .with_context(|| format!("enter namespace {}", self.name))?;
            Ok(work())
        };
        match std::thread::scope(|scope| scope.spawn(inside).join()) {
            Ok(result) => result,
            Err(_) => bail!("the work in namespace {} panicked", self.name),
        }
    }

    /// Whether this thread is inside.
    fn is_entered(&self) -> bool {
        let identity = |path: &Path| {
            let metadata = std::fs::metadata(path).ok()?;
            Some((metadata.dev(), metadata.ino()))
        };
        let own = identity(Path::new("/proc/thread-self/ns/net"));
        own.is_some() && own == identity(&self.path())
    }

    /// Starts a process inside.
    ///
    /// # Errors
    /// When the namespace cannot be entered or the program not be started.
    pub fn spawn(&self, command: &mut Command) -> anyhow::Result<Child> {
        let program = command.get_program().to_owned();
        let started = if self.is_entered() {
            command.spawn()
        } else {
            self.enter(|| command.spawn())?
        };
        started.with_context(|| format!("start {} in {}", program.display(), self.name))
    }

    /// Runs a program inside to its end, whatever its exit code.
    ///
    /// # Errors
    /// When the namespace cannot be entered or the program not be started.
    pub fn output(&self, command: &mut Command) -> anyhow::Result<Output> {
        let program = command.get_program().to_owned();
        self.enter(|| command.stdin(Stdio::null()).output())?
            .with_context(|| format!("run {} in {}", program.display(), self.name))
    }

    /// Runs a program inside that must succeed, and returns what it printed.
    ///
    /// # Errors
    /// Also when it exits with an error; what it said is in the message.
    pub fn run(&self, command: &mut Command) -> anyhow::Result<String> {
        let output = self.output(command)?;
        printed(command, &output)
    }

    /// Runs `ip` with these words inside the namespace, for example `ip("link set eth0 up")`.
    ///
    /// # Errors
    /// When `ip` fails, with what it said.
    pub fn ip(&self, words: &str) -> anyhow::Result<String> {
        run(Command::new("ip")
            .args(["-n", &self.name])
            .args(words.split_ascii_whitespace()))
    }

    /// Writes a sysctl of the namespace, for example `sysctl("net.ipv4.ip_forward", "1")`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn sysctl(&self, key: &str, value: &str) -> anyhow::Result<()> {
        let path = format!("/proc/sys/{}", key.replace('.', "/"));
        self.enter(|| std::fs::write(&path, value))?
            .with_context(|| format!("set {key}={value} in {}", self.name))
    }
}

impl Place for Namespace {
    fn spawn(&self, command: &mut Command) -> anyhow::Result<Child> {
        self.spawn(command)
    }
}

/// Runs a program to its end in our own namespace; it must succeed. Returns what it printed.
///
/// # Errors
/// When it cannot be started or exits with an error; what it said is in the message.
pub fn run(command: &mut Command) -> anyhow::Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("run {}", command.get_program().display()))?;
    printed(command, &output)
}

/// What a program printed that must have succeeded.
///
/// # Errors
/// When it did not; what it said is in the message.
pub fn printed(command: &Command, output: &Output) -> anyhow::Result<String> {
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let mut words = vec![command.get_program().to_string_lossy()];
    words.extend(command.get_args().map(|word| word.to_string_lossy()));
    bail!(
        "`{}`: {}: {}{}",
        words.join(" "),
        output.status,
        String::from_utf8_lossy(&output.stderr).trim(),
        String::from_utf8_lossy(&output.stdout).trim()
    )
}
