//! Where a daemon sits: its namespace, the folder with its files, and the Debian that its programs come from.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use crate::lab::{LABS, Lab};
use crate::netns::Namespace;
use crate::process::Process;

/// Where programs come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Installation {
    /// This machine.
    Machine,
    /// Another Debian in a folder, entered with chroot. The labs' directory shows through.
    Folder(PathBuf),
}

impl Installation {
    /// What runs a program of the installation.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        match self {
            Self::Machine => Command::new(program),
            Self::Folder(root) => {
                // A mount namespace of its own: the mounts go with the process.
                let script = format!(
                    "mkdir -p {LABS} \"$0{LABS}\" && mount --rbind {LABS} \"$0{LABS}\" && mount --rbind /proc \"$0/proc\" && \
                     mount --rbind /dev \"$0/dev\" && exec chroot \"$0\" \"$@\""
                );
                let mut command = Command::new("unshare");
                command.args(["--mount", "--propagation", "private", "sh", "-c", &script]);
                command.arg(root).arg(program);
                command
            }
        }
    }

    /// Whether a program is there, by its full path.
    #[must_use]
    pub fn has(&self, program: &str) -> bool {
        match self {
            Self::Machine => Path::new(program).exists(),
            Self::Folder(root) => root.join(program.trim_start_matches('/')).exists(),
        }
    }
}

/// Where a daemon sits.
#[derive(Clone, Debug)]
pub struct Seat {
    /// Its name in the lab.
    pub member: String,
    /// The namespace it runs in.
    pub namespace: Namespace,
    /// Its files.
    pub folder: PathBuf,
    /// Its programs.
    pub installation: Installation,
}

impl Seat {
    /// A seat with a folder of its own.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn take(
        lab: &Lab,
        member: &str,
        namespace: &Namespace,
        installation: &Installation,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            member: member.to_owned(),
            namespace: namespace.clone(),
            folder: lab.folder(member)?,
            installation: installation.clone(),
        })
    }

    /// What runs a program of the installation; in the namespace when given to [`Seat::run`] or [`Seat::start`].
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        self.installation.command(program)
    }

    /// Writes a file of the daemon's.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, name: &str, text: &str) -> anyhow::Result<PathBuf> {
        let file = self.folder.join(name);
        std::fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
        Ok(file)
    }

    /// Starts a long-running program, logged to `name.log` in the folder.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&self, lab: &Lab, name: &str, command: &mut Command) -> anyhow::Result<Process> {
        lab.start(&self.member, name, &self.namespace, command)
    }

    /// Runs a program that must succeed and returns what it printed.
    ///
    /// # Errors
    /// When it does not; with what it said.
    pub fn run(&self, command: &mut Command) -> anyhow::Result<String> {
        self.namespace.run(command)
    }
}
