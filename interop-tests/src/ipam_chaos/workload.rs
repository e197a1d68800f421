//! What the clients do: containers come and go on every node, some callers lose patience, some processes are started anew.

use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use calidris_ipam::{
    AddressRequest, AssignError, AssignRequest, Expect, ExtraDelete, ExtraWrite, Ipam, ReleaseRequest,
    StoreError, UnixNanos, keys,
};
use calidris_ipam_etcd::{EtcdConfig, EtcdStore};
use serde::Serialize;
use serde_json::json;
use tokio::task::JoinSet;

use super::members::Members;
use super::{Options, Shared};
use crate::netns::Namespace;
use crate::random::Random;

/// Most containers that a worker keeps.
const MOST_HELD: usize = 4;
/// How long a release is tried again: as long as etcd may be maltreated at a stretch, and more.
const SETTLE_WITHIN: Duration = Duration::from_secs(180);
/// Pause between two tries.
const PAUSE: Duration = Duration::from_millis(100);
/// The wall clock of the nodes at the start.
const EPOCH_NANOS: i64 = 1_800_000_000_000_000_000;

/// What all clients did.
#[derive(Debug, Default, Clone, Serialize)]
pub struct Counts {
    /// Assignments answered.
    pub assigned: u64,
    /// Releases answered.
    pub released: u64,
    /// Assignments without a known outcome.
    pub unknown: u64,
    /// Assignments whose caller lost patience.
    pub given_up: u64,
    /// Assignments not made because no member answered.
    pub unavailable: u64,
    /// Assignments not made because the quota was used up.
    pub no_space: u64,
    /// Assignments refused otherwise.
    pub refused: u64,
    /// Attempts at a release that failed and were made again.
    pub release_retries: u64,
    /// Processes replaced by a fresh one.
    pub restarts: u64,
}

/// A container's addresses.
#[derive(Debug, Clone)]
pub(crate) struct Held {
    pub(crate) node: String,
    pub(crate) handle: String,
    pub(crate) addresses: Vec<IpAddr>,
}

/// The client of one node.
pub(crate) struct Client {
    node: String,
    number: u64,
    seed: u64,
    workers: usize,
    config: EtcdConfig,
}

/// What the workers of a client share.
struct Node {
    name: String,
    config: EtcdConfig,
    ipam: Mutex<Arc<Ipam<EtcdStore>>>,
}

impl Client {
    pub(crate) fn new(number: usize, options: &Options, mut endpoints: Vec<String>) -> Self {
        let members = endpoints.len().max(1);
        endpoints.rotate_left(number % members);
        Self {
            node: node_name(number),
            number: number as u64,
            seed: options.seed,
            workers: if number.is_multiple_of(2) {
                1
            } else {
                options.workers
            },
            config: config(endpoints),
        }
    }

    /// Works until the end is called for; returns what it holds then.
    pub(crate) fn run(self, shared: &Arc<Shared>) -> anyhow::Result<Vec<Held>> {
        runtime()?.block_on(async {
            let node = Arc::new(Node {
                name: self.node,
                ipam: Mutex::new(Arc::new(Ipam::new(EtcdStore::new(self.config.clone())))),
                config: self.config,
            });
            let mut workers = JoinSet::new();
            for worker in 0..self.workers as u64 {
                let random = Random::new(self.seed, self.number * 1000 + worker);
                let (node, shared) = (Arc::clone(&node), Arc::clone(shared));
                workers.spawn(async move { work(&node, &shared, worker, random).await });
            }
            let mut held = Vec::new();
            while let Some(of_worker) = workers.join_next().await {
                held.extend(of_worker.context("a worker panicked")??);
            }
            Ok(held)
        })
    }
}

async fn work(node: &Node, shared: &Shared, worker: u64, mut random: Random) -> anyhow::Result<Vec<Held>> {
    let mut held: Vec<Held> = Vec::new();
    let mut number = 0;
    while !shared.ending.load(Ordering::Relaxed) {
        let goes = held.len() >= MOST_HELD || (!held.is_empty() && random.once_in(3));
        if goes {
            let index = usize::try_from(random.below(held.len() as u64)).unwrap_or_default();
            let gone = held.swap_remove(index);
            let now = shared.watch.elapsed();
            for &address in &gone.addresses {
                lock(&shared.history).gives_up(address, &gone.handle, now);
            }
            node.release(shared, &gone.handle).await?;
            lock(&shared.counts).released += 1;
        } else {
            number += 1;
            let handle = format!("net.{}w{worker}c{number}", node.name);
            held.extend(node.assign(shared, &handle, &mut random).await?);
        }
    }
    Ok(held)
}

impl Node {
    /// What the handle got; `None` if nothing, which then is settled.
    async fn assign(
        &self,
        shared: &Shared,
        handle: &str,
        random: &mut Random,
    ) -> anyhow::Result<Option<Held>> {
        let request = request(&self.name, handle, random.once_in(2));
        let ipam = self.ipam();
        let call = ipam.assign(&request, wall(shared));
        let patience = Duration::from_millis(1 + random.below(60));
        let is_impatient = random.once_in(8);
        let answer = if is_impatient {
            tokio::time::timeout(patience, call).await.ok()
        } else {
            Some(call.await)
        };
        match &answer {
            Some(Ok(assigned)) => {
                let addresses: Vec<IpAddr> = assigned.addresses.iter().map(|a| a.address).collect();
                let now = shared.watch.elapsed();
                for &address in &addresses {
                    lock(&shared.history).owns(address, handle, now);
                }
                lock(&shared.counts).assigned += 1;
                return Ok(Some(Held {
                    node: self.name.clone(),
                    handle: handle.to_owned(),
                    addresses,
                }));
            }
            Some(Err(AssignError::Store(StoreError::UnknownOutcome(_)))) => {
                lock(&shared.counts).unknown += 1;
            }
            Some(Err(AssignError::Store(error))) => {
                let mut counts = lock(&shared.counts);
                match error {
                    StoreError::NoSpace(_) => counts.no_space += 1,
                    StoreError::Unavailable(_) | StoreError::Timeout(_) => counts.unavailable += 1,
                    _ => counts.refused += 1,
                }
            }
            Some(Err(_)) => lock(&shared.counts).refused += 1,
            None => lock(&shared.counts).given_up += 1,
        }
        if random.once_in(4) {
            // As if the agent had been killed: its successor knows nothing of what was sent. Other workers may go on with what
            // they have begun through the former one; what was given up they must not.
            *lock(&self.ipam) = Arc::new(Ipam::new(EtcdStore::new(self.config.clone())));
            lock(&shared.counts).restarts += 1;
        }
        self.release(shared, handle).await?;
        Ok(None)
    }

