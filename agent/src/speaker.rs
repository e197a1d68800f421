//! `calidris speaker`: the BGP speaker alone, without agent, kernel or etcd: a route reflector, or a peer for tests.
//!
//! SIGHUP, or `calidris bgp reload`, reads the configuration again and applies it; a configuration that is wrong changes
//! nothing. Sessions are reset only where the identity of a peer changed. SIGTERM ends without NOTIFICATION, so that peers
//! with graceful restart keep our routes for our successor (RFC 4724 §4); SIGINT says goodbye (RFC 9003).

use std::path::{Path, PathBuf};
use std::time::Duration;

use calidris_bgp::SpeakerConfig;
use calidris_bgp::config::Impact;
use calidris_bgp_driver::{BgpHandle, DriverConfig, Shutdown};
use tokio::net::UnixListener;
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tracing::{error, info, warn};

use crate::clock;
use crate::config::SpeakerFile;
use crate::control::{self, Controlled, ReloadMode, ReloadRequest};
use crate::listen::listen;

/// Reload requests that may wait.
const RELOADS: usize = 4;
/// What peers are told when an operator ends the speaker (RFC 9003).
const FAREWELL: &str = "the operator has stopped this speaker";

/// Runs the speaker of `config`, which came from `file`, until SIGTERM or SIGINT.
///
/// # Errors
/// What kept it from starting.
pub fn run(config: SpeakerFile, file: &Path) -> anyhow::Result<()> {
    let runtime = Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    let result = runtime.block_on(run_on(config, file));
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

async fn run_on(config: SpeakerFile, file: &Path) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let socket = config.control.socket.as_path().to_owned();
    // Below /run: what is left there is from a predecessor since the last boot.
    let restarting = socket.exists();
    let listener = UnixListener::from_std(listen(&socket)?)?;
    let in_force = config.speaker()?;
    let speaker = calidris_bgp_driver::start(DriverConfig {
        listen: config.bgp.listen(),
        speaker: in_force.clone(),
        restarting,
        seed: clock::seed(),
    })
    .await?;
    speaker.originate(config.bgp.originations()).await?;
    info!(
        local_as = config.bgp.as_number,
        peers = config.bgp.peers.len(),
        routes = config.bgp.routes.len(),
        restarting,
        version = env!("CARGO_PKG_VERSION"),
        "speaking BGP"
    );
    let (reload, mut reloads) = mpsc::channel(RELOADS);
    tokio::spawn(control::serve(
        listener,
        Controlled {
            speaker: Some(speaker.clone()),
            reload: Some(reload),
        },
    ));
    let mut running = Running {
        config,
        in_force,
        file: file.to_owned(),
        speaker,
    };
    let how = loop {
        tokio::select! {
            _ = terminate.recv() => {
                info!(signal = "SIGTERM", "ending; peers may keep our routes");
                break Shutdown::ForRestart;
            }
            _ = interrupt.recv() => {
                info!(signal = "SIGINT", "ending; peers are told to forget our routes");
                break Shutdown::Cease { text: FAREWELL.to_owned() };
            }
            _ = hang_up.recv() => running.reload_for_signal().await,
            Some(ReloadRequest { mode, answer }) = reloads.recv() => {
                // Whoever asked may have gone away.
                let _gone = answer.send(running.reload(mode).await);
            }
        }
    };
    running.speaker.shutdown(how).await?;
    info!("ended");
    Ok(())
}

/// A speaker that runs, and what it runs with.
struct Running {
    config: SpeakerFile,
    in_force: SpeakerConfig,
    file: PathBuf,
    speaker: BgpHandle,
}

impl Running {
    async fn reload_for_signal(&mut self) {
        match self.reload(ReloadMode::Apply).await {
            Ok(lines) => lines.iter().for_each(|line| info!("configuration: {line}")),
            Err(why) => error!("the configuration is not applied: {why}"),
        }
    }

    /// Reads the file again; returns what changes, a line each.
    async fn reload(&mut self, mode: ReloadMode) -> Result<Vec<String>, String> {
        let new = SpeakerFile::load(&self.file).map_err(|error| error.to_string())?;
        let wanted = new.speaker().map_err(|error| error.to_string())?;
        let impact = match mode {
            ReloadMode::Plan => {
                wanted.check().map_err(|error| error.to_string())?;
                self.in_force.impact_of(&wanted)
            }
            ReloadMode::Apply => self
                .speaker
                .configure(wanted.clone())
                .await
                .map_err(|error| error.to_string())?,
        };
        let lines = self.describe(&new, &impact);
        if mode == ReloadMode::Apply {
            self.speaker
                .originate(new.bgp.originations())
                .await
                .map_err(|error| error.to_string())?;
            if self.needs_restart(&new) {
                warn!("bgp.listen_port, bgp.listen_addresses, control and log change at the next start only");
            }
            self.config = new;
            self.in_force = wanted;
        }
        Ok(lines)
    }

    fn needs_restart(&self, new: &SpeakerFile) -> bool {
        let at_start =
            |config: &SpeakerFile| (config.bgp.listen(), config.control.clone(), config.log.clone());
        at_start(&self.config) != at_start(new)
    }

    fn describe(&self, new: &SpeakerFile, impact: &Impact) -> Vec<String> {
        let sets = [
            ("peer added", &impact.added),
            ("peer removed, its session ends", &impact.removed),
            ("peer changed, its session is reset", &impact.reset),
            ("peer changed, its session stays", &impact.applied),
            (
                "part of the change waits for the next session of peer",
                &impact.next_session,
            ),
        ];
        let mut lines: Vec<String> = sets
            .iter()
            .flat_map(|(what, names)| names.iter().map(move |name| format!("{what}: {name}")))
            .collect();
        let (before, after) = (self.config.bgp.originations(), new.bgp.originations());
        let withdrawn = before.keys().filter(|prefix| !after.contains_key(prefix));
        lines.extend(withdrawn.map(|prefix| format!("route withdrawn: {prefix}")));
        let announced = after
            .iter()
            .filter(|(prefix, route)| before.get(prefix) != Some(*route));
        lines.extend(announced.map(|(prefix, _)| format!("route announced: {prefix}")));
        if self.needs_restart(new) {
            lines.push(
                "needs a restart: bgp.listen_port, bgp.listen_addresses, control and log are read at the start only"
                    .to_owned(),
            );
        }
        if lines.is_empty() {
            lines.push("nothing changes".to_owned());
        }
        lines
    }
}
