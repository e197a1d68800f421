//! What a lab has made, on disk, so that it can be taken down by another process after a crash.
//!
//! One JSON object a line, only ever appended. A namespace is written down before it is made and a process right
//! after it was started; what is read back may therefore not exist (any more), and taking down accepts that. A
//! process is known by its number *and* its start time, so that a number used again is never mistaken for ours.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};

/// One thing that a lab made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Entry {
    /// The process that runs the lab. While it lives, nobody else takes the lab down.
    Owner(ProcessId),
    /// A named network namespace.
    Namespace(String),
    /// A control group, in every hierarchy, and all groups below it.
    Cgroup(String),
    /// A process started in the lab.
    Process {
        /// Which process.
        id: ProcessId,
        /// What it is, for messages.
        name: String,
    },
}

/// A process, safe against its number being used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// The process number.
    pub pid: u32,
    /// When it started, in clock ticks since boot (field 22 of `/proc/PID/stat`, proc(5)).
    pub start_time: u64,
}

impl ProcessId {
    /// The process that has this number now.
    ///
    /// # Errors
    /// When there is none, or `/proc` cannot be read.
    pub fn of(pid: u32) -> anyhow::Result<Self> {
        let (_, start_time) = stat(pid)?;
        Ok(Self { pid, start_time })
    }

    /// Whether this very process still runs. A zombie does not.
    #[must_use]
    pub fn is_alive(self) -> bool {
        stat(self.pid).is_ok_and(|(state, start_time)| state != 'Z' && start_time == self.start_time)
    }
}

/// The list of a lab's things, open for appending.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
}

impl Journal {
    /// Opens the journal in a lab's directory, and makes it if there is none.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn open(directory: &Path) -> anyhow::Result<Self> {
        let path = directory.join("journal");
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(|| format!("open {}", path.display()))?;
        Ok(Self { path, file })
    }

    /// Appends one entry.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn record(&self, entry: &Entry) -> anyhow::Result<()> {
        let line = format!("{}\n", serde_json::to_string(entry)?);
        (&self.file)
            .write_all(line.as_bytes())
            .with_context(|| format!("append to {}", self.path.display()))
    }

    /// All entries, oldest first. A last line that a crash cut short is left out.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn entries(directory: &Path) -> anyhow::Result<Vec<Entry>> {
        let path = directory.join("journal");
        let text = match std::fs::read_to_string(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            text => text.with_context(|| format!("read {}", path.display()))?,
        };
        Ok(text
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect())
    }
}

/// State letter and start time of a process. The name in `/proc/PID/stat` may hold spaces and parentheses, so the
/// fields are counted from its last closing parenthesis.
fn stat(pid: u32) -> anyhow::Result<(char, u64)> {
    let path = format!("/proc/{pid}/stat");
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let (_, fields) = text
        .rsplit_once(')')
        .with_context(|| format!("{path}: no process name"))?;
    let mut fields = fields.split_ascii_whitespace();
    let state = fields.next().and_then(|field| field.chars().next());
    let start_time = fields.nth(18).and_then(|field| field.parse().ok());
    state
        .zip(start_time)
        .with_context(|| format!("{path}: expected state and start time, found {text:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_itself_and_not_another_of_the_same_number() {
        let me = ProcessId::of(std::process::id()).unwrap();
        assert!(me.is_alive());
        assert!(
            !ProcessId {
                start_time: me.start_time + 1,
                ..me
            }
            .is_alive()
        );
    }

    #[test]
    fn entries_come_back_in_order_and_a_cut_line_is_left_out() {
        let directory = std::env::temp_dir().join(format!("calidris-journal-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let journal = Journal::open(&directory).unwrap();
        let entries = [
            Entry::Owner(ProcessId {
                pid: 1,
                start_time: 2,
            }),
            Entry::Namespace("cal-x-node1".into()),
            Entry::Process {
                id: ProcessId {
                    pid: 3,
                    start_time: 4,
                },
                name: "bird".into(),
            },
        ];
        for entry in &entries {
            journal.record(entry).unwrap();
        }
        (&journal.file).write_all(b"{\"namespace\":\"cal-x-no").unwrap();
        let read = Journal::entries(&directory);
        std::fs::remove_dir_all(&directory).unwrap();
        assert_eq!(read.unwrap(), entries);
    }
}
