//! What the speaker is to do, while it runs: the configuration file, read again when somebody asks, and the sessions that the datastore asks for. What
//! of it changed is told, or applied, without a restart.
//!
//! A configuration that is wrong changes nothing. What is read at the start only (sockets, logging, and all of an agent's configuration that is not
//! BGP) is named, and waits for a restart.

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use calidris_bgp::config::{Impact, SessionImpact, SpeakerConfig};
use calidris_bgp::family::Prefix;
use calidris_bgp::route::Origination;
use calidris_bgp_driver::BgpHandle;
use calidris_ipam::keys::is_key_part;
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::MissedTickBehavior;
use tracing::{error, info, warn};

use crate::config::{Bgp, Config, ConfigError, SpeakerFile, read_secret};
use crate::desired::peering::{self, Local, Sessions};
use crate::inbox::Message;
use crate::model::Input;
use crate::model::peering::{Peering, PeeringWorkloads, SecretKey, WorkloadPeers};

/// How long the speaker waits for its peers while it is not known who they are: until then nothing that a predecessor learned is stale.
pub const UNTIL_PEERS_ARE_KNOWN: Duration = Duration::from_secs(365 * 86_400);

/// How often passwords are looked at. Kubernetes takes a minute or so to renew the files of a Secret.
const SECRETS_LOOK: Duration = Duration::from_secs(1);

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
    routes: watch::Sender<Option<BTreeMap<Prefix, Origination>>>,
    datastore: Option<FromDatastore>,
    /// What the passwords in force are known by.
    secrets: u64,
}

/// Sessions that the datastore asks for, besides those of the file.
#[derive(Debug)]
pub struct FromDatastore {
    /// The resources; `None` until they were read.
    pub peering: watch::Receiver<Option<Peering>>,
    /// Endpoints of this node, while a BGPPeer is about workloads.
    pub workloads: watch::Receiver<PeeringWorkloads>,
    /// Where it is told which workloads are peers.
    pub workload_peers: watch::Sender<WorkloadPeers>,
    /// This node's name there.
    pub node: String,
    /// The folder of the files that stand for Secrets.
    pub secrets: PathBuf,
    /// The node's thread, which makes the routes to peers behind gateways, and the addresses that workloads connect to.
    pub inbox: mpsc::Sender<Message>,
}

/// A request to read the configuration again.
#[derive(Debug)]
pub struct ReloadRequest {
    /// Whether to apply it, too.
    pub mode: ReloadMode,
    /// Where to tell what changed, or what is wrong.
    pub answer: oneshot::Sender<Result<ReloadReport, String>>,
}

/// What to do with a configuration that was read again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReloadMode {
    /// Only tell what it would change.
    Plan,
    /// Apply it.
    Apply,
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
    /// What the datastore asks for and is not done.
    #[serde(default)]
    pub problems: Vec<String>,
}

impl<C: Reloadable + Clone> Reloader<C> {
    /// Of `config`, which came from `file` and is in force; a BGP Identifier that the file does not say stays as it was found. Configured routes go
    /// to `routes`.
    pub fn new(
        config: C,
        (file, found_router_id): (&Path, Option<Ipv4Addr>),
        speaker: BgpHandle,
        routes: watch::Sender<Option<BTreeMap<Prefix, Origination>>>,
    ) -> Self {
        Self {
            config,
            file: file.to_owned(),
            found_router_id,
            speaker,
            routes,
            datastore: None,
            secrets: 0,
        }
    }

    /// The same, with the sessions that the datastore asks for.
    #[must_use]
    pub fn with(self, datastore: Option<FromDatastore>) -> Self {
        Self { datastore, ..self }
    }

