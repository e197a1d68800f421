//! No address ever has two owners, and none is lost, while etcd is maltreated: the short form of `make ipam-chaos`.

use std::time::Duration;

use calidris_interop::binaries::Binaries;
use calidris_interop::ipam_chaos::{Options, run};
use calidris_interop::progress::{Progress, Stream};
use calidris_interop::require;
use calidris_interop::require::LAB;

#[test]
fn no_address_has_two_owners_whatever_is_done_to_etcd() -> anyhow::Result<()> {
    require!(LAB);
    let options = Options {
        seed: 1,
        duration: Duration::from_secs(1),
        nodes: 4,
        workers: 3,
        longest_fault: Duration::from_millis(700),
    };
    let report = run(&options, &Binaries::find()?, &Progress::start(Stream::Error))?;
    eprintln!("{report:?}");
    Ok(())
}
