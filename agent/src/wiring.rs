//! The composition root: builds every part and connects them, top to bottom. No logic.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use calidris_bgp_driver::{BgpHandle, DriverConfig, Shutdown};
use calidris_ipam::Ipam;
use calidris_ipam_etcd::EtcdStore;
use ipnetwork::IpNetwork;
use tokio::net::{TcpListener, UnixListener};
use tokio::runtime::{Builder, Handle};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tracing::{error, info, warn};

use crate::clock;
use crate::cni_server::{CniServer, ServerConfig};
use crate::config::Config;
use crate::control::{self, Controlled};
use crate::datastore::node::{Creation, NodeRecord, register};
use crate::input::Input;
use crate::ipam_collector;
use crate::kernel::{Kernel, Linux};
use crate::listen::listen;
use crate::metrics::{self, Exposition};
use crate::model::Model;
use crate::report::{DatastoreReport, Parts, StatusReport};
use crate::sources::{self, netlink::Monitor};
use crate::status;
use crate::turn::{INBOX, Message, Node, NodeStatus};

/// Threads for everything that waits; the node's own thread comes on top.
const WORKERS: usize = 2;
/// How long requests being worked on may go on when the agent ends.
const LAST_REQUESTS: Duration = Duration::from_secs(5);
/// How long the status waits for the node's thread.
const NODE_ANSWER: Duration = Duration::from_secs(3);

/// The speaker, and the task between it and the node.
struct Bgp {
    speaker: BgpHandle,
    source: JoinHandle<()>,
}

