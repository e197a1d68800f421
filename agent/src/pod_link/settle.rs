//! Waiting until an end of a new pair passes packets.
//!
//! An end has its carrier as soon as the other one is up, but the kernel lets it send only when its link watch has run,
//! in a work queue of its own; what is sent before that is dropped, and a dropped ARP answer costs the first client a
//! second. Since Linux 6.8 asking for a link runs the link watch for it, so that the first question settles it; older
//! kernels run it within milliseconds, and are asked again.

use std::time::Duration;

use crate::kernel::netlink::NetlinkSocket;
use crate::kernel::{KernelError, linux};

/// Time between two questions, and how many there are: half a second in all.
const PAUSE: Duration = Duration::from_millis(2);
const QUESTIONS: u32 = 250;

/// Returns when the link `name` of the socket's namespace passes packets. One that still does not at the end is logged
/// and left: the pod works then as soon as its link does.
pub(super) fn settle(socket: &mut NetlinkSocket, name: &str) -> Result<(), KernelError> {
    for _ in 0..QUESTIONS {
        if linux::is_operational(socket, name)? {
            return Ok(());
        }
        #[expect(
            clippy::disallowed_methods,
            reason = "waits for a condition of the kernel, with a bound"
        )]
        std::thread::sleep(PAUSE);
    }
    tracing::warn!(
        interface = name,
        "the link is up but the kernel does not report it as operational"
    );
    Ok(())
}
