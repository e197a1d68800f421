//! Reading the configuration again while running: what of `[bgp]` changed is told, or applied, without a restart.
//!
//! A configuration that is wrong changes nothing. What is read at the start only (sockets, logging, and all of an agent's configuration that is not
//! BGP) is named, and waits for a restart.

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use calidris_bgp::config::{Impact, SessionImpact};
use calidris_bgp::family::Prefix;
use calidris_bgp::route::Origination;
use calidris_bgp_driver::BgpHandle;
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tracing::{error, info, warn};

use crate::config::{Bgp, Config, ConfigError, SpeakerFile};
use crate::control::{ReloadMode, ReloadRequest};

/// A configuration that can be read again.
pub trait Reloadable: Sized {
    /// Reads and checks the file.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    fn load(path: &Path) -> Result<Self, ConfigError>;

    /// `[bgp]`, and the BGP Identifier if the file says it.
    fn bgp(&self) -> Option<(&Bgp, Option<Ipv4Addr>)>;

    /// Sections and keys that differ from `new` and are read at the start only.
    fn needs_restart(&self, new: &Self) -> Vec<&'static str>;
}

/// The configuration in force, and what follows it.
#[derive(Debug)]
pub struct Reloader<C> {
    config: C,
    file: PathBuf,
    /// The BGP Identifier where the file does not say it.
    found_router_id: Option<Ipv4Addr>,
    speaker: BgpHandle,
    routes: watch::Sender<BTreeMap<Prefix, Origination>>,
}

/// What a configuration changes, or has changed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadReport {
    /// Whether it is in force now; else this is what would happen.
    pub applied: bool,
    /// Peers and the speaker.
    pub bgp: Impact,
    /// Configured prefixes that are not announced any more.
    pub withdrawn: Vec<Prefix>,
    /// Configured prefixes that are announced from now on, or otherwise than before.
    pub announced: Vec<Prefix>,
    /// Passwords that cannot be had.
    pub missing_secrets: Vec<String>,
    /// What differs and is read at the start only.
    pub needs_restart: Vec<String>,
}

impl<C: Reloadable> Reloader<C> {
    /// Of `config`, which came from `file` and is in force; a BGP Identifier that the file does not say stays as it was found. Configured routes go
    /// to `routes`.
    pub fn new(
        config: C,
        (file, found_router_id): (&Path, Option<Ipv4Addr>),
        speaker: BgpHandle,
        routes: watch::Sender<BTreeMap<Prefix, Origination>>,
    ) -> Self {
        Self {
            config,
            file: file.to_owned(),
            found_router_id,
            speaker,
            routes,
        }
    }

    /// Reads the configuration again whenever somebody asks for it or SIGHUP comes, until nobody can ask any more.
    pub async fn serve(mut self, mut requests: mpsc::Receiver<ReloadRequest>) {
        let mut hang_up = match signal(SignalKind::hangup()) {
            Ok(hang_up) => hang_up,
            Err(error) => {
                return error!(%error, "cannot hear SIGHUP; the configuration is read at the start only");
            }
        };
        loop {
            tokio::select! {
                _ = hang_up.recv() => self.reload_for_signal().await,
                request = requests.recv() => match request {
                    // Whoever asked may have gone away.
                    Some(ReloadRequest { mode, answer }) => drop(answer.send(self.reload(mode).await)),
                    None => return,
                },
            }
        }
    }

    /// Applies the file as it is now, and tells the log.
    pub async fn reload_for_signal(&mut self) {
        match self.reload(ReloadMode::Apply).await {
            Ok(report) => report
                .to_string()
                .lines()
                .for_each(|line| info!("configuration: {line}")),
            Err(why) => error!("the configuration is not applied: {why}"),
        }
    }

