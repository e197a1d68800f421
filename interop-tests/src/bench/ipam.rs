//! Addresses given beside what etcd itself can do: one etcd with its writes on the disk, and in the same run, in turn,
//! - a put of 1,000 bytes under one key;
//! - an allocation with its endpoint: a block, a handle, an endpoint, and conditions on all that it was planned from;
//! - what that allocation wrote, under other keys and without conditions: in one put, and in one transaction.
//!
//! Claims of new blocks are measured in clusters of few and of many blocks, each followed by the calls that it made, made
//! again by nobody who thinks in between: the same reads, the same writes under other keys. What a claim reads is what etcd
//! says it sent.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, ensure};
use calidris_ipam::{
    AddressRequest, AllocationBlock, AssignRequest, CommitOutcome, Expect, ExtraWrite, Ipam, Range,
    ReleaseRequest, Snapshot, Store, StoreError, Txn, UnixNanos, Write, keys,
};
use calidris_ipam_etcd::{EtcdConfig, EtcdStore};
use ipnetwork::{IpNetwork, Ipv4Network};
use serde_json::json;
use tokio::task::JoinSet;

use super::report::{Report, percentile};
use crate::daemon::etcd::Etcd;
use crate::eventually::Stopwatch;
use crate::lab::Lab;

/// How many transactions fill the datastore at a time, and how many keys one has.
const FILL_KEYS: usize = 100;
const EPOCH: UnixNanos = UnixNanos(1_800_000_000_000_000_000);

/// What to measure.
#[derive(Debug, Clone)]
pub struct Options {
    /// Requests of each series.
    pub requests: usize,
    /// Nodes that allocate at once.
    pub nodes: usize,
    /// Blocks in the cluster, ascending: claims are measured at each.
    pub blocks: Vec<usize>,
    /// Claims at each.
    pub claims: usize,
    /// Counted runs of each series.
    pub rounds: usize,
}

/// A store that notes what goes to etcd.
struct Noting {
    etcd: EtcdStore,
    commits: AtomicU64,
    /// Since somebody took them last.
    calls: Mutex<Vec<Call>>,
}

/// What etcd was asked for.
enum Call {
    Read(Vec<Range>),
    Commit(Txn),
}

impl Noting {
    fn note(&self, call: Call) {
        self.calls
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(call);
    }

    fn take_calls(&self) -> Vec<Call> {
        std::mem::take(&mut *self.calls.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Call {
    /// The writes of a commit, under other keys and without conditions.
    fn into_copy(self) -> Option<Txn> {
        let Self::Commit(txn) = self else { return None };
        let elsewhere = |key: String| format!("/plain{key}");
        let writes = txn.writes.into_iter().map(|write| match write {
            Write::Put { key, value } => Write::Put {
                key: elsewhere(key),
                value,
            },
            Write::Delete { key } => Write::Delete { key: elsewhere(key) },
        });
        Some(Txn {
            writes: writes.collect(),
            ..Txn::default()
        })
    }

    async fn repeat(self, store: &EtcdStore) -> anyhow::Result<()> {
        match self {
            Self::Read(ranges) => store.read(&ranges).await.map(drop)?,
            commit @ Self::Commit(_) => {
                let copy = commit.into_copy().unwrap_or_default();
                store.commit(&copy).await.map(drop)?;
            }
        }
        Ok(())
    }
}

fn size(write: &Write) -> usize {
    match write {
        Write::Put { key, value } => key.len() + value.len(),
        Write::Delete { key } => key.len(),
    }
}

impl Store for Noting {
    async fn read(&self, ranges: &[Range]) -> Result<Snapshot, StoreError> {
        self.note(Call::Read(ranges.to_vec()));
        self.etcd.read(ranges).await
    }

    async fn commit(&self, txn: &Txn) -> Result<CommitOutcome, StoreError> {
        self.commits.fetch_add(1, Ordering::Relaxed);
        self.note(Call::Commit(txn.clone()));
        self.etcd.commit(txn).await
    }
}

/// Measures everything and returns the rows.
///
/// # Errors
/// When etcd does not come up, or refuses.
pub fn run(options: &Options) -> anyhow::Result<Report> {
    let lab = Lab::create(&format!("bench-ipam-{}", std::process::id()))?;
    let result = run_in(&lab, options);
    lab.take_down()?;
    result
}

fn run_in(lab: &Lab, options: &Options) -> anyhow::Result<Report> {
    let namespace = lab.namespace("etcd")?;
    let etcd = Etcd::start(lab, &namespace, Ipv4Addr::LOCALHOST.into())?;
    let endpoint = etcd.endpoint().to_owned();
    namespace.enter(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
            let bench = Bench {
                options,
                config: EtcdConfig::new(vec![endpoint]),
            };
            bench.measure().await
        })
    })?
}