    /// Releases what the handle has, again and again until that is answered.
    async fn release(&self, shared: &Shared, handle: &str) -> anyhow::Result<()> {
        let mut tries = tokio::time::interval(PAUSE);
        let began = shared.watch.elapsed();
        loop {
            tries.tick().await;
            let ipam = self.ipam();
            match ipam.release(&release(&self.name, handle), wall(shared)).await {
                Ok(_) => return Ok(()),
                Err(error) if shared.watch.elapsed().saturating_sub(began) > SETTLE_WITHIN => {
                    bail!("{handle} on {} could not be released: {error}", self.name)
                }
                Err(_) => lock(&shared.counts).release_retries += 1,
            }
        }
    }

    fn ipam(&self) -> Arc<Ipam<EtcdStore>> {
        Arc::clone(&lock(&self.ipam))
    }
}

/// Stores the pools and the nodes.
pub(crate) fn prepare(members: &Members, nodes: usize) -> anyhow::Result<()> {
    let pools = [
        ("four", json!({ "cidr": "10.200.0.0/25", "blockSize": 29 })),
        ("six", json!({ "cidr": "fd00:200::/120", "blockSize": 125 })),
    ];
    for (name, spec) in pools {
        let pool = json!({ "kind": "IPPool", "apiVersion": "projectcalico.org/v3",
            "metadata": { "name": name }, "spec": spec });
        members.put(&format!("{}{name}", keys::IP_POOLS), &pool.to_string())?;
    }
    for number in 0..nodes {
        let name = node_name(number);
        let node = json!({ "kind": "Node", "apiVersion": "projectcalico.org/v3",
            "metadata": { "name": name }, "spec": {} });
        members.put(&keys::resource("nodes", &name), &node.to_string())?;
    }
    Ok(())
}

/// Releases what the clients hold.
pub(crate) fn give_back(members: &Members, from: &Namespace, held: &[Held]) -> anyhow::Result<()> {
    on(members, from, async |ipam| {
        for Held { node, handle, .. } in held {
            ipam.release(&release(node, handle), UnixNanos(EPOCH_NANOS))
                .await?;
        }
        Ok(())
    })
}

/// Runs `work` with a client inside a namespace.
pub(crate) fn on<T: Send>(
    members: &Members,
    from: &Namespace,
    work: impl AsyncFnOnce(Ipam<EtcdStore>) -> anyhow::Result<T> + Send,
) -> anyhow::Result<T> {
    let config = config(members.endpoints());
    from.enter(|| runtime()?.block_on(work(Ipam::new(EtcdStore::new(config)))))?
}

fn request(node: &str, handle: &str, is_dual: bool) -> AssignRequest {
    let mut request = AssignRequest::new(handle, node);
    request.v4 = AddressRequest::Count(1);
    if is_dual {
        request.v6 = AddressRequest::Count(1);
    }
    let (name, node) = (handle.to_owned(), node.to_owned());
    request.extra_writes.push(ExtraWrite::new(
        endpoint_key(handle),
        Expect::Absent,
        move |addresses| {
            let networks: Vec<String> = addresses.iter().map(|a| a.network().to_string()).collect();
            json!({ "kind": "WorkloadEndpoint", "apiVersion": "projectcalico.org/v3",
                "metadata": { "name": name, "namespace": "chaos" },
                "spec": { "orchestrator": "cni", "node": node, "containerID": name, "endpoint": "eth0",
                    "ipNetworks": networks, "interfaceName": "cali0" } })
            .to_string()
            .into_bytes()
        },
    ));
    request
}

fn release(node: &str, handle: &str) -> ReleaseRequest {
    ReleaseRequest {
        handle_id: handle.to_owned(),
        extra_deletes: vec![ExtraDelete {
            key: endpoint_key(handle),
            expect: Expect::Anything,
        }],
        fence: Some(node.to_owned()),
        ..ReleaseRequest::default()
    }
}

fn endpoint_key(handle: &str) -> String {
    keys::namespaced_resource("workloadendpoints", "chaos", handle)
}

fn node_name(number: usize) -> String {
    format!("n{number}")
}

fn config(endpoints: Vec<String>) -> EtcdConfig {
    EtcdConfig {
        connect_timeout: Duration::from_millis(500),
        request_timeout: Duration::from_millis(1500),
        ..EtcdConfig::new(endpoints)
    }
}

fn wall(shared: &Shared) -> UnixNanos {
    let since = i64::try_from(shared.watch.elapsed().as_nanos()).unwrap_or(i64::MAX);
    UnixNanos(EPOCH_NANOS + since + shared.clock_offset.load(Ordering::Relaxed))
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    // One thread, this one: its namespace is what its sockets are in.
    Ok(tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
