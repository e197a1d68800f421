//! What a test needs of the machine. A test that cannot run says so loudly, and fails where `CALIDRIS_NO_SKIP=1`
//! is set, as it is in CI.

use std::path::Path;
use std::process::Command;

use crate::interop::peers::Kind;
use crate::{netns, vm};

/// Something that a lab test needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// To be root: namespaces, routes, nftables.
    Root,
    /// `ip` of iproute2.
    Iproute2,
    /// `bird` and `birdc`.
    Bird,
    /// `zebra`, `bgpd` and `vtysh`.
    Frr,
    /// `gobgpd` and `gobgp`.
    Gobgp,
    /// OpenBGPD's `bgpd` and `bgpctl`.
    Openbgpd,
    /// `exabgp`.
    Exabgp,
    /// `etcd` and `etcdctl`.
    Etcd,
    /// `nft`.
    Nftables,
    /// The reference plugins of the CNI project, as Debian installs them.
    ReferencePlugins,
    /// containerd with runc, and busybox for the images of containers.
    Containerd,
    /// podman 4, the last one with a CNI backend.
    Podman,
    /// The right to make machines: mount, process and host name namespaces.
    Machines,
    /// The reference plugin that container runtimes cannot do without.
    Loopback,
    /// The reference plugin portmap, and what it runs.
    Portmap,
    /// `tcpdump`, for captures.
    Tcpdump,
    /// A virtual machine: qemu, busybox and a kernel to boot.
    VirtualMachine,
    /// `openssl`, for the key of Kubernetes' service accounts.
    Openssl,
}

impl Need {
    /// What is missing, if anything is.
    #[must_use]
    pub fn missing(self) -> Option<String> {
        let programs: &[&str] = match self {
            Self::Machines => {
                let words = [
                    "--mount", "--pid", "--uts", "--fork", "mount", "-t", "tmpfs", "none", "/mnt",
                ];
                let made = netns::run(Command::new("unshare").args(words));
                return made
                    .err()
                    .map(|error| format!("namespaces for machines ({error:#})"));
            }
            Self::VirtualMachine if vm::kernel_folder().is_none() => {
                return Some("a kernel in target/vm (interop-tests/setup-debian.sh)".to_owned());
            }
            Self::VirtualMachine => &["qemu-system-x86_64", "busybox", "strip", "ldd", "xz"],
            Self::Tcpdump => &["tcpdump"],
            Self::Root => {
                return (!rustix::process::geteuid().is_root()).then(|| "to be root".to_owned());
            }
            Self::Iproute2 => &["ip"],
            Self::Bird => &["bird", "birdc"],
            Self::Frr => &["/usr/lib/frr/zebra", "/usr/lib/frr/bgpd", "vtysh"],
            Self::Gobgp => Kind::Gobgp.programs(),
            Self::Openbgpd => Kind::Openbgpd.programs(),
            Self::Exabgp => Kind::Exabgp.programs(),
            Self::Etcd => &["etcd", "etcdctl"],
            Self::Nftables => &["nft"],
            Self::Containerd => &["containerd", "ctr", "runc", "/bin/busybox", "unshare"],
            Self::Podman => {
                let version = netns::run(Command::new("podman").arg("--version")).unwrap_or_default();
                let has_backend = version.contains(" 4.");
                return (!has_backend).then(|| format!("podman 4 (found {:?})", version.trim()));
            }
            Self::Loopback => &["/usr/lib/cni/loopback"],
            Self::Portmap => &["/usr/lib/cni/portmap", "iptables"],
            Self::Openssl => &["openssl"],
            Self::ReferencePlugins => &[
                "/usr/lib/cni/ptp",
                "/usr/lib/cni/host-local",
                "/usr/lib/cni/static",
            ],
        };
        programs
            .iter()
            .find(|program| !is_installed(program))
            .map(|program| (*program).to_owned())
    }
}

/// Everything that the whole lab needs.
pub const LAB: &[Need] = &[
    Need::Root,
    Need::Iproute2,
    Need::Bird,
    Need::Frr,
    Need::Etcd,
    Need::Nftables,
];

/// Everything that the proof of the overlays needs.
pub const OVERLAY: &[Need] = &[
    Need::Root,
    Need::Iproute2,
    Need::Etcd,
    Need::Nftables,
    Need::Tcpdump,
    Need::Bird,
];

/// Everything that a Calico in a lab needs, beside its own programs.
pub const CALICO: &[Need] = &[Need::Root, Need::Iproute2, Need::Etcd, Need::Nftables];

/// Everything that a Kubernetes in a lab needs, beside its own programs.
pub const KUBERNETES: &[Need] = &[
    Need::Root,
    Need::Iproute2,
    Need::Bird,
    Need::Etcd,
    Need::Nftables,
    Need::Containerd,
    Need::Machines,
    Need::Loopback,
    Need::Openssl,
];

/// Whether a test must be skipped for want of something; says so on standard error.
///
/// # Panics
/// When something is missing and `CALIDRIS_NO_SKIP=1` is set.
#[must_use]
#[expect(
    clippy::panic,
    reason = "where nothing may be skipped, what is missing fails the test"
)]
pub fn must_skip(needs: &[Need]) -> bool {
    let Some(missing) = needs.iter().find_map(|need| need.missing()) else {
        return false;
    };
    let test = std::thread::current().name().unwrap_or("test").to_owned();
    if std::env::var_os("CALIDRIS_NO_SKIP").is_some_and(|value| value == "1") {
        panic!("{test}: needs {missing}, and CALIDRIS_NO_SKIP=1 forbids to skip it");
    }
    // Straight to the file: the test harness keeps what eprintln prints of a test that passes.
    let _ = std::io::Write::write_all(
        &mut std::io::stderr(),
        format!("SKIPPED: {test}: needs {missing}\n").as_bytes(),
    );
    true
}

/// Skips the test it stands in (by returning `Ok(())`) when something that it needs is missing.
#[macro_export]
macro_rules! require {
    ($needs:expr) => {
        if $crate::require::must_skip($needs) {
            return Ok(());
        }
    };
}

fn is_installed(program: &str) -> bool {
    if program.contains('/') {
        return Path::new(program).exists();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let sbin = ["/usr/sbin", "/sbin"].map(Into::into);
    std::env::split_paths(&path)
        .chain(sbin)
        .any(|folder| folder.join(program).exists())
}
