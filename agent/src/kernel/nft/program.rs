//! Running `nft`: to its end or to the deadline, in the network namespace of the calling thread.

use std::io::{self, Write as _};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::parse::parse;
use super::{NftChange, NftFamily, NftTables, OwnPorts};
use crate::kernel::KernelError;
use crate::ours::NFT_TABLE;

/// How long one call of `nft` may take. A hundred times what replacing a table of 20,000 elements takes.
const DEADLINE: Duration = Duration::from_secs(15);

/// Carries out changes in one transaction.
pub(super) fn carry_out(changes: &[NftChange], own: &OwnPorts) -> Result<(), KernelError> {
    let action = "change our tables".to_owned();
    let script: String = changes.iter().map(NftChange::script).collect();
    let output = run(&["-f", "-"], script.into_bytes(), &action, |process| {
        own.add(process);
    })?;
    succeeded(action, &output)
}

/// The families of which there is a table of our name.
pub(in crate::kernel) fn tables() -> Result<Vec<NftFamily>, KernelError> {
    let action = "list the tables".to_owned();
    let output = ask(&["list", "tables"], &action)?;
    succeeded(action, &output)?;
    let text = String::from_utf8_lossy(&output.stdout);
    let is_there = |family: &NftFamily| {
        let line = format!("table {family} {NFT_TABLE}");
        text.lines().any(|listed| listed.trim() == line)
    };
    Ok(NftFamily::ALL.into_iter().filter(is_there).collect())
}

/// Deletes our table of a family.
pub(in crate::kernel) fn delete(family: NftFamily) -> Result<(), KernelError> {
    let action = format!("delete table {family} {NFT_TABLE}");
    let output = ask(&["delete", "table", family.name(), NFT_TABLE], &action)?;
    succeeded(action, &output)
}

/// Reads our tables back, those that are there.
pub(in crate::kernel) fn list() -> Result<NftTables, KernelError> {
    let mut tables = NftTables::new();
    for family in NftFamily::ALL {
        let action = format!("list table {family} {NFT_TABLE}");
        let output = ask(&["-j", "list", "table", family.name(), NFT_TABLE], &action)?;
        match succeeded(action.clone(), &output) {
            Ok(()) => {
                let table =
                    parse(&output.stdout).map_err(|reason| KernelError::Malformed { action, reason })?;
                tables.insert(family, table);
            }
            Err(KernelError::Nft { stderr, .. }) if stderr.contains("No such file or directory") => {}
            Err(error) => return Err(error),
        }
    }
    Ok(tables)
}

fn succeeded(action: String, output: &Output) -> Result<(), KernelError> {
    if output.status.success() {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    let stderr = match stderr.trim() {
        "" => output.status.to_string(),
        text => text.chars().take(1000).collect(),
    };
    Err(KernelError::Nft { action, stderr })
}

fn ask(arguments: &[&str], action: &str) -> Result<Output, KernelError> {
    run(arguments, Vec::new(), action, |_| {})
}

/// Runs `nft` to its end or kills it at the deadline. It inherits the network namespace of this thread.
fn run(
    arguments: &[&str],
    stdin: Vec<u8>,
    action: &str,
    started: impl FnOnce(u32),
) -> Result<Output, KernelError> {
    let io_error = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => KernelError::Nft {
            action: action.to_owned(),
            stderr: "the program nft is not in PATH: install nftables".to_owned(),
        },
        _ => KernelError::Io {
            action: format!("run nft to {action}"),
            source,
        },
    };
    let child = Command::new("nft")
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(io_error)?;
    started(child.id());
    // Taken while the child is not yet waited for, so that the number is still its own.
    let handle = i32::try_from(child.id())
        .ok()
        .and_then(Pid::from_raw)
        .ok_or_else(|| io::Error::other("process number out of range"))
        .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).map_err(io::Error::from))
        .map_err(io_error)?;
    let (sender, receiver) = mpsc::channel();
    let worker = std::thread::Builder::new()
        .name("nft".to_owned())
        .spawn(move || {
            let _ = sender.send(feed_and_wait(child, &stdin));
        })
        .map_err(io_error)?;
    let outcome = receiver.recv_timeout(DEADLINE);
    if outcome.is_err() {
        let _ = pidfd_send_signal(&handle, Signal::KILL);
    }
    let _ = worker.join();
    match outcome {
        Ok(result) => result.map_err(io_error),
        Err(_) => Err(KernelError::Timeout {
            action: format!("nft: {action}"),
            limit: DEADLINE,
        }),
    }
}

fn feed_and_wait(mut child: Child, stdin: &[u8]) -> io::Result<Output> {
    if let Some(mut pipe) = child.stdin.take() {
        // An `nft` that dies early closes the pipe; its own words are then the better error.
        let _ = pipe.write_all(stdin);
    }
    child.wait_with_output()
}
