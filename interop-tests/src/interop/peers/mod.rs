//! The daemons as peers: a module for each, which turns a [`Setup`] into its configuration and reads what it says.

mod bird;
mod exabgp;
mod frr;
mod gobgp;
mod mrt;
mod openbgpd;

use std::fmt;
use std::process::Command;

use anyhow::{Context, bail};

use super::peer::Peer;
use super::setup::Setup;
use crate::daemon::seat::{Installation, Seat};
use crate::lab::Lab;

/// A kind of daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Kind {
    /// BIRD.
    Bird,
    /// FRRouting.
    Frr,
    /// GoBGP.
    Gobgp,
    /// OpenBGPD.
    Openbgpd,
    /// ExaBGP.
    Exabgp,
}

impl Kind {
    /// All of them, in the order of the table.
    pub const ALL: [Self; 5] = [Self::Bird, Self::Frr, Self::Gobgp, Self::Openbgpd, Self::Exabgp];

    /// The programs that must be there.
    #[must_use]
    pub fn programs(self) -> &'static [&'static str] {
        match self {
            Self::Bird => &["/usr/sbin/bird", "/usr/sbin/birdc"],
            Self::Frr => &["/usr/lib/frr/zebra", "/usr/lib/frr/bgpd", "/usr/bin/vtysh"],
            Self::Gobgp => &["/usr/bin/gobgpd", "/usr/bin/gobgp"],
            Self::Openbgpd => &["/usr/sbin/bgpd", "/usr/sbin/bgpctl"],
            Self::Exabgp => &["/usr/sbin/exabgp"],
        }
    }

    /// What the installed daemon says of its version.
    ///
    /// # Errors
    /// When it does not run.
    pub fn version(self, installation: &Installation) -> anyhow::Result<String> {
        let (program, options): (_, &[&str]) = match self {
            Self::Bird => ("/usr/sbin/bird", &["--version"]),
            Self::Frr => ("/usr/lib/frr/bgpd", &["--version"]),
            Self::Gobgp => ("/usr/bin/gobgpd", &["--version"]),
            Self::Openbgpd => ("/usr/sbin/bgpd", &["-V"]),
            // Since version 5 it is a command.
            Self::Exabgp => ("/usr/sbin/exabgp", &["--version", "version"]),
        };
        let mut said = String::new();
        for option in options {
            let mut command: Command = installation.command(program);
            let output = command
                .arg(option)
                .output()
                .with_context(|| format!("run {program}"))?;
            // BIRD and OpenBGPD say it on standard error.
            let text = [output.stdout, output.stderr].concat();
            said = String::from_utf8_lossy(&text).into_owned();
            let mut words = said.split_ascii_whitespace();
            if let Some(number) = words.find(|word| word.starts_with(|c: char| c.is_ascii_digit())) {
                return Ok(number.to_owned());
            }
        }
        bail!("{program} {options:?}: no version in {said:?}")
    }

    /// The first number of its version.
    ///
    /// # Errors
    /// As for [`Kind::version`].
    pub fn major(self, installation: &Installation) -> anyhow::Result<u32> {
        let version = self.version(installation)?;
        let major = version.split('.').next().and_then(|major| major.parse().ok());
        major.with_context(|| format!("{self} {version}: expected numbers with dots between"))
    }

    /// Starts the daemon; returns when it answers.
    ///
    /// # Errors
    /// When it does not start, or cannot do what the setup asks for ([`super::peer::PeerCannot`]).
    pub fn start(self, lab: &Lab, seat: Seat, setup: Setup) -> anyhow::Result<Box<dyn Peer>> {
        Ok(match self {
            Self::Bird => Box::new(bird::Bird::start(lab, seat, setup)?),
            Self::Frr => Box::new(frr::Frr::start(lab, seat, setup)?),
            Self::Gobgp => Box::new(gobgp::Gobgp::start(lab, seat, setup)?),
            Self::Openbgpd => Box::new(openbgpd::Openbgpd::start(lab, seat, setup)?),
            Self::Exabgp => Box::new(exabgp::Exabgp::start(lab, seat, setup)?),
        })
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bird => "BIRD",
            Self::Frr => "FRR",
            Self::Gobgp => "GoBGP",
            Self::Openbgpd => "OpenBGPD",
            Self::Exabgp => "ExaBGP",
        })
    }
}