    /// Reads the file again, and tells or applies what it changes.
    ///
    /// # Errors
    /// What is wrong with it; nothing has changed then.
    pub async fn reload(&mut self, mode: ReloadMode) -> Result<ReloadReport, String> {
        let text = |error: &dyn fmt::Display| error.to_string();
        let new = C::load(&self.file).map_err(|error| text(&error))?;
        let Some((bgp, router_id)) = new.bgp() else {
            return Err("there is no [bgp] any more; to end the BGP speaker needs a restart".to_owned());
        };
        let Some(router_id) = router_id.or(self.found_router_id) else {
            return Err("bgp.router_id is missing".to_owned());
        };
        let wanted = bgp.speaker(router_id);
        let before = self.routes.borrow().clone();
        let after = bgp.originations();
        let withdrawn = before.keys().filter(|prefix| !after.contains_key(prefix));
        let announced = after
            .iter()
            .filter(|(prefix, route)| before.get(prefix) != Some(*route));
        let impact = match mode {
            ReloadMode::Plan => self.speaker.plan(wanted).await,
            ReloadMode::Apply => self.speaker.configure(wanted).await,
        };
        let report = ReloadReport {
            applied: mode == ReloadMode::Apply,
            bgp: impact.map_err(|error| text(&error))?,
            withdrawn: withdrawn.copied().collect(),
            announced: announced.map(|(prefix, _)| *prefix).collect(),
            missing_secrets: bgp.missing_secrets(),
            needs_restart: self
                .config
                .needs_restart(&new)
                .iter()
                .map(ToString::to_string)
                .collect(),
        };
        if mode == ReloadMode::Apply {
            self.routes.send_replace(after);
            warn_of(&report);
            self.config = new;
        }
        Ok(report)
    }
}

fn warn_of(report: &ReloadReport) {
    for why in &report.missing_secrets {
        warn!("{why}; no session without it");
    }
    if !report.needs_restart.is_empty() {
        warn!(
            keys = report.needs_restart.join(", "),
            "change at the next start only"
        );
    }
}

impl ReloadReport {
    fn is_empty(&self) -> bool {
        self.bgp.is_empty()
            && self.withdrawn.is_empty()
            && self.announced.is_empty()
            && self.needs_restart.is_empty()
    }

    /// Names of the peers whose session ends.
    pub fn sessions_lost(&self) -> Vec<&str> {
        [
            SessionImpact::Removed,
            SessionImpact::Reset,
            SessionImpact::HeldDown,
        ]
        .iter()
        .flat_map(|impact| self.bgp.with_session(*impact))
        .collect()
    }
}

impl fmt::Display for ReloadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            writeln!(f, "nothing changes")?;
        }
        for peer in &self.bgp.peers {
            writeln!(f, "{peer}")?;
        }
        for change in &self.bgp.speaker {
            writeln!(f, "speaker: {change}")?;
        }
        for prefix in &self.withdrawn {
            writeln!(f, "route withdrawn: {prefix}")?;
        }
        for prefix in &self.announced {
            writeln!(f, "route announced: {prefix}")?;
        }
        for why in &self.missing_secrets {
            writeln!(f, "no session for want of a password: {why}")?;
        }
        if !self.needs_restart.is_empty() {
            writeln!(f, "needs a restart: {}", self.needs_restart.join(", "))?;
        }
        Ok(())
    }
}

/// The names of the rows that differ.
fn names(rows: &[(&'static str, bool)]) -> Vec<&'static str> {
    let rows = rows.iter().filter(|(_, differs)| *differs);
    rows.map(|(name, _)| *name).collect()
}

impl Reloadable for SpeakerFile {
    fn load(path: &Path) -> Result<Self, ConfigError> {
        Self::load(path)
    }

    fn bgp(&self) -> Option<(&Bgp, Option<Ipv4Addr>)> {
        Some((&self.bgp, self.bgp.router_id))
    }

    fn needs_restart(&self, new: &Self) -> Vec<&'static str> {
        names(&[
            (
                "bgp.listen_port and bgp.listen_addresses",
                self.bgp.listen() != new.bgp.listen(),
            ),
            ("control", self.control != new.control),
            ("log", self.log != new.log),
        ])
    }
}

impl Reloadable for Config {
    fn load(path: &Path) -> Result<Self, ConfigError> {
        Self::load(path)
    }

    fn bgp(&self) -> Option<(&Bgp, Option<Ipv4Addr>)> {
        Some((self.bgp.as_ref()?, self.router_id()))
    }

    fn needs_restart(&self, new: &Self) -> Vec<&'static str> {
        let listen = |config: &Self| config.bgp.as_ref().map(Bgp::listen);
        let rest = |config: &Self| Self {
            bgp: None,
            ..config.clone()
        };
        names(&[
            (
                "bgp.listen_port and bgp.listen_addresses",
                listen(self) != listen(new),
            ),
            ("everything outside of [bgp]", rest(self) != rest(new)),
        ])
    }
}