/// Runs the agent until SIGTERM or SIGINT.
///
/// # Errors
/// What kept it from starting, or made it stop.
pub fn run(config: Config) -> anyhow::Result<()> {
    let runtime = Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .enable_all()
        .build()?;
    let result = runtime.block_on(run_on(config, runtime.handle()));
    // A blocking thread that hangs in the kernel must not hang the exit.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

async fn run_on(config: Config, runtime: &Handle) -> anyhow::Result<()> {
    let started = clock::now();
    let mut ending = [signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?];
    let node_name = config.node_name.as_str().to_owned();
    info!(node = node_name, version = env!("CARGO_PKG_VERSION"), "starting");

    let cni_listener = UnixListener::from_std(listen(config.cni.socket.as_path())?)?;
    let status_listener = UnixListener::from_std(listen(config.status.socket.as_path())?)?;
    let control_listener = UnixListener::from_std(listen(config.control.socket.as_path())?)?;
    let metrics_listener = match config.metrics.listen {
        Some(address) => Some(
            TcpListener::bind(address)
                .await
                .with_context(|| format!("metrics.listen: cannot listen at {address}"))?,
        ),
        None => None,
    };

    let config_list = config.cni.config_list()?;

    let (inbox, messages) = mpsc::channel(INBOX);
    let (announcements, to_announce) = watch::channel(None);
    let (datastore_state, datastore) = watch::channel(DatastoreReport {
        endpoints: config.datastore.endpoints.clone(),
        ..DatastoreReport::default()
    });

    // The monitor hears before the first read-back, so that nothing falls between the two.
    let monitor = Monitor::open().context("cannot hear the kernel's notifications")?;
    let mut kernel = Linux::open().context("cannot talk to the kernel")?;
    let predecessor_left_routes = !kernel
        .routes()
        .context("cannot read the kernel's routes; is this root?")?
        .is_empty();
    spawn_monitor(monitor, kernel.port_id(), inbox.clone());
    let mut node_thread = spawn_node(&config, kernel, announcements, messages, runtime)?;

    let etcd = config.datastore.etcd()?;
    let ipam = Arc::new(Ipam::new(EtcdStore::new(etcd.clone())));
    tokio::spawn(sources::datastore::run(
        etcd,
        node_name.clone(),
        inbox.clone(),
        datastore_state,
    ));
    tokio::spawn(register_node(NodeRecord::from(&config), Arc::clone(&ipam)));

    if let Some(settings) = ipam_collector::Settings::of(&config) {
        tokio::spawn(ipam_collector::run(
            settings,
            Arc::clone(&ipam),
            inbox.clone(),
            datastore.clone(),
        ));
    }

    let bgp = start_bgp(&config, predecessor_left_routes, to_announce, inbox.clone()).await?;
    tokio::spawn(control::serve(
        control_listener,
        Controlled {
            speaker: bgp.as_ref().map(|bgp| bgp.speaker.clone()),
            reload: None,
        },
    ));
    let server = Arc::new(CniServer::new(
        ServerConfig::from(&config),
        ipam,
        inbox.clone(),
        datastore.clone(),
    ));
    let serving = tokio::spawn(Arc::clone(&server).serve(cni_listener));
    let report = {
        let (server, speaker) = (Arc::clone(&server), bgp.as_ref().map(|bgp| bgp.speaker.clone()));
        move || {
            let parts = (
                node_name.clone(),
                Arc::clone(&server),
                speaker.clone(),
                inbox.clone(),
                datastore.clone(),
            );
            async move {
                let (node, server, speaker, inbox, datastore) = parts;
                let status = tokio::time::timeout(NODE_ANSWER, ask_node(&inbox))
                    .await
                    .unwrap_or(None);
                let speaker = match speaker {
                    Some(speaker) => speaker.status().await.ok(),
                    None => None,
                };
                let uptime = clock::now().saturating_duration_since(started);
                let datastore = datastore.borrow().clone();
                StatusReport::from(Parts {
                    node,
                    uptime,
                    status,
                    datastore,
                    speaker,
                    cni: server.report(),
                })
            }
        }
    };
    if let Some(config_list) = config_list {
        let server = Arc::clone(&server);
        tokio::spawn(async move { config_list.run(|| server.is_ready()).await });
    }
    if let Some(listener) = metrics_listener {
        tokio::spawn(metrics::serve(listener, {
            let (server, report) = (Arc::clone(&server), report.clone());
            move || {
                let (server, report) = (Arc::clone(&server), report());
                async move {
                    let mut text = Exposition::default();
                    metrics::of_status(&report.await, &mut text);
                    server.metrics(&mut text);
                    text.into_text()
                }
            }
        }));
    }
    tokio::spawn(status::serve(status_listener, report));

    let [terminate, interrupt] = &mut ending;
    let result = tokio::select! {
        name = named(terminate, "SIGTERM") => { info!(signal = name, "ending"); Ok(()) }
        name = named(interrupt, "SIGINT") => { info!(signal = name, "ending"); Ok(()) }
        _ = &mut node_thread => Err(anyhow::anyhow!("the node's thread has died; this is a defect")),
    };
    serving.abort();
    let idle = async {
        while server.report().in_progress > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    if tokio::time::timeout(LAST_REQUESTS, idle).await.is_err() {
        warn!("ending although CNI requests are being worked on");
    }
    if let Some(Bgp { speaker, source }) = bgp {
        source.abort();
        // Without NOTIFICATION: peers with graceful restart keep our routes for our successor (RFC 4724 §4).
        let _already_stopped = speaker.shutdown(Shutdown::ForRestart).await;
    }
    info!("ended; the kernel's routes stay");
    result
}

async fn named(signal: &mut Signal, name: &'static str) -> &'static str {
    signal.recv().await;
    name
}

async fn ask_node(inbox: &mpsc::Sender<Message>) -> Option<NodeStatus> {
    let (answer, status) = oneshot::channel();
    inbox.send(Message::Status(answer)).await.ok()?;
    status.await.ok()
}

/// The thread that owns the model and the kernel. The receiver hears when it is gone.
fn spawn_node(
    config: &Config,
    kernel: Linux,
    announcements: watch::Sender<Option<BTreeSet<IpNetwork>>>,
    messages: mpsc::Receiver<Message>,
    runtime: &Handle,
) -> anyhow::Result<oneshot::Receiver<()>> {
    let model = Model::new(config.node_name.as_str().to_owned());
    let interval = config.dataplane.read_back_interval;
    let node = Node::new(model, kernel, announcements, interval, clock::now());
    let runtime = runtime.clone();
    let (alive, gone) = oneshot::channel();
    std::thread::Builder::new()
        .name("node".to_owned())
        .spawn(move || {
            // Dropped when the thread ends, however it ends.
            let _alive: oneshot::Sender<()> = alive;
            node.run(messages, &runtime, clock::now);
        })?;
    Ok(gone)
}

fn spawn_monitor(monitor: Monitor, own_port: u32, inbox: mpsc::Sender<Message>) {
    tokio::spawn(async move {
        if let Err(error) = monitor.run(own_port, inbox).await {
            error!(%error, "the kernel's notifications have ended; changes are seen at the periodic read-back only");
        }
    });
}

async fn start_bgp(
    config: &Config,
    restarting: bool,
    to_announce: watch::Receiver<Option<BTreeSet<IpNetwork>>>,
    inbox: mpsc::Sender<Message>,
) -> anyhow::Result<Option<Bgp>> {
    let (Some(bgp), Some(router_id)) = (&config.bgp, config.router_id()) else {
        // Nobody will send routes: those a predecessor learned are stale now.
        let _ending = inbox.send(Message::Input(Input::BgpInSync)).await;
        return Ok(None);
    };
    let speaker = calidris_bgp_driver::start(DriverConfig {
        listen: bgp.listen(),
        speaker: bgp.speaker(router_id)?,
        restarting,
        seed: clock::seed(),
    })
    .await?;
    let source = tokio::spawn(sources::bgp::run(
        speaker.clone(),
        bgp.originations(),
        to_announce,
        inbox,
    ));
    Ok(Some(Bgp { speaker, source }))
}

/// Writes the Node resource, until it is written.
async fn register_node(record: NodeRecord, ipam: Arc<Ipam<EtcdStore>>) {
    let mut pause = Duration::from_secs(1);
    loop {
        let creation = Creation {
            uid: &clock::uuid(),
            now: clock::wall(),
        };
        match register(ipam.store(), &record, &creation).await {
            Ok(()) => return info!(node = record.name, "the Node resource is up to date"),
            Err(error) => warn!(%error, "cannot write the Node resource; trying again"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(30));
    }
}
