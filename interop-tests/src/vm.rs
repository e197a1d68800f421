//! The overlays of kernels that have what this machine's may lack (IPIP): a virtual machine without acceleration boots
//! Debian's cloud kernel with an initramfs made of this machine's programs, and runs the same proof inside.
//!
//! Kernel and modules come from the unpacked package in `target/vm/root` (`interop-tests/setup-debian.sh` puts it there; nothing is
//! installed). The machine has no network and no disk; what it says goes to `target/vm/console.log`. It ends by itself, and is killed
//! at a deadline.

mod cpio;
mod image;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};

use crate::binaries::Binaries;
use crate::eventually::{Hopeless, eventually};
use crate::overlay::Tour;

/// How long the machine may take from power on to its end. It takes a minute or two by itself.
const WITHIN: Duration = Duration::from_secs(480);
/// What the machine prints last, before the exit status of the proof.
const RESULT: &str = "calidris-vm-result";
/// Modules that the proof needs, as far as the kernel has them as modules.
const MODULES: &[&str] = &[
    "veth",
    "bridge",
    "vxlan",
    "ipip",
    "nf_tables",
    "nft_chain_nat",
    "nft_masq",
    "nft_ct",
    "nft_nat",
    "nft_reject_inet",
    "nft_fib_inet",
    "nft_redir",
    "nf_conntrack",
    "nf_nat",
];
/// Programs of this machine that the proof runs.
const PROGRAMS: &[&str] = &[
    "ip",
    "nft",
    "etcd",
    "etcdctl",
    "ping",
    "tcpdump",
    "bird",
    "birdc",
    "conntrack",
    "date",
];

/// Runs the proof in a virtual machine. Returns what the machine said.
///
/// # Errors
/// When the machine cannot be made or does not end, or the proof does not hold; with the end of what the machine said.
pub fn prove(tour: &Tour) -> anyhow::Result<String> {
    let folder = folder();
    let binaries = Binaries::find()?;
    let initramfs = folder.join(format!("initramfs-{}.cpio", std::process::id()));
    image::write(&initramfs, &folder.join("root"), &binaries, &init(tour))?;
    let log = folder.join("console.log");
    let result = boot(&kernel(&folder)?, &initramfs, &log);
    std::fs::remove_file(&initramfs)?;
    let said = String::from_utf8_lossy(&std::fs::read(&log)?).into_owned();
    let tail: Vec<&str> = said.lines().rev().take(60).collect();
    let tail = || tail.iter().rev().copied().collect::<Vec<_>>().join("\n");
    result.with_context(|| format!("the virtual machine said:\n{}", tail()))?;
    ensure!(
        said.contains(&format!("{RESULT} 0")),
        "the proof does not hold in the virtual machine ({}); it said:\n{}",
        log.display(),
        tail()
    );
    Ok(said)
}

/// Where the kernel's package is unpacked, if it is.
#[must_use]
pub fn kernel_folder() -> Option<PathBuf> {
    let folder = folder();
    kernel(&folder).ok().map(|_| folder)
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/vm")
}

fn kernel(folder: &Path) -> anyhow::Result<PathBuf> {
    let boot = folder.join("root/boot");
    let missing = || {
        format!(
            "no kernel in {}; interop-tests/setup-debian.sh unpacks one",
            boot.display()
        )
    };
    for entry in std::fs::read_dir(&boot).with_context(missing)? {
        let path = entry?.path();
        if path
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-"))
        {
            return Ok(path);
        }
    }
    bail!(missing())
}

/// The machine's first program.
fn init(tour: &Tour) -> String {
    let options = tour.options().join(" ");
    format!(
        "#!/bin/busybox sh\n\
         export PATH=/bin HOME=/tmp\n\
         busybox mkdir -p /proc /sys /dev /tmp /run\n\
         busybox mount -t proc proc /proc\n\
         busybox mount -t sysfs sysfs /sys\n\
         busybox mount -t devtmpfs devtmpfs /dev\n\
         busybox mount -t tmpfs tmpfs /tmp\n\
         busybox mount -t tmpfs tmpfs /run\n\
         busybox mount -t cgroup2 cgroup /sys/fs/cgroup\n\
         for module in $(busybox cat /modules/order); do busybox insmod /modules/$module; done\n\
         ip link set lo up\n\
         /bin/calidris-lab overlay --pace-millis 40 {options}\n\
         echo {RESULT} $?\n\
         busybox poweroff -f\n"
    )
}

/// Boots, and waits for the end.
fn boot(kernel: &Path, initramfs: &Path, log: &Path) -> anyhow::Result<()> {
    let output = File::create(log).with_context(|| format!("create {}", log.display()))?;
    let mut machine = Command::new("qemu-system-x86_64")
        .args([
            "-accel",
            "tcg,thread=multi",
            "-cpu",
            "max",
            "-smp",
            "2",
            "-m",
            "2048",
        ])
        .args([
            "-nodefaults",
            "-display",
            "none",
            "-no-reboot",
            "-serial",
            "stdio",
        ])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(initramfs)
        .args(["-append", "console=ttyS0 panic=-1 quiet rdinit=/init"])
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .spawn()
        .context("start qemu-system-x86_64 (Debian's qemu-system-x86)")?;
    let ended = eventually("the virtual machine ends", WITHIN, || {
        match machine.try_wait()? {
            Some(status) if status.success() => Ok(()),
            Some(status) => Err(Hopeless(format!("qemu ended with {status}")).into()),
            None => bail!("it runs"),
        }
    });
    if ended.is_err() {
        machine.kill()?;
        machine.wait()?;
    }
    ended
}
