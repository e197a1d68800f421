//! Network namespaces: the current one, whether two are the same, and work inside another one.

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::thread;

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

/// Runs `work` in the namespace, in a thread of its own that ends with it: no thread ever has to find back.
pub(super) fn run_in<T: Send>(namespace: BorrowedFd<'_>, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let enter_and_work = || {
            move_into_link_name_space(namespace, Some(LinkNameSpaceType::Network))?;
            Ok(work())
        };
        let worker = thread::Builder::new()
            .name("pod-namespace".to_owned())
            .spawn_scoped(scope, enter_and_work)?;
        worker
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread in the namespace panicked")))
    })
}
