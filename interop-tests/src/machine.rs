//! A machine for a container runtime: network, mount, process and host name namespaces of its own, so that everything
//! lies at the paths where users have it, and nothing outlives the machine.
//!
//! `/etc` can be written to and `/opt`, `/run` and `/var/lib` are empty, for this machine alone (`machine.sh`). All
//! mounts, processes and network namespaces of containers go when its first process is killed, which is what the lab
//! does, whatever state a runtime was left in. Control groups have no such owner: they are the lab's ([`Lab::cgroup`]).

#![expect(
    unsafe_code,
    reason = "a thread that enters a mount namespace must first stop sharing its root"
)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::thread::{ThreadNameSpaceType, UnshareFlags, move_into_thread_name_spaces, unshare_unsafe};

use crate::eventually::eventually;
use crate::journal::ProcessId;
use crate::lab::Lab;
use crate::netns::{Namespace, printed};
use crate::process::Place;

/// How long a machine may take to come up.
const UP_WITHIN: Duration = Duration::from_secs(15);
/// What the first process does.
const FIRST_PROCESS: &str = include_str!("machine.sh");

/// A machine that is up.
#[derive(Debug)]
pub struct Machine {
    name: String,
    namespace: Namespace,
    cgroup: String,
    first: ProcessId,
    folder: PathBuf,
}

impl Machine {
    /// Boots a machine in the network namespace that was made for it.
    ///
    /// # Errors
    /// When a namespace or mount is refused; with the end of the log.
    pub fn boot(lab: &Lab, name: &str, namespace: &Namespace) -> anyhow::Result<Self> {
        let folder = lab.folder(name)?;
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--propagation", "private", "--uts"])
            .args(["--pid", "--fork", "--kill-child", "--mount-proc"])
            .args(["bash", "-c", FIRST_PROCESS, "machine"])
            .arg(&folder)
            .arg(name);
        let mut outside = lab.start(name, "machine", namespace, &mut command)?;
        let first = eventually(&format!("machine {name} is up"), UP_WITHIN, || {
            outside.check_alive()?;
            let first = only_child(outside.id().pid)?;
            let mark = root_of(first).join("run/machine-is-up");
            ensure!(
                mark.exists(),
                "its first process, {}, is still mounting",
                first.pid
            );
            Ok(first)
        })?;
        Ok(Self {
            name: name.to_owned(),
            namespace: namespace.clone(),
            cgroup: lab.cgroup(name)?,
            first,
            folder,
        })
    }

    /// Its host name, and its name in the lab.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its network namespace.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// The control group below which its container runtime is to make all others.
    #[must_use]
    pub fn cgroup(&self) -> &str {
        &self.cgroup
    }

    /// The lab's folder for it, which has the same path inside.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where a file of the machine is seen from outside.
    #[must_use]
    pub fn path(&self, inside: &str) -> PathBuf {
        root_of(self.first).join(inside.trim_start_matches('/'))
    }

    /// Writes a file of the machine whole: under another name first, then renamed.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, inside: &str, content: impl AsRef<[u8]>) -> anyhow::Result<()> {
        let path = self.path(inside);
        let folder = path.parent().context("a file lies in a folder")?;
        std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
        let new = path.with_extension("new");
        std::fs::write(&new, content).with_context(|| format!("write {}", new.display()))?;
        std::fs::rename(&new, &path).with_context(|| format!("rename to {}", path.display()))
    }

    /// Copies a program into the machine, runnable.
    ///
    /// # Errors
    /// When it cannot be read or written.
    pub fn install(&self, program: &Path, inside: &str) -> anyhow::Result<()> {
        let path = self.path(inside);
        let folder = path.parent().context("a file lies in a folder")?;
        std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
        std::fs::copy(program, &path)
            .with_context(|| format!("copy {} to {}", program.display(), path.display()))?;
        Ok(())
    }

    /// Runs a program inside that must succeed, and returns what it printed.
    ///
    /// # Errors
    /// Also when it exits with an error; what it said is in the message.
    pub fn run(&self, command: &mut Command) -> anyhow::Result<String> {
        let output = self.output(command)?;
        printed(command, &output)
    }

    /// Runs a program inside to its end, whatever its exit code.
    ///
    /// # Errors
    /// When the machine cannot be entered or the program not be started.
    pub fn output(&self, command: &mut Command) -> anyhow::Result<Output> {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Ok(self.spawn(command)?.wait_with_output()?)
    }

    /// Runs `work` in a thread of its own that is inside all namespaces, its future children included.
    fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> anyhow::Result<T> {
        ensure!(self.first.is_alive(), "machine {} is down", self.name);
        let pid = i32::try_from(self.first.pid).ok().and_then(Pid::from_raw);
        let first = pidfd_open(pid.context("process number out of range")?, PidfdFlags::empty())
            .with_context(|| format!("find machine {}", self.name))?;
        let inside = || {
            // SAFETY: only the working directory, root and umask are unshared; no file descriptor is affected.
            unsafe { unshare_unsafe(UnshareFlags::FS) }?;
            let all = ThreadNameSpaceType::NETWORK
                | ThreadNameSpaceType::MOUNT
                | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
                | ThreadNameSpaceType::PROCESS_ID;
            move_into_thread_name_spaces(std::os::fd::AsFd::as_fd(&first), all)
                .with_context(|| format!("enter machine {}", self.name))?;
            Ok(work())
        };
        match std::thread::scope(|scope| scope.spawn(inside).join()) {
            Ok(result) => result,
            Err(_) => anyhow::bail!("the work in machine {} panicked", self.name),
        }
    }
}

impl Place for Machine {
    fn spawn(&self, command: &mut Command) -> anyhow::Result<Child> {
        let program = command.get_program().to_owned();
        self.enter(|| command.spawn())?
            .with_context(|| format!("start {} in machine {}", program.display(), self.name))
    }
}

/// The one child of `unshare`.
fn only_child(parent: u32) -> anyhow::Result<ProcessId> {
    let path = format!("/proc/{parent}/task/{parent}/children");
    let children = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let child = children
        .trim()
        .parse()
        .with_context(|| format!("{path}: {children:?}"))?;
    ProcessId::of(child)
}

/// The root folder that a process sees.
fn root_of(process: ProcessId) -> PathBuf {
    PathBuf::from(format!("/proc/{}/root", process.pid))
}
