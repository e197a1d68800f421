//! The composition root: builds every part and connects them, top to bottom. No logic.

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use calidris_bgp_driver::{BgpHandle, DriverConfig, Shutdown};
use calidris_ipam::Ipam;
use ipnetwork::IpNetwork;
use tokio::net::{TcpListener, UnixListener};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tracing::{debug, error, info, warn};

use crate::clock;
use crate::cni_server::{Announcements, CniServer, Confirmed, ServerConfig};
use crate::config::{Config, Environment, kubernetes_addresses};
use crate::control::{self, Controlled};
use crate::datastore::node::{Creation, NodeRecord, register};
use crate::datastore::store::AnyStore;
use crate::datastore::{pool, remote};
use crate::desired::{DEFAULT_MTU, MIGRATION_PRIORITY, Published, RouteOrigin};
use crate::inbox::{INBOX, Message};
use crate::ipam_collector;
use crate::kernel::{Kernel, Linux, node_interfaces};
use crate::listen::listen;
use crate::metrics::{self, Exposition};
use crate::model::detection::Method;
use crate::model::peering::{PeeringWorkloads, WorkloadPeers};
use crate::model::{Input, Migrations, Model, Settings};
use crate::open_files;
use crate::pod_link::Remover;
use crate::reload::{FromDatastore, Reloader, UNTIL_PEERS_ARE_KNOWN};
use crate::report::{DatastoreReport, NodeStatus, Parts, StatusReport};
use crate::sources::{
    self,
    netlink::{Monitor, Own},
};
use crate::status;
use crate::tunnel_addresses;
use crate::turn::{Node, Outputs};

/// Requests to read the configuration again that may wait.
const RELOADS: usize = 4;
/// How long requests being worked on may go on when the agent ends.
const LAST_REQUESTS: Duration = Duration::from_secs(5);
/// How long a name may take to be found at the start.
const NAME_ANSWER: Duration = Duration::from_secs(10);
/// How long the status waits for the node's thread.
const NODE_ANSWER: Duration = Duration::from_secs(3);

/// The speaker, and the task between it and the node.
struct Bgp {
    speaker: BgpHandle,
    source: JoinHandle<()>,
}

/// Runs the agent of `config`, which came from `file`, until SIGTERM or SIGINT.
///
/// # Errors
/// What kept it from starting, or made it stop.
pub fn run(config: Config, file: &Path) -> anyhow::Result<()> {
    open_files::allow_as_many_as_may_be();
    // One thread for everything that waits, and one for BGP, so that neither a full table delays pods nor they its keepalives.
    // More would wake each other for work of microseconds. The node's own thread comes on top.
    let [runtime, of_speaker] = [one_thread("agent")?, one_thread("bgp")?];
    let result = runtime.block_on(run_on(config, file, (runtime.handle(), of_speaker.handle())));
    // A blocking thread that hangs in the kernel must not hang the exit.
    runtime.shutdown_timeout(Duration::from_secs(1));
    of_speaker.shutdown_timeout(Duration::from_secs(1));
    result
}

fn one_thread(name: &str) -> io::Result<Runtime> {
    Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name(name)
        .enable_all()
        .build()
}

