//! A lab: namespaces and processes with one name and one directory, which can always be taken down whole.
//!
//! Everything that a lab makes outside its directory is a network namespace, a process or a control group, and all are
//! written to its journal; processes also carry the lab's name in their environment, and so do their children. Links,
//! addresses, routes and nftables live in the namespaces and go with them. Taking down works
//! from the journal alone, so the lab that ends and `calidris-lab clean` after a crash run the same code.
//!
//! Layout: `/run/calidris-lab/NAME/` holds the journal and a folder per namespace (configuration, sockets, logs);
//! the namespaces are `cal-NAME-…`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, bail, ensure};

use crate::cgroup;
use crate::journal::{Entry, Journal, ProcessId};
use crate::netns::Namespace;
use crate::process::{self, Place, Process};
use crate::signals;

/// Where all labs of this machine keep their directories.
pub const LABS: &str = "/run/calidris-lab";

/// The environment variable that marks a lab's processes with its name.
const MARK: &str = "CALIDRIS_LAB";

/// The longest name of a lab; unix socket paths below its directory must stay under 108 bytes.
const LONGEST_NAME: usize = 30;

/// A lab that this process owns. Dropping it takes it down, unless [`Lab::keep`] was said; when the user interrupted,
/// even then.
#[derive(Debug)]
pub struct Lab {
    name: String,
    directory: PathBuf,
    journal: Journal,
    kept: AtomicBool,
}

impl Lab {
    /// Makes an empty lab. Needs root.
    ///
    /// # Errors
    /// When the name is not `[a-z0-9-]`, at most 30 long, or there is a lab of that name (running, kept or crashed).
    pub fn create(name: &str) -> anyhow::Result<Self> {
        ensure!(
            !name.is_empty()
                && name.len() <= LONGEST_NAME
                && name
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'),
            "lab name {name:?}: expected 1 to {LONGEST_NAME} of a-z, 0-9 and -"
        );
        std::fs::create_dir_all(LABS).with_context(|| format!("make {LABS} (are you root?)"))?;
        let directory = Path::new(LABS).join(name);
        if let Err(error) = std::fs::create_dir(&directory) {
            if error.kind() == std::io::ErrorKind::AlreadyExists {
                bail!("there is a lab {name} already; remove it with `calidris lab clean --name {name}`");
            }
            return Err(error).with_context(|| format!("make {}", directory.display()));
        }
        let journal = Journal::open(&directory)?;
        journal.record(&Entry::Owner(ProcessId::of(std::process::id())?))?;
        Ok(Self {
            name: name.to_owned(),
            directory,
            journal,
            kept: AtomicBool::new(false),
        })
    }

    /// The lab's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The lab's directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The folder for the files of one member, made when needed.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn folder(&self, member: &str) -> anyhow::Result<PathBuf> {
        let folder = self.directory.join(member);
        std::fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        Ok(folder)
    }

    /// Makes the namespace `cal-LAB-member`.
    ///
    /// # Errors
    /// When it exists or cannot be made.
    pub fn namespace(&self, member: &str) -> anyhow::Result<Namespace> {
        let namespace = Namespace::named(format!("cal-{}-{member}", self.name));
        ensure!(
            !namespace.exists(),
            "namespace {} exists and is not this lab's",
            namespace.name()
        );
        self.journal
            .record(&Entry::Namespace(namespace.name().to_owned()))?;
        namespace.create()?;
        Ok(namespace)
    }

    /// Makes the control group `/cal-LAB-member` in every hierarchy, to be removed with all groups below it.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn cgroup(&self, member: &str) -> anyhow::Result<String> {
        let name = format!("cal-{}-{member}", self.name);
        self.journal.record(&Entry::Cgroup(name.clone()))?;
        cgroup::create(&name)?;
        Ok(format!("/{name}"))
    }

    /// Starts a process in a namespace or machine, its log beside its other files: `folder(member)/program.log`.
    ///
    /// # Errors
    /// When it cannot be started, or ends at once.
    pub fn start(
        &self,
        member: &str,
        program: &str,
        place: &dyn Place,
        command: &mut Command,
    ) -> anyhow::Result<Process> {
        let log = self.folder(member)?.join(format!("{program}.log"));
        let name = format!("{program} of {member}");
        let process = Process::start(&name, place, command.env(MARK, &self.name), &log)?;
        self.journal.record(&Entry::Process {
            id: process.id(),
            name,
        })?;
        Ok(process)
    }

    /// The last lines of every log of the lab that has any.
    #[must_use]
    pub fn log_tails(&self, lines: usize) -> String {
        let inside = |folder: &Path| std::fs::read_dir(folder).into_iter().flatten().flatten();
        let files = inside(&self.directory).flat_map(|member| inside(&member.path()));
        let mut logs: Vec<PathBuf> = files.map(|file| file.path()).collect();
        logs.retain(|file| file.extension().is_some_and(|extension| extension == "log"));
        logs.sort();
        let mut text = String::new();
        for log in logs {
            let tail = process::tail(&log, lines);
            if !tail.is_empty() {
                text.push_str(&format!("--- {} (last lines)\n{tail}\n", log.display()));
            }
        }
        text
    }

    /// Leaves everything up when the value is dropped; `calidris-lab clean` removes it later.
    pub fn keep(&self) {
        self.kept.store(true, Ordering::Relaxed);
    }

    /// Takes everything down.
    ///
    /// # Errors
    /// Everything that is still there, with the reason.
    pub fn take_down(self) -> anyhow::Result<()> {
        take_down(&self.directory)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let kept = self.kept.load(Ordering::Relaxed) && !signals::interrupted();
        if !kept && let Err(error) = take_down(&self.directory) {
            eprintln!("lab {}: {error:#}", self.name);
        }
    }
}

