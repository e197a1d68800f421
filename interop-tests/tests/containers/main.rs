//! Calidris under real container runtimes, each node a machine of its own, installed from the files in `deploy/`.

mod containerd;
mod cri;
mod node;
mod podman;

use calidris_interop::require::Need;

const NEEDS: &[Need] = &[
    Need::Root,
    Need::Iproute2,
    Need::Bird,
    Need::Etcd,
    Need::Nftables,
    Need::Containerd,
    Need::Machines,
    Need::Loopback,
];