struct Bench<'a> {
    options: &'a Options,
    config: EtcdConfig,
}

const ETCD: (&str, &str) = ("etcd", "plain");
const OURS: (&str, &str) = ("calidris", env!("CARGO_PKG_VERSION"));

impl Bench<'_> {
    async fn measure(&self) -> anyhow::Result<Report> {
        let mut report = Report::new("ipam");
        self.store_pool().await?;
        self.latency(&mut report).await?;
        self.throughput(&mut report).await?;
        self.burst(&mut report).await?;
        let mut stored = BTreeSet::new();
        for &blocks in &self.options.blocks {
            self.fill(&mut stored, blocks).await?;
            self.claims(&mut report, blocks).await?;
        }
        Ok(report)
    }

    async fn store_pool(&self) -> anyhow::Result<()> {
        let pool = json!({ "kind": "IPPool", "apiVersion": "projectcalico.org/v3",
            "metadata": { "name": "bench" }, "spec": { "cidr": "10.0.0.0/8", "blockSize": 26 } });
        let key = format!("{}bench", keys::IP_POOLS);
        self.put(&self.store(), key, pool.to_string().into_bytes()).await
    }

    /// One request at a time: a put, an allocation, what that wrote in one put and in one transaction, in turn.
    async fn latency(&self, report: &mut Report) -> anyhow::Result<()> {
        const SERIES: [&str; 3] = ["put", "put-of-same-bytes", "same-writes"];
        let (plain, ipam) = (self.store(), self.ipam());
        let mut others = SERIES.map(|_| Vec::new());
        let mut assigns = Vec::new();
        for round in 0..self.options.rounds {
            let mut of_others = SERIES.map(|_| Vec::new());
            let mut assign = Vec::new();
            for number in 0..self.options.requests {
                let watch = Stopwatch::start();
                self.put(&plain, format!("/plain/{number}"), vec![b'x'; 1000])
                    .await?;
                of_others[0].push(milliseconds(&watch));
                let request = request("lone", &format!("lone.{round}.{number}"));
                let watch = Stopwatch::start();
                ipam.assign(&request, EPOCH).await?;
                assign.push(milliseconds(&watch));
                let mut copies = ipam.store().take_calls().into_iter().filter_map(Call::into_copy);
                let copy = copies.next_back().context("an allocation committed nothing")?;
                let bytes = copy.writes.iter().map(size).sum();
                let watch = Stopwatch::start();
                self.put(&plain, format!("/plain/large/{number}"), vec![b'x'; bytes])
                    .await?;
                of_others[1].push(milliseconds(&watch));
                let watch = Stopwatch::start();
                plain.commit(&copy).await?;
                of_others[2].push(milliseconds(&watch));
            }
            assigns.push(sorted(assign));
            for (all, of_round) in others.iter_mut().zip(of_others) {
                all.push(sorted(of_round));
            }
            self.release(
                &ipam,
                (0..self.options.requests).map(|number| format!("lone.{round}.{number}")),
            )
            .await?;
        }
        for percent in [50, 99] {
            let of =
                |runs: &[Vec<f64>]| -> Vec<f64> { runs.iter().map(|run| percentile(run, percent)).collect() };
            let ours = of(&assigns);
            report.add(OURS, (&format!("assign-p{percent}"), "ms"), &ours);
            for (name, runs) in SERIES.iter().zip(&others) {
                let theirs = of(runs);
                report.add(ETCD, (&format!("{name}-p{percent}"), "ms"), &theirs);
                let ratios: Vec<f64> = ours
                    .iter()
                    .zip(theirs)
                    .map(|(ours, other)| ours / other)
                    .collect();
                report.add(OURS, (&format!("assign-p{percent}-to-{name}"), "ratio"), &ratios);
            }
        }
        Ok(())
    }

    /// As many as possible: from one node, from many, and as plain transactions.
    async fn throughput(&self, report: &mut Report) -> anyhow::Result<()> {
        let [mut plain, mut one, mut many, mut per_allocation] = [const { Vec::new() }; 4];
        let (requests, nodes) = (self.options.requests, self.options.nodes);
        for round in 0..self.options.rounds {
            let store = Arc::new(self.store());
            let watch = Stopwatch::start();
            let mut tasks = JoinSet::new();
            for node in 0..nodes {
                let store = Arc::clone(&store);
                tasks.spawn(async move {
                    for number in (node..requests).step_by(nodes) {
                        store.commit(&like_an_allocation(number)).await?;
                    }
                    anyhow::Ok(())
                });
            }
            all(tasks).await?;
            plain.push(requests as f64 / watch.elapsed().as_secs_f64());

            let handles: Vec<String> = (0..requests)
                .map(|number| format!("one.{round}.{number}"))
                .collect();
            let ipam = Arc::new(self.ipam());
            let watch = Stopwatch::start();
            assign_all(&ipam, "one", &handles, 64).await?;
            one.push(requests as f64 / watch.elapsed().as_secs_f64());
            self.release(&ipam, handles.into_iter()).await?;

            let ipams: Vec<Arc<Ipam<Noting>>> = (0..nodes).map(|_| Arc::new(self.ipam())).collect();
            let share = requests.div_ceil(nodes);
            let handles = |node: usize| -> Vec<String> {
                (0..share)
                    .map(|number| format!("n{node}.{round}.{number}"))
                    .collect()
            };
            let watch = Stopwatch::start();
            let mut tasks = JoinSet::new();
            for (node, ipam) in ipams.iter().enumerate() {
                let (ipam, handles) = (Arc::clone(ipam), handles(node));
                tasks.spawn(async move { assign_all(&ipam, &format!("n{node}"), &handles, 1).await });
            }
            all(tasks).await?;
            many.push((share * nodes) as f64 / watch.elapsed().as_secs_f64());
            let commits: u64 = ipams
                .iter()
                .map(|ipam| ipam.store().commits.load(Ordering::Relaxed))
                .sum();
            per_allocation.push(commits as f64 / (share * nodes) as f64);
            for (node, ipam) in ipams.iter().enumerate() {
                self.release(ipam, handles(node).into_iter()).await?;
            }
        }
        let of_nodes = format!("{nodes}-nodes");
        report.add(ETCD, (&format!("transactions-{of_nodes}"), "1/s"), &plain);
        report.add(OURS, ("allocations-1-node", "1/s"), &one);
        report.add(OURS, (&format!("allocations-{of_nodes}"), "1/s"), &many);
        report.add(
            OURS,
            (&format!("transactions-per-allocation-{of_nodes}"), "1"),
            &per_allocation,
        );
        Ok(())
    }

    /// A hundred at once on one node.
    async fn burst(&self, report: &mut Report) -> anyhow::Result<()> {
        const BURST: usize = 100;
        let [mut commits, mut times] = [const { Vec::new() }; 2];
        for round in 0..self.options.rounds {
            let ipam = Arc::new(self.ipam());
            let handles: Vec<String> = (0..BURST)
                .map(|number| format!("burst.{round}.{number}"))
                .collect();
            let watch = Stopwatch::start();
            assign_all(&ipam, "burst", &handles, BURST).await?;
            times.push(milliseconds(&watch));
            commits.push(ipam.store().commits.load(Ordering::Relaxed) as f64 / BURST as f64);
            self.release(&ipam, handles.into_iter()).await?;
        }
        report.add(OURS, ("burst-of-100", "ms"), &times);
        report.add(OURS, ("transactions-per-allocation-burst-of-100", "1"), &commits);
        Ok(())
    }

    /// Claims of nodes that have no block yet.
    async fn claims(&self, report: &mut Report, blocks: usize) -> anyhow::Result<()> {
        let [mut times, mut plain_times, mut bytes] = [const { Vec::new() }; 3];
        let plain = self.store();
        // The first ones are not counted: etcd is still busy with what was just stored.
        let uncounted = self.options.claims.div_ceil(5);
        for number in 0..uncounted + self.options.claims {
            // The connection is made before: a claim in a running agent does not wait for it either.
            let ipam = self.ipam();
            ipam.store().read(&[Range::Key("/warm".to_owned())]).await?;
            ipam.store().take_calls();
            let node = format!("claimer-{blocks}-{number}");
            let before = self.sent_bytes()?;
            let watch = Stopwatch::start();
            let assigned = ipam
                .assign(&request(&node, &format!("claim.{node}")), EPOCH)
                .await?;
            let time = milliseconds(&watch);
            ensure!(assigned.claimed_blocks.len() == 1, "{node} claimed no block");
            let read = (self.sent_bytes()? - before) / 1000.0;
            let calls = ipam.store().take_calls();
            let watch = Stopwatch::start();
            for call in calls {
                call.repeat(&plain).await?;
            }
            if number >= uncounted {
                times.push(time);
                plain_times.push(milliseconds(&watch));
                bytes.push(read);
            }
        }
        let (times, plain_times, bytes) = (sorted(times), sorted(plain_times), sorted(bytes));
        for percent in [50, 99] {
            let (ours, plain) = (percentile(&times, percent), percentile(&plain_times, percent));
            let row = format!("p{percent}-among-{blocks}");
            report.add(OURS, (&format!("claim-{row}"), "ms"), &[ours]);
            report.add(ETCD, (&format!("same-calls-{row}"), "ms"), &[plain]);
        }
        report.add(OURS, (&format!("claim-read-among-{blocks}"), "kB"), &bytes);
        Ok(())
    }

    /// Stores blocks of other nodes, spread over the pool, until there are `count`.
    async fn fill(&self, stored: &mut BTreeSet<u32>, count: usize) -> anyhow::Result<()> {
        eprintln!("storing {count} blocks");
        let store = self.store();
        let mut state = stored.len() as u64;
        while stored.len() < count {
            let mut writes = Vec::new();
            while writes.len() + 2 <= FILL_KEYS && stored.len() < count {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                let index = u32::try_from(state >> 46).unwrap_or_default();
                if stored.insert(index) {
                    let address = Ipv4Addr::from((10 << 24) | (index << 6));
                    let cidr = IpNetwork::V4(Ipv4Network::new(address, 26)?);
                    let node = format!("filler-{}", index % 5000);
                    let block = AllocationBlock::claim(cidr, &node, EPOCH);
                    writes.push((keys::block(cidr), block.to_json()));
                    writes.push((
                        keys::affinity(&node, cidr),
                        br#"{"state":"confirmed","deleted":false}"#.to_vec(),
                    ));
                }
            }
            let writes = writes
                .into_iter()
                .map(|(key, value)| Write::Put { key, value })
                .collect();
            store
                .commit(&Txn {
                    writes,
                    ..Txn::default()
                })
                .await?;
        }
        Ok(())
    }

    async fn release(
        &self,
        ipam: &Ipam<Noting>,
        handles: impl Iterator<Item = String>,
    ) -> anyhow::Result<()> {
        for handle_id in handles {
            let request = ReleaseRequest {
                handle_id,
                ..ReleaseRequest::default()
            };
            ipam.release(&request, EPOCH).await?;
        }
        Ok(())
    }

    async fn put(&self, store: &EtcdStore, key: String, value: Vec<u8>) -> anyhow::Result<()> {
        store
            .commit(&Txn {
                writes: vec![Write::Put { key, value }],
                ..Txn::default()
            })
            .await?;
        Ok(())
    }

    /// What etcd has sent to clients so far.
    fn sent_bytes(&self) -> anyhow::Result<f64> {
        let endpoint = self.config.endpoints.first().context("no endpoint")?;
        let text = metrics_of(endpoint)?;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("etcd_network_client_grpc_sent_bytes_total "));
        line.context("etcd has no such metric")?
            .trim()
            .parse()
            .context("etcd's metric is no number")
    }

    fn store(&self) -> EtcdStore {
        EtcdStore::new(self.config.clone())
    }

    fn ipam(&self) -> Ipam<Noting> {
        Ipam::new(Noting {
            etcd: self.store(),
            commits: AtomicU64::new(0),
            calls: Mutex::default(),
        })
    }
}

