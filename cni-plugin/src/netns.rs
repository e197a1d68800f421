//! Opens the namespace that `CNI_NETNS` names.
//!
//! Invariants: what is handed to the agent is a namespace file and never the plugin's own network namespace: a runtime
//! that recycled a process ID may name the host's, and an `eth0` must not be made or removed there.

use std::os::fd::{AsFd, OwnedFd};

use calidris_cni::contract::Operation;
use calidris_cni::error::{CniError, ErrorCode};
use calidris_cni::socket::is_namespace;
use rustix::fs::{Mode, OFlags};

/// The descriptor to send along with `operation`, if it takes one.
///
/// For ADD and CHECK the namespace must be there. For DEL anything else than a foreign namespace means that it is gone.
///
/// # Errors
/// Code 4, naming `CNI_NETNS`.
pub(crate) fn open_for(operation: &Operation) -> Result<Option<OwnedFd>, CniError> {
    match operation {
        Operation::Add(attachment) | Operation::Check(attachment) => open(&attachment.netns_path).map(Some),
        Operation::Del(attachment) => Ok(open(&attachment.netns_path).ok()),
        Operation::Status | Operation::Gc { .. } => Ok(None),
    }
}

fn open(path: &str) -> Result<OwnedFd, CniError> {
    let invalid = |why: &str| {
        CniError::new(
            ErrorCode::INVALID_ENVIRONMENT,
            format!("invalid environment variable CNI_NETNS: {path:?} {why}"),
        )
    };
    // Without O_NONBLOCK, opening a FIFO would wait for its other end.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let netns = rustix::fs::open(path, flags, Mode::empty())
        .map_err(|error| invalid(&format!("cannot be opened: {error}")))?;
    if !is_namespace(netns.as_fd()) {
        return Err(invalid("is not a namespace"));
    }
    if is_own(&netns).map_err(|error| invalid(&format!("cannot be compared with the host's: {error}")))? {
        return Err(invalid("is the namespace of the host"));
    }
    Ok(netns)
}

fn is_own(netns: &OwnedFd) -> rustix::io::Result<bool> {
    let own = rustix::fs::stat("/proc/self/ns/net")?;
    let other = rustix::fs::fstat(netns)?;
    Ok((own.st_dev, own.st_ino) == (other.st_dev, other.st_ino))
}
