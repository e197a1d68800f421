//! Our speaker against the others: the driver in a thread, the program against each daemon feature by feature, an old speaker, and
//! peers that mean no good.

mod driver;
mod hostile;
mod matrix;
mod old_speaker;

use calidris_interop::binaries::Binaries;
use calidris_interop::daemon::seat::Installation;
use calidris_interop::interop::peers::Kind;
use calidris_interop::interop::site::Contestants;
use calidris_interop::require::Need;

/// What these tests need of the machine.
const NEEDS: &[Need] = &[
    Need::Root,
    Need::Iproute2,
    Need::Bird,
    Need::Frr,
    Need::Gobgp,
    Need::Openbgpd,
    Need::Exabgp,
];

/// Our program against this machine's daemon.
fn contestants(kind: Kind) -> anyhow::Result<Contestants> {
    Ok(Contestants {
        calidris: Binaries::find()?.agent,
        kind,
        installation: Installation::Machine,
    })
}