/// What etcd says of itself. HTTP/1.0: the answer ends with the connection.
fn metrics_of(endpoint: &str) -> anyhow::Result<String> {
    let address = endpoint.trim_start_matches("http://");
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.take(8 << 20).read_to_string(&mut text)?;
    Ok(text)
}

/// Assigns to every handle, `at_once` at a time.
async fn assign_all(
    ipam: &Arc<Ipam<Noting>>,
    node: &str,
    handles: &[String],
    at_once: usize,
) -> anyhow::Result<()> {
    let mut tasks = JoinSet::new();
    for first in 0..at_once {
        let requests: Vec<AssignRequest> = handles
            .iter()
            .skip(first)
            .step_by(at_once)
            .map(|handle| request(node, handle))
            .collect();
        let ipam = Arc::clone(ipam);
        tasks.spawn(async move {
            for request in requests {
                ipam.assign(&request, EPOCH).await?;
            }
            anyhow::Ok(())
        });
    }
    all(tasks).await
}

async fn all(mut tasks: JoinSet<anyhow::Result<()>>) -> anyhow::Result<()> {
    while let Some(result) = tasks.join_next().await {
        result.context("a task panicked")??;
    }
    Ok(())
}

fn request(node: &str, handle: &str) -> AssignRequest {
    let mut request = AssignRequest::new(handle, node);
    request.v4 = AddressRequest::Count(1);
    let key = keys::namespaced_resource("workloadendpoints", "bench", handle);
    let node = node.to_owned();
    request
        .extra_writes
        .push(ExtraWrite::new(key, Expect::Anything, move |addresses| {
            let networks: Vec<String> = addresses.iter().map(|a| a.network().to_string()).collect();
            let filling = "an endpoint has some six hundred bytes of names, labels and times; ".repeat(6);
            json!({ "kind": "WorkloadEndpoint", "apiVersion": "projectcalico.org/v3",
                "metadata": { "name": "bench", "labels": { "filling": filling } },
                "spec": { "node": node, "ipNetworks": networks } })
            .to_string()
            .into_bytes()
        }));
    request
}

/// Three keys of the sizes of a block, a handle and an endpoint.
fn like_an_allocation(number: usize) -> Txn {
    let put = |name: &str, size: usize| Write::Put {
        key: format!("/plain/{name}/{number}"),
        value: vec![b'x'; size],
    };
    Txn {
        writes: vec![put("block", 1500), put("handle", 60), put("endpoint", 650)],
        ..Txn::default()
    }
}

fn milliseconds(watch: &Stopwatch) -> f64 {
    watch.elapsed().as_secs_f64() * 1000.0
}

fn sorted(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_by(f64::total_cmp);
    values
}
