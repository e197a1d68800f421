//! `calidris speaker`: the BGP speaker alone, without agent or etcd: a route reflector, or a peer for tests. Of the kernel it knows the names
//! of the links, for policies that ask; its routes it leaves alone.
//!
//! SIGHUP, or `calidris bgp reload`, reads the configuration again and applies it; a configuration that is wrong changes
//! nothing. Sessions are reset only where the identity of a peer changed. SIGTERM ends without NOTIFICATION, so that peers
//! with graceful restart keep our routes for our successor (RFC 4724 §4); SIGINT says goodbye (RFC 9003).

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use calidris_bgp::family::Prefix;
use calidris_bgp::route::Origination;
use calidris_bgp_driver::{BgpHandle, DriverConfig, Shutdown};
use tokio::net::UnixListener;
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use crate::clock;
use crate::config::SpeakerFile;
use crate::control::{self, Controlled};
use crate::listen::listen;
use crate::open_files;
use crate::reload::Reloader;
use crate::sources::links;

/// Reload requests that may wait.
const RELOADS: usize = 4;
/// What peers are told when an operator ends the speaker (RFC 9003).
const FAREWELL: &str = "the operator has stopped this speaker";

/// Runs the speaker of `config`, which came from `file`, until SIGTERM or SIGINT.
///
/// # Errors
/// What kept it from starting.
pub fn run(config: SpeakerFile, file: &Path) -> anyhow::Result<()> {
    open_files::allow_as_many_as_may_be();
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
    // Who says it before there is anything to read again must not end us.
    let _heard = signal(SignalKind::hangup())?;
    let socket = config.control.socket.as_path().to_owned();
    // Below /run: what is left there is from a predecessor since the last boot.
    let restarting = socket.exists();
    let listener = UnixListener::from_std(listen(&socket)?)?;
    let speaker = calidris_bgp_driver::start(DriverConfig {
        listen: config.bgp.listen(),
        speaker: config.speaker(),
        restarting,
        seed: clock::seed(),
    })
    .await?;
    speaker.originate(config.bgp.originations()).await?;
    tokio::spawn(links::run(speaker.clone()));
    info!(
        local_as = config.bgp.as_number,
        peers = config.bgp.peers.len(),
        routes = config.bgp.routes.len(),
        restarting,
        version = env!("CARGO_PKG_VERSION"),
        "speaking BGP"
    );
    let (reload, reloads) = mpsc::channel(RELOADS);
    tokio::spawn(control::serve(
        listener,
        Controlled {
            speaker: Some(speaker.clone()),
            node: None,
            reload: Some(reload),
        },
    ));
    let (to_announce, routes) = watch::channel(Some(config.bgp.originations()));
    tokio::spawn(announce(speaker.clone(), routes));
    for why in config.bgp.missing_secrets() {
        warn!("{why}; no session without it");
    }
    tokio::spawn(Reloader::new(config, (file, None), speaker.clone(), to_announce).serve(reloads));
    let how = tokio::select! {
        _ = terminate.recv() => {
            info!(signal = "SIGTERM", "ending; peers may keep our routes");
            Shutdown::ForRestart
        }
        _ = interrupt.recv() => {
            info!(signal = "SIGINT", "ending; peers are told to forget our routes");
            Shutdown::Cease { text: FAREWELL.to_owned() }
        }
    };
    speaker.shutdown(how).await?;
    info!("ended");
    Ok(())
}

/// Announces the configured routes, whenever they change.
async fn announce(speaker: BgpHandle, mut routes: watch::Receiver<Option<BTreeMap<Prefix, Origination>>>) {
    while routes.changed().await.is_ok() {
        let wanted = routes.borrow_and_update().clone().unwrap_or_default();
        if speaker.originate(wanted).await.is_err() {
            return;
        }
    }
}