    /// Reads the configuration again whenever somebody asks for it or SIGHUP comes, and follows the datastore and the passwords, until nobody can ask
    /// any more.
    pub async fn serve(mut self, mut requests: mpsc::Receiver<ReloadRequest>) {
        let mut hang_up = match signal(SignalKind::hangup()) {
            Ok(hang_up) => hang_up,
            Err(error) => {
                return error!(%error, "cannot hear SIGHUP; the configuration is read at the start only");
            }
        };
        let mut look = tokio::time::interval(SECRETS_LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.secrets = self.fingerprint();
        loop {
            tokio::select! {
                _ = look.tick() => self.follow_secrets().await,
                _ = hang_up.recv() => self.reload_for_signal().await,
                () = changed(&mut self.datastore) => self.follow_datastore().await,
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
        tell(self.reload(ReloadMode::Apply).await);
    }

    /// Applies what the datastore asks for now, and tells the log.
    async fn follow_datastore(&mut self) {
        tell(self.follow(self.config.clone(), ReloadMode::Apply).await);
    }

    /// Applies passwords that are others now, as when Kubernetes renews the files of a Secret.
    async fn follow_secrets(&mut self) {
        let found = self.fingerprint();
        if std::mem::replace(&mut self.secrets, found) != found {
            info!("passwords have changed");
            self.follow_datastore().await;
        }
    }

    /// A number that is another one when a password is. Files are read: there are few, and they are small.
    fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        if let Some((bgp, _)) = self.config.bgp() {
            bgp.passwords().for_each(|password| password.hash(&mut hasher));
        }
        if let Some(datastore) = &self.datastore {
            datastore.passwords().hash(&mut hasher);
        }
        hasher.finish()
    }

    /// Reads the file again, and tells or applies what it changes.
    ///
    /// # Errors
    /// What is wrong with it; nothing has changed then.
    pub async fn reload(&mut self, mode: ReloadMode) -> Result<ReloadReport, String> {
        let new = C::load(&self.file).map_err(|error| error.to_string())?;
        self.follow(new, mode).await
    }

    async fn follow(&mut self, new: C, mode: ReloadMode) -> Result<ReloadReport, String> {
        let Some((bgp, router_id)) = new.bgp() else {
            return Err("there is no [bgp] any more; to end the BGP speaker needs a restart".to_owned());
        };
        let Some(router_id) = router_id.or(self.found_router_id) else {
            return Err("bgp.router_id is missing".to_owned());
        };
        let mut wanted = bgp.speaker(router_id);
        let sessions = self.datastore.as_ref().map(|datastore| datastore.sessions(bgp));
        let is_known = sessions.as_ref().is_none_or(Option::is_some);
        let mut sessions = sessions.flatten().unwrap_or_default();
        if !is_known {
            wanted.sync_timeout = UNTIL_PEERS_ARE_KNOWN;
        }
        add(&mut sessions, &mut wanted);
        let before = self.routes.borrow().clone().unwrap_or_default();
        let after = bgp.originations();
        let withdrawn = before.keys().filter(|prefix| !after.contains_key(prefix));
        let announced = after
            .iter()
            .filter(|(prefix, route)| before.get(prefix) != Some(*route));
        let impact = match mode {
            ReloadMode::Plan => self.speaker.plan(wanted).await,
            ReloadMode::Apply => self.speaker.configure(wanted).await,
        };
        let needs_restart = self.config.needs_restart(&new);
        let report = ReloadReport {
            applied: mode == ReloadMode::Apply,
            bgp: impact.map_err(|error| error.to_string())?,
            withdrawn: withdrawn.copied().collect(),
            announced: announced.map(|(prefix, _)| *prefix).collect(),
            missing_secrets: bgp.missing_secrets(),
            needs_restart: needs_restart.iter().map(ToString::to_string).collect(),
            problems: std::mem::take(&mut sessions.problems).into_iter().collect(),
        };
        if mode == ReloadMode::Apply {
            self.routes.send_replace(is_known.then_some(after));
            if let Some(datastore) = &self.datastore {
                datastore.reach(sessions).await;
            }
            warn_of(&report);
            self.config = new;
            self.secrets = self.fingerprint();
        }
        Ok(report)
    }
}

impl FromDatastore {
    /// What the resources ask of this node, whose speaker is `bgp`; `None` while they are not known.
    fn sessions(&self, bgp: &Bgp) -> Option<Sessions> {
        let local = Local {
            node: &self.node,
            as_number: bgp.as_number,
            listen_port: bgp.listen_port,
        };
        let (peering, workloads) = (self.peering.borrow(), self.workloads.borrow());
        Some(peering::sessions(
            peering.as_ref()?,
            &workloads,
            local,
            |secret| self.password(secret),
        ))
    }

    /// The passwords that the resources name.
    fn passwords(&self) -> Vec<Result<String, String>> {
        let peering = self.peering.borrow();
        let secrets = peering.as_ref().map_or_else(Vec::new, Peering::secrets);
        secrets.into_iter().map(|secret| self.password(secret)).collect()
    }

    /// The first line of the file that stands for a key of a Secret.
    fn password(&self, secret: &SecretKey) -> Result<String, String> {
        if ![&secret.name, &secret.key]
            .iter()
            .all(|part| is_key_part(part) && !part.starts_with('.'))
        {
            return Err(format!(
                "Secret {:?} with key {:?} cannot be a file",
                secret.name, secret.key
            ));
        }
        let file = self.secrets.join(&secret.name).join(&secret.key);
        read_secret(&file).map_err(|error| error.to_string())
    }

    /// Has made what the sessions need below them.
    async fn reach(&self, sessions: Sessions) {
        let workloads = sessions.workloads;
        self.workload_peers
            .send_if_modified(|before| std::mem::replace(before, workloads.clone()) != workloads);
        for input in [
            Input::PeerGateways(sessions.gateways),
            Input::WorkloadPeering(sessions.workload_addresses),
        ] {
            // Without the node's thread there is nobody to make anything, and nothing left to do.
            let _ending = self.inbox.send(Message::Input(input)).await;
        }
    }
}

/// Adds the sessions of the datastore to those of the file, which come first where both name an address or a name. One that does not go together with
/// the rest is left out, and told among the problems.
fn add(sessions: &mut Sessions, wanted: &mut SpeakerConfig) {
    for peer in &sessions.peers {
        let mut configured = wanted.peers.iter();
        if configured.any(|other| other.address == peer.address || other.name == peer.name) {
            continue;
        }
        wanted.peers.push(peer.clone());
        if let Err(error) = wanted.check() {
            wanted.peers.pop();
            sessions.problems.insert(error.to_string());
        }
    }
    wanted.cluster_id = wanted.cluster_id.or(sessions.cluster_id);
}

/// Returns when the datastore asks for something else.
async fn changed(datastore: &mut Option<FromDatastore>) {
    if let Some(datastore) = datastore {
        let changed = tokio::select! {
            changed = datastore.peering.changed() => changed,
            changed = datastore.workloads.changed() => changed,
        };
        if changed.is_ok() {
            return;
        }
    }
    std::future::pending::<()>().await;
}

fn tell(result: Result<ReloadReport, String>) {
    match result {
        Ok(report) => report
            .to_string()
            .lines()
            .for_each(|line| info!("configuration: {line}")),
        Err(why) => error!("the configuration is not applied: {why}"),
    }
}

fn warn_of(report: &ReloadReport) {
    for why in &report.missing_secrets {
        warn!("{why}; no session without it");
    }
    for problem in &report.problems {
        warn!("the datastore asks for what is not done: {problem}");
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
        for problem in &self.problems {
            writeln!(f, "asked for by the datastore and not done: {problem}")?;
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

#[cfg(test)]
mod tests {
    use calidris_bgp::config::PeerConfig;

    use super::*;

    #[test]
    fn a_session_that_does_not_fit_is_left_out_alone() {
        let peer = |name: &str, host: u8| PeerConfig::new(name, [192, 0, 2, host].into(), 65001);
        let mut wanted = SpeakerConfig::new(64512, Ipv4Addr::new(192, 0, 2, 9));
        wanted.peers.push(peer("of-file", 1));
        let mut long = peer("long", 3);
        long.transport.md5_password = Some("x".repeat(81));
        let mut sessions = Sessions {
            peers: vec![peer("same-address", 1), peer("of-file", 2), long, peer("fits", 4)],
            cluster_id: Some(Ipv4Addr::new(224, 0, 0, 1)),
            ..Sessions::default()
        };
        add(&mut sessions, &mut wanted);
        let names: Vec<&str> = wanted.peers.iter().map(|peer| peer.name.as_str()).collect();
        assert_eq!(names, ["of-file", "fits"]);
        assert_eq!(wanted.cluster_id, sessions.cluster_id);
        let problems: Vec<&String> = sessions.problems.iter().collect();
        assert!(
            matches!(problems.as_slice(), [problem] if problem.contains("long")),
            "{problems:?}"
        );
    }
}