async fn run_on(
    config: Config,
    file: &Path,
    (runtime, of_speaker): (&Handle, &Handle),
) -> anyhow::Result<()> {
    let started = clock::now();
    let mut ending = [signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?];
    // Without BGP there is nothing to read again; it must not end the agent either.
    let _heard = signal(SignalKind::hangup())?;
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
    let (published, to_publish) = watch::channel(None);
    let (tunnel_pools, tunnels_needed) = watch::channel(None);
    let (cluster_needed, is_cluster_needed) = watch::channel(None);
    let (migrations, migrating) = watch::channel(BTreeMap::new());
    let (pod_mtu, mtu_of_pods) = watch::channel(config.cni.mtu.unwrap_or(DEFAULT_MTU));
    let wanted_announcements = to_announce.clone();
    let store = AnyStore::open(&config.datastore, &Environment::of_process())?;
    let (datastore_state, datastore) = watch::channel(DatastoreReport {
        endpoints: store.places(),
        ..DatastoreReport::default()
    });

    // The monitor hears before the first read-back, so that nothing falls between the two.
    let monitor = Monitor::open().context("cannot hear the kernel's notifications")?;
    let mut kernel = Linux::open().context("cannot talk to the kernel")?;
    let predecessor_left_routes = !kernel
        .routes()
        .context("cannot read the kernel's routes; is this root?")?
        .is_empty();
    let (foreign_changes, foreign_changed) = watch::channel(0);
    let own = Own {
        port: kernel.port_id(),
        remote_route_table: config.dataplane.remote_route_table,
    };
    spawn_monitor(monitor, own, inbox.clone(), foreign_changes);
    spawn_nftables_monitor(&kernel, inbox.clone());
    let model = first_model(&config, &mut kernel).await?;
    let router_id = router_id(&config, &model)?;
    let (interfaces, interfaces_seen) = watch::channel(model.interfaces.clone());
    let outputs = Outputs {
        announcements,
        published,
        tunnel_pools,
        cluster_needed,
        pod_mtu,
        migrations,
        interfaces,
    };
    let read_back = config.dataplane.read_back_interval;
    tokio::spawn(sources::migration::run(
        migrating,
        config.dataplane.live_migration_settle_time,
        inbox.clone(),
    ));
    let node = Node::new(model, kernel, outputs, read_back, clock::now());
    let mut node_thread = spawn_node(node, messages, runtime)?;

    if let Some(embedded) = store.embedded() {
        let listener = UnixListener::from_std(listen(config.datastore.socket.as_path())?)?;
        tokio::spawn(remote::serve(listener, embedded));
    }
    let ipam = Arc::new(Ipam::new(store));
    tokio::spawn(pool::make(config.ipam.pools.clone(), Arc::clone(&ipam)));
    tokio::spawn(sources::datastore::run(
        Arc::clone(&ipam),
        node_name.clone(),
        inbox.clone(),
        datastore_state,
    ));
    tokio::spawn(sources::cluster::run(
        Arc::clone(&ipam),
        is_cluster_needed,
        inbox.clone(),
    ));
    tokio::spawn(tunnel_addresses::run(
        node_name.clone(),
        Arc::clone(&ipam),
        tunnels_needed,
        inbox.clone(),
    ));
    let as_number = config.bgp.as_ref().map(|bgp| bgp.as_number);
    let name = node_name.clone();
    tokio::spawn(keep_node_registered(
        move |published| NodeRecord {
            name: name.clone(),
            as_number,
            published,
        },
        to_publish,
        Arc::clone(&ipam),
        read_back,
    ));

    let collected = ipam_collector::Settings::of(&config);
    if let Some(settings) = collected.clone() {
        tokio::spawn(ipam_collector::run(
            settings,
            Arc::clone(&ipam),
            inbox.clone(),
            datastore.clone(),
        ));
    }

    let (workload_peers, workloads_that_peer) = watch::channel(WorkloadPeers::new());
    let peering = config.peering.from_datastore.then(|| {
        let (told, peering) = watch::channel(None);
        tokio::spawn(sources::peering::run(Arc::clone(&ipam), told));
        let (told, workloads) = watch::channel(PeeringWorkloads::new());
        tokio::spawn(sources::peering::workloads::run(
            Arc::clone(&ipam),
            node_name.clone(),
            peering.clone(),
            told,
        ));
        FromDatastore {
            peering,
            workloads,
            workload_peers: workload_peers.clone(),
            node: node_name.clone(),
            secrets: config.peering.secrets.clone(),
            inbox: inbox.clone(),
        }
    });
    let routes = config.bgp.as_ref().map(|bgp| bgp.originations());
    let (routes, configured) = watch::channel(routes.filter(|_| peering.is_none()));
    let announcements = sources::bgp::Announcements {
        configured,
        wanted: to_announce,
    };
    let restarting = predecessor_left_routes;
    let bgp = start_bgp(
        &config,
        (router_id, restarting),
        (announcements, inbox.clone()),
        of_speaker,
    )
    .await?;
    if let Some(bgp) = &bgp {
        let watched = sources::underlay::Watched {
            interfaces: interfaces_seen,
            foreign_changes: foreign_changed,
            workload_peers: workloads_that_peer,
        };
        tokio::spawn(sources::underlay::run(bgp.speaker.clone(), watched));
    }
    let reload = bgp.as_ref().map(|bgp| {
        let (reload, reloads) = mpsc::channel(RELOADS);
        let reloader =
            Reloader::new(config.clone(), (file, router_id), bgp.speaker.clone(), routes).with(peering);
        tokio::spawn(reloader.serve(reloads));
        reload
    });
    tokio::spawn(control::serve(
        control_listener,
        Controlled {
            speaker: bgp.as_ref().map(|bgp| bgp.speaker.clone()),
            node: Some(inbox.clone()),
            reload,
        },
    ));
    let server = Arc::new(CniServer::new(
        ServerConfig::from(&config),
        ipam,
        inbox.clone(),
        (datastore.clone(), mtu_of_pods),
        bgp.as_ref().map(|bgp| Announcements {
            wanted: wanted_announcements,
            speaker: bgp.speaker.clone(),
            heard_back_timeout: config.cni.heard_back_timeout,
            not_heard_back: config.cni.not_heard_back,
            confirmed: Confirmed::default(),
        }),
        Remover::start(runtime.clone())?,
    ));
    let serving = tokio::spawn(Arc::clone(&server).serve(cni_listener));
    tokio::spawn(Arc::clone(&server).undo_later());
    if let Some(settings) = collected {
        let (interval, grace) = (settings.interval, settings.collector.grace);
        tokio::spawn(Arc::clone(&server).free_orphans(interval, grace));
    }
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

/// A model that knows what the operator decided, and the node's own addresses if they are to be found.
pub(crate) async fn first_model(config: &Config, kernel: &mut Linux) -> anyhow::Result<Model> {
    let mut model = Model::new(config.node_name.as_str().to_owned());
    model.settings = Settings::from(config);
    model.source_spoofing = config.dataplane.workload_source_spoofing;
    model.hints.kubernetes = kubernetes_addresses();
    for method in [&config.node.ipv4_detection, &config.node.ipv6_detection]
        .into_iter()
        .flatten()
    {
        if let Method::CanReach(host) = method {
            let found = tokio::time::timeout(NAME_ANSWER, tokio::net::lookup_host((host.as_str(), 0))).await;
            let found = found
                .map_err(anyhow::Error::from)
                .and_then(|found| found.map_err(Into::into))
                .with_context(|| format!("can-reach={host}: the name has no address"))?;
            model.hints.reach.extend(found.map(|address| address.ip()));
        }
    }
    let links = kernel.links()?;
    model.observe(links.keys(), node_interfaces(&links, &kernel.addresses()?));
    for target in model.hints.reach.clone() {
        if let Some(source) = kernel.source_towards(target)? {
            model.hints.sources.insert(target, source);
        }
    }
    model.detect();
    let preferred = kernel
        .routes()?
        .into_iter()
        .filter(|(key, route)| route.origin == RouteOrigin::Local && key.priority == MIGRATION_PRIORITY);
    model.migrations = Migrations::after_restart(preferred.map(|(key, _)| key.destination.ip()).collect());
    info!(ipv4 = ?model.own_address(false), ipv6 = ?model.own_address(true), "this node's addresses");
    Ok(model)
}

/// The BGP Identifier: the configured one, or the node's IPv4 address, which may have been found.
fn router_id(config: &Config, model: &Model) -> anyhow::Result<Option<Ipv4Addr>> {
    let found = match model.own_address(false) {
        Some(IpNetwork::V4(v4)) => Some(v4.ip()),
        Some(IpNetwork::V6(_)) | None => None,
    };
    let router_id = config.router_id().or(found);
    anyhow::ensure!(
        config.bgp.is_none() || router_id.is_some(),
        "no IPv4 address of this node was found, and bgp.router_id is missing"
    );
    Ok(router_id)
}

/// The thread that owns the model and the kernel. The receiver hears when it is gone.
fn spawn_node(
    node: Node<Linux>,
    messages: mpsc::Receiver<Message>,
    runtime: &Handle,
) -> anyhow::Result<oneshot::Receiver<()>> {
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

fn spawn_monitor(
    monitor: Monitor,
    own: Own,
    inbox: mpsc::Sender<Message>,
    foreign_changes: watch::Sender<u64>,
) {
    tokio::spawn(async move {
        if let Err(error) = monitor.run(own, inbox, foreign_changes).await {
            error!(%error, "the kernel's notifications have ended; changes are seen at the periodic read-back only");
        }
    });
}

/// Without it, changes of our tables by others are seen at the periodic read-back only.
fn spawn_nftables_monitor(kernel: &Linux, inbox: mpsc::Sender<Message>) {
    let own = kernel.own_nft_ports();
    let monitor = sources::nftables::Monitor::open();
    tokio::spawn(async move {
        let result = match monitor {
            Ok(monitor) => monitor.run(own, inbox).await,
            Err(error) => Err(error),
        };
        if let Err(error) = result {
            error!(%error, "nftables is not listened to; changes are seen at the periodic read-back only");
        }
    });
}

async fn start_bgp(
    config: &Config,
    (router_id, restarting): (Option<Ipv4Addr>, bool),
    (announcements, inbox): (sources::bgp::Announcements, mpsc::Sender<Message>),
    runtime: &Handle,
) -> anyhow::Result<Option<Bgp>> {
    let (Some(bgp), Some(router_id)) = (&config.bgp, router_id) else {
        // Nobody will send routes: those a predecessor learned are stale now.
        let _ending = inbox.send(Message::Input(Input::BgpInSync)).await;
        return Ok(None);
    };
    let mut first = bgp.speaker(router_id);
    if config.peering.from_datastore {
        first.sync_timeout = UNTIL_PEERS_ARE_KNOWN;
    }
    let starting = runtime.spawn(calidris_bgp_driver::start(DriverConfig {
        listen: bgp.listen(),
        speaker: first,
        restarting,
        seed: clock::seed(),
    }));
    let speaker = starting.await??;
    let source = tokio::spawn(sources::bgp::run(speaker.clone(), announcements, inbox));
    Ok(Some(Bgp { speaker, source }))
}

/// Keeps the Node resource as it should be: writes it when what it says changes, and looks every `interval` whether it
/// still says so.
async fn keep_node_registered(
    record: impl Fn(Published) -> NodeRecord,
    mut published: watch::Receiver<Option<Published>>,
    ipam: Arc<Ipam<AnyStore>>,
    interval: Duration,
) {
    let mut pause = Duration::from_secs(1);
    loop {
        let now = published.borrow_and_update().clone();
        let next = match now {
            None => interval,
            Some(now) => {
                let record = record(now);
                let creation = Creation {
                    uid: &clock::uuid(),
                    now: clock::wall(),
                };
                match register(ipam.store(), &record, &creation).await {
                    Ok(()) => {
                        debug!(node = record.name, "the Node resource is up to date");
                        pause = Duration::from_secs(1);
                        interval
                    }
                    Err(error) => {
                        warn!(%error, "cannot write the Node resource; trying again");
                        pause = (pause * 2).min(Duration::from_secs(30));
                        pause
                    }
                }
            }
        };
        if let Ok(Err(_gone)) = tokio::time::timeout(next, published.changed()).await {
            return;
        }
    }
}
