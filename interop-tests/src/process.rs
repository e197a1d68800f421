//! Long-running processes of a lab: one log file each, ended by their identity and never by name.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::eventually::{Hopeless, eventually_uninterrupted};
use crate::journal::ProcessId;

/// How long a process may take to go after SIGKILL, or after a polite signal before it is killed.
const GONE_WITHIN: Duration = Duration::from_secs(5);

/// Where processes can be started: a network namespace, or a machine that has more namespaces of its own.
pub trait Place {
    /// Starts a process inside.
    ///
    /// # Errors
    /// When the place cannot be entered or the program not be started.
    fn spawn(&self, command: &mut Command) -> anyhow::Result<Child>;
}

/// A child process in a namespace. Dropping the value leaves the process running: labs can be kept.
#[derive(Debug)]
pub struct Process {
    name: String,
    id: ProcessId,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command` in `place` with its output appended to `log`, in a process group of its own: Ctrl-C in a
    /// terminal reaches the lab, which then takes things down in order.
    ///
    /// # Errors
    /// When the log cannot be opened or the program not be started.
    pub fn start(name: &str, place: &dyn Place, command: &mut Command, log: &Path) -> anyhow::Result<Self> {
        let output = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("open log {}", log.display()))?;
        command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .process_group(0);
        let child = place.spawn(command)?;
        let id = ProcessId::of(child.id()).with_context(|| format!("{name} ended at once"))?;
        Ok(Self {
            name: name.to_owned(),
            id,
            child,
            log: log.to_owned(),
        })
    }

    /// What it is, for messages.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its identity.
    #[must_use]
    pub fn id(&self) -> ProcessId {
        self.id
    }

    /// Where its output goes.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Fails when the process has ended, with the end of its log: whoever waits for it has waited enough.
    ///
    /// # Errors
    /// See above.
    pub fn check_alive(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => {
                let end = tail(&self.log, 10);
                Err(Hopeless(format!("{} ended ({status}):\n{end}", self.name)).into())
            }
        }
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When the process is gone or the kernel refuses.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        send(self.id, signal).with_context(|| format!("send {signal:?} to {}", self.name))
    }

    /// Kills it with SIGKILL and waits until it is gone.
    ///
    /// # Errors
    /// When it does not go.
    pub fn kill(mut self) -> anyhow::Result<()> {
        kill(&self.name, self.id)?;
        self.child.wait()?;
        Ok(())
    }

    /// Asks it to end with SIGTERM and waits until it has.
    ///
    /// # Errors
    /// When it does not go within a few seconds; it is then left running.
    pub fn terminate(mut self) -> anyhow::Result<()> {
        self.signal(Signal::TERM)?;
        eventually_uninterrupted(
            &format!("{} ends after SIGTERM", self.name),
            GONE_WITHIN,
            || match self.child.try_wait()? {
                Some(_) => Ok(()),
                None => bail!("still running"),
            },
        )
    }
}

/// Kills a process with SIGKILL and waits until it is gone. One that is gone already is fine.
///
/// # Errors
/// When it does not go.
pub fn kill(name: &str, id: ProcessId) -> anyhow::Result<()> {
    if !id.is_alive() {
        return Ok(());
    }
    // It may end between the look and the signal; what counts is that it is gone.
    let sent = send(id, Signal::KILL);
    eventually_uninterrupted(&format!("{name} ends after SIGKILL"), GONE_WITHIN, || {
        if id.is_alive() {
            bail!("process {} still runs ({sent:?})", id.pid)
        } else {
            Ok(())
        }
    })
}

/// The last lines of a log.
#[must_use]
pub fn tail(log: &Path, lines: usize) -> String {
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let all: Vec<&str> = text.lines().collect();
    all.get(all.len().saturating_sub(lines)..)
        .unwrap_or_default()
        .join("\n")
}

fn send(id: ProcessId, signal: Signal) -> anyhow::Result<()> {
    if !id.is_alive() {
        bail!("process {} is gone", id.pid);
    }
    let pid = i32::try_from(id.pid)
        .ok()
        .and_then(Pid::from_raw)
        .context("process number out of range")?;
    Ok(kill_process(pid, signal)?)
}