/// The labs of this machine that have a directory: running, kept or left by a crash.
///
/// # Errors
/// When the directory of labs cannot be read.
pub fn list() -> anyhow::Result<Vec<String>> {
    let entries = match std::fs::read_dir(LABS) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(|| format!("read {LABS}"))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// Whether the process that made the lab still runs.
///
/// # Errors
/// When the journal cannot be read.
pub fn is_running(name: &str) -> anyhow::Result<bool> {
    let entries = Journal::entries(&Path::new(LABS).join(name))?;
    Ok(entries
        .iter()
        .any(|entry| matches!(entry, Entry::Owner(id) if id.is_alive())))
}

/// Takes down a lab that was kept or left by a crash. A lab that does not exist is fine.
///
/// # Errors
/// When its owner still runs, or what could not be removed.
pub fn clean(name: &str) -> anyhow::Result<()> {
    ensure!(
        !name.is_empty() && !name.contains(['/', '.']),
        "{name:?} is no name of a lab"
    );
    if is_running(name)? {
        bail!("lab {name} is in use: end the process that runs it");
    }
    take_down(&Path::new(LABS).join(name))
}

/// Kills what the journal does not know of: children of the lab's processes, and what was started just before a crash.
/// A shell that somebody opened in the namespace does not carry the mark and is left alone.
fn kill_marked(namespace: &Namespace, lab: &str) -> anyhow::Result<()> {
    if !namespace.exists() {
        return Ok(());
    }
    let mark = format!("{MARK}={lab}").into_bytes();
    for pid in namespace.processes()? {
        // One that ends meanwhile has no environment any more.
        let Ok(id) = ProcessId::of(pid) else { continue };
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        if environment
            .split(|byte| *byte == 0)
            .any(|variable| variable == mark)
        {
            process::kill(&format!("process {pid} of lab {lab}"), id)?;
        }
    }
    Ok(())
}

/// Ends the processes, then deletes the namespaces, the control groups and the directory: each newest first. Goes on
/// after a failure;
/// the directory stays when anything else does, so that it can be tried again.
fn take_down(directory: &Path) -> anyhow::Result<()> {
    let entries = Journal::entries(directory)?;
    let mut failures = Vec::new();
    for entry in entries.iter().rev() {
        if let Entry::Process { id, name } = entry
            && let Err(error) = process::kill(name, *id)
        {
            failures.push(format!("{error:#}"));
        }
    }
    let name = directory.file_name().unwrap_or_default().to_string_lossy();
    for entry in entries.iter().rev() {
        if let Entry::Namespace(namespace) = entry {
            let namespace = Namespace::named(namespace);
            let gone = kill_marked(&namespace, &name).and_then(|()| namespace.delete());
            failures.extend(gone.err().map(|error| format!("{error:#}")));
        }
    }
    for entry in entries.iter().rev() {
        if let Entry::Cgroup(name) = entry
            && let Err(error) = cgroup::remove(name)
        {
            failures.push(format!("{error:#}"));
        }
    }
    if failures.is_empty() {
        match std::fs::remove_dir_all(directory) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                failures.push(format!("remove {}: {error}", directory.display()));
            }
            _ => {}
        }
        // Only the last lab can remove the directory of labs; for all others it is not empty.
        let _ = std::fs::remove_dir(LABS);
    }
    if failures.is_empty() {
        Ok(())
    } else {
        bail!("left over:\n  {}", failures.join("\n  "))
    }
}
