//! Network namespaces: the current one, whether two are the same, and work inside another one.

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::process::abort;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::PodLinkError;

/// The namespace of this thread (`/proc/self` would be that of the main thread).
pub(super) fn current() -> io::Result<File> {
    File::open("/proc/thread-self/ns/net")
}

/// Refuses the host's namespace as a pod's: its links and routes would be the node's own.
pub(super) fn must_differ(pod: BorrowedFd<'_>, host: BorrowedFd<'_>) -> Result<(), PodLinkError> {
    let identity = |namespace| {
        let stat = rustix::fs::fstat(namespace).map_err(|errno| PodLinkError::Namespace(errno.into()))?;
        Ok::<_, PodLinkError>((stat.st_dev, stat.st_ino))
    };
    if identity(pod)? == identity(host)? {
        Err(PodLinkError::HostNamespace)
    } else {
        Ok(())
    }
}

/// Runs `work` with this thread in `namespace`, and takes it back to `home`, where it was, also when `work` panics. The work
/// must start no threads: they would stay there.
///
/// A thread of its own for every pod would not have to find back, but has a stack to be mapped and unmapped each time, which
/// interrupts the other processors. Finding back fails only if the process loses its capabilities meanwhile; then it ends, since whatever else this thread was given to do
/// would be done to a pod instead of the node.
pub(super) fn run_in<T>(
    namespace: BorrowedFd<'_>,
    home: BorrowedFd<'_>,
    work: impl FnOnce() -> T,
) -> io::Result<T> {
    move_into_link_name_space(namespace, Some(LinkNameSpaceType::Network))?;
    let result = catch_unwind(AssertUnwindSafe(work));
    if let Err(error) = move_into_link_name_space(home, Some(LinkNameSpaceType::Network)) {
        tracing::error!(%error, "a thread cannot leave a pod's network namespace; ending");
        abort();
    }
    result.map_err(|panic| resume_unwind(panic))
}
