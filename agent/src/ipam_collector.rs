//! The automatic collector of this node: shows `calidris_ipam::Collector` the datastore and what lives here, and carries
//! out what it decides. Every act is logged with its proof.
//!
//! What lives here is: the attachments that the node's thread knows; every address that a route leads to behind a
//! workload's interface; every address in a network namespace that a process is in. All of it is read *before* the
//! datastore, and the keys of the endpoints that a handle could have are read with it and guard the release: a container
//! that comes to life meanwhile makes the release fail.
//!
//! Nothing is looked at while the datastore is not connected or not in sync. Addresses borrowed from blocks of other nodes
//! are seen only through handles that also have an address in a block of this node; the others wait for
//! `calidris ipam check`.

mod view;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use calidris_ipam::{Act, Alive, Collector, CollectorConfig, ErrorClass, Ipam, RepairRequest, Store};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::MissedTickBehavior;
use tracing::{debug, info, warn};

use crate::cni_server::handle_id;
use crate::config::Config;
use crate::inbox::Message;
use crate::model::Model;
use crate::report::DatastoreReport;
use crate::{clock, host_routes, namespaces};

/// Most acts of one look: so many transactions the datastore bears at once without others noticing.
const MAX_ACTS: usize = 64;

/// What the collector is told by its operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Time between looks.
    pub interval: Duration,
    /// How long, and of which node.
    pub collector: CollectorConfig,
}

/// Why a look told nothing.
#[derive(Debug, thiserror::Error)]
enum NoLook {
    #[error("the datastore is not in sync")]
    NotInSync,
    #[error(transparent)]
    Datastore(#[from] calidris_ipam::StoreError),
    #[error("what lives on this node cannot be read: {0}")]
    Node(#[from] io::Error),
}

impl Settings {
    /// Of the configuration; `None` if nothing is to be collected.
    pub fn of(config: &Config) -> Option<Self> {
        let ipam = &config.ipam;
        (!ipam.collect_interval.is_zero()).then(|| Self {
            interval: ipam.collect_interval,
            collector: CollectorConfig {
                node: config.node_name.as_str().to_owned(),
                grace: ipam.collect_grace,
                block_idle: ipam.block_idle,
                max_acts: MAX_ACTS,
            },
        })
    }
}

/// Looks and acts until the task is dropped.
pub async fn run<S: Store>(
    settings: Settings,
    ipam: Arc<Ipam<S>>,
    inbox: mpsc::Sender<Message>,
    datastore: watch::Receiver<DatastoreReport>,
) {
    let node = settings.collector.node.clone();
    let mut collector = Collector::new(settings.collector);
    let started = clock::now();
    let mut ticks = tokio::time::interval(settings.interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let is_connected = datastore.borrow().connected;
        if !is_connected {
            continue;
        }
        let look = async {
            let model = model(&inbox).await.ok_or(NoLook::NotInSync)?;
            let mut alive = alive(&model).await?;
            let inventory = view::read(ipam.store(), &node, &mut alive).await?;
            let now = clock::now().saturating_duration_since(started);
            Ok::<_, NoLook>(collector.look(now, &inventory, &alive))
        };
        match look.await {
            Ok(acts) => {
                for act in acts {
                    carry_out(&ipam, &act).await;
                }
            }
            Err(NoLook::NotInSync) => debug!("nothing is collected before the datastore is in sync"),
            Err(error) => warn!(%error, "no look for what is to be collected"),
        }
    }
}

/// The model, if it knows the datastore.
async fn model(inbox: &mpsc::Sender<Message>) -> Option<Model> {
    let (answer, status) = oneshot::channel();
    inbox.send(Message::Status(answer)).await.ok()?;
    let model = status.await.ok()?.model;
    model.in_sync.datastore.then_some(model)
}

/// What lives on this node.
async fn alive(model: &Model) -> io::Result<Alive> {
    let mut alive = Alive {
        wall: Some(clock::wall()),
        ..Alive::default()
    };
    for (id, endpoint) in model.endpoints.iter() {
        let attached = format!("interface {}", endpoint.host_interface);
        alive.handles.insert(handle_id(id), attached.clone());
        let addresses = endpoint.addresses.iter();
        alive
            .addresses
            .extend(addresses.map(|&address| (address, attached.clone())));
    }
    let (routes, namespaces) = tokio::task::spawn_blocking(|| {
        Ok::<_, io::Error>((host_routes::workload_addresses()?, namespaces::look()?))
    })
    .await
    .map_err(io::Error::other)??;
    alive.addresses.extend(routes);
    alive.addresses.extend(namespaces.addresses);
    Ok(alive)
}

async fn carry_out<S: Store>(ipam: &Ipam<S>, act: &Act) {
    let (proof, done, result) = match act {
        Act::Release { request, proof } => {
            let result = ipam.release(request, clock::wall()).await.map(drop);
            let result = result.map_err(|error| (error.class(), error.to_string()));
            (proof, "released what nobody uses", result)
        }
        Act::Repair { request, proof } => {
            let result = ipam.repair(request).await.map(drop);
            let result = result.map_err(|error| (error.class(), error.to_string()));
            let done = match request {
                RepairRequest::GiveBackBlock { .. } => "gave an unused block back",
                _ => "settled an affinity",
            };
            (proof, done, result)
        }
    };
    match result {
        Ok(()) => info!(%proof, "collector: {done}"),
        // It lives again, or somebody else was faster: the next look will tell.
        Err((ErrorClass::Reevaluate, why)) => debug!(%proof, why, "collector: not so any more"),
        Err((_, error)) => warn!(%proof, error, "collector: could not act"),
    }
}
