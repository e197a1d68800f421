//! The speakers that are measured: started bare, with one configuration of the same meaning for each.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use super::super::usage;
use super::traffic::{FEEDER, FEEDER_AS, HOLD_TIME, SUBJECT, SUBJECT_AS, Sinks, sink_address, sink_as};
use crate::lab::Lab;
use crate::netns::Namespace;
use crate::process::Process;

/// Who can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// `calidris speaker`
    Calidris,
    /// BIRD 2, one table, no kernel protocol.
    Bird,
    /// FRR's bgpd, without zebra.
    Frr,
}

impl Kind {
    /// The name in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Calidris => "calidris",
            Self::Bird => "bird2",
            Self::Frr => "frr",
        }
    }

    pub(super) fn version(self, calidris: &Path) -> anyhow::Result<String> {
        let mut command = match self {
            Self::Calidris => Command::new(calidris),
            Self::Bird => Command::new("bird"),
            Self::Frr => Command::new(BGPD),
        };
        let output = command
            .arg("--version")
            .output()
            .with_context(|| format!("run {}", self.name()))?;
        // BIRD says it on standard error.
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        let number = text
            .split_ascii_whitespace()
            .find(|word| word.starts_with(|c: char| c.is_ascii_digit()));
        number
            .map(str::to_owned)
            .with_context(|| format!("{}: no version in {text:?}", self.name()))
    }
}

const BGPD: &str = "/usr/lib/frr/bgpd";
/// A speaker that runs.
#[derive(Debug)]
pub(super) struct Subject {
    process: Process,
}

impl Subject {
    /// Starts it with a feeder and so many sinks of a kind configured.
    pub(super) fn start(
        lab: &Lab,
        kind: Kind,
        calidris: &Path,
        namespace: &Namespace,
        (sinks, are): (usize, Sinks),
    ) -> anyhow::Result<Self> {
        let folder = lab.folder("subject")?;
        let mut command = match kind {
            Kind::Calidris => {
                let file = write(&folder, "speaker.toml", &calidris_config(&folder, sinks, are))?;
                let mut command = Command::new(calidris);
                command.args(["speaker", "--config"]).arg(file);
                command
            }
            Kind::Bird => {
                let file = write(&folder, "bird.conf", &bird_config(sinks, are))?;
                let mut command = Command::new("bird");
                command.arg("-f").arg("-c").arg(file);
                command
                    .arg("-s")
                    .arg(folder.join("bird.ctl"))
                    .arg("-P")
                    .arg(folder.join("bird.pid"));
                command
            }
            Kind::Frr => {
                let file = write(&folder, "bgpd.conf", &frr_config(sinks, are))?;
                let mut command = Command::new(BGPD);
                command.args([
                    // As root, without the group that FRR's own user is in.
                    "-S",
                    "-Z",
                    "-P",
                    "0",
                    "--log",
                    "stdout",
                    "--log-level",
                    "warning",
                ]);
                command
                    .arg("--vty_socket")
                    .arg(&folder)
                    .arg("-i")
                    .arg(folder.join("bgpd.pid"));
                command.arg("-f").arg(file);
                command
            }
        };
        let process = lab.start("subject", kind.name(), namespace, &mut command)?;
        Ok(Self { process })
    }

    /// Processor time used so far, of all threads, in user and system mode.
    pub(super) fn cpu_seconds(&mut self) -> anyhow::Result<f64> {
        self.process.check_alive()?;
        usage::cpu_seconds(self.process.id().pid)
    }

    /// The most memory it ever had resident.
    pub(super) fn peak_mib(&self) -> anyhow::Result<f64> {
        usage::peak_mib(self.process.id().pid)
    }

    pub(super) fn kill(self) -> anyhow::Result<()> {
        self.process.kill()
    }
}

fn write(folder: &Path, name: &str, text: &str) -> anyhow::Result<PathBuf> {
    let file = folder.join(name);
    std::fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
    Ok(file)
}

/// Address and AS of every peer.
fn peers(sinks: usize, are: Sinks) -> impl Iterator<Item = (std::net::Ipv4Addr, u32)> {
    std::iter::once((FEEDER, FEEDER_AS))
        .chain((0..sinks).map(move |number| (sink_address(number), sink_as(number, are))))
}

fn calidris_config(folder: &Path, sinks: usize, are: Sinks) -> String {
    let socket = folder.join("control.sock");
    let mut text = format!(
        "[bgp]\nas_number = {SUBJECT_AS}\nrouter_id = \"{SUBJECT}\"\nlisten_addresses = [\"{SUBJECT}\"]\nsync_timeout = \"1s\"\n\
         [control]\nsocket = \"{}\"\n[log]\nlevel = \"warn\"\n",
        socket.display()
    );
    for (address, asn) in peers(sinks, are) {
        let is_client = asn == SUBJECT_AS;
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "[[bgp.peers]]\nname = \"{address}\"\naddress = \"{address}\"\nas_number = {asn}\npassive = true\n\
             hold_time = \"{HOLD_TIME}s\"\nfamilies = [\"ipv4\"]\nimport = \"accept\"\nexport = \"accept\"\nroute_reflector_client = {is_client}\n"
        );
    }
    text
}

fn bird_config(sinks: usize, are: Sinks) -> String {
    let mut text = format!(
        "log stderr {{ warning, error, fatal, bug }};\nrouter id {SUBJECT};\nprotocol device {{ }}\n"
    );
    for (number, (address, asn)) in peers(sinks, are).enumerate() {
        let client = if asn == SUBJECT_AS { "rr client;" } else { "" };
        let _ = writeln!(
            text,
            "protocol bgp p{number} {{ local {SUBJECT} as {SUBJECT_AS}; neighbor {address} as {asn}; passive; {client} \
             hold time {HOLD_TIME}; ipv4 {{ import all; export all; }}; }}"
        );
    }
    text
}

fn frr_config(sinks: usize, are: Sinks) -> String {
    let mut text = format!(
        "router bgp {SUBJECT_AS}\n bgp router-id {SUBJECT}\n no bgp ebgp-requires-policy\n no bgp network import-check\n \
         timers bgp {} {HOLD_TIME}\n",
        HOLD_TIME / 3
    );
    for (address, asn) in peers(sinks, are) {
        let client = match are {
            Sinks::Clients if asn == SUBJECT_AS => format!(" neighbor {address} route-reflector-client\n"),
            Sinks::Clients | Sinks::External => String::new(),
        };
        let _ = write!(
            text,
            " neighbor {address} remote-as {asn}\n neighbor {address} passive\n neighbor {address} advertisement-interval 0\n{client}"
        );
    }
    text
}
