//! One turn of the loop: absorb what happened, compute what should be, make it so, answer who waits.
//!
//! One thread owns the [`Node`] and with it the model and the kernel's dataplane; everything else talks to it through
//! one bounded channel of [`Message`]s. Senders wait when it is full.
//!
//! Invariants: a prefix is withdrawn from BGP before its routes go and announced after its routes are there; nothing is
//! announced before the datastore is in sync, so that peers keep what our predecessor announced (RFC 4724); who
//! waits for something to be applied is answered after the kernel was asked to follow.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{debug, info, warn};

use crate::apply::{self, ApplyReport, Dataplane};
use crate::desired::{self, Announcement, Desired, Published, TunnelPools};
use crate::inbox::{Applied, Found, Message, NotApplied, Readiness};
use crate::kernel::{Kernel, KernelChange, KernelError, KernelNews, node_interfaces};
use crate::model::{Affected, Endpoint, EndpointId, InSync, Input, Interface, MigrationPhase, Model};
use crate::plan::{AnsweredBy, PlanReport};
use crate::report::{DataplaneReport, NodeStatus};

/// Messages taken into one turn, at most: bounds how long the first of them waits.
const MAX_BATCH: usize = 512;
/// Operations of a turn that the status names, at most.
const MAX_REPORTED_OPERATIONS: usize = 20;

/// What the node tells the tasks around it. Each has the last value only.
pub struct Outputs {
    /// What BGP is to announce; `None` until that is known.
    pub announcements: watch::Sender<Option<BTreeMap<IpNetwork, Announcement>>>,
    /// What the node says of itself in the datastore; `None` until the datastore is known.
    pub published: watch::Sender<Option<Published>>,
    /// The pools that need a tunnel of each kind; `None` until the datastore is known.
    pub tunnel_pools: watch::Sender<Option<TunnelPools>>,
    /// Whether the other nodes must be known; `None` until the datastore is known.
    pub cluster_needed: watch::Sender<Option<bool>>,
    /// MTU of pods' interfaces in bytes.
    pub pod_mtu: watch::Sender<u32>,
    /// How far the migrations of workloads to this node are, by host interface.
    pub migrations: watch::Sender<BTreeMap<String, MigrationPhase>>,
    /// The node's interfaces by name, without those of workloads.
    pub interfaces: watch::Sender<BTreeMap<String, Interface>>,
}

/// The model, the kernel, and what connects them.
pub struct Node<K> {
    model: Model,
    dataplane: Dataplane<K>,
    outputs: Outputs,
    read_back_interval: Duration,
    read_back_at: Instant,
    retry_at: Option<Instant>,
    /// When connections of addresses that have gone are forgotten.
    forget_at: Option<Instant>,
    report: DataplaneReport,
}

/// Who waits for the end of the turn.
#[derive(Default)]
struct Waiting {
    applied: Vec<(Option<Endpoint>, Applied)>,
    inspect: Vec<(EndpointId, oneshot::Sender<Vec<String>>)>,
    readiness: Vec<oneshot::Sender<Readiness>>,
    status: Vec<oneshot::Sender<NodeStatus>>,
    plan: Vec<oneshot::Sender<PlanReport>>,
}

impl<K: Kernel> Node<K> {
    /// A node that knows nothing yet. The first turn reads the kernel back.
    pub fn new(
        model: Model,
        kernel: K,
        outputs: Outputs,
        read_back_interval: Duration,
        now: Instant,
    ) -> Self {
        Self {
            model,
            dataplane: Dataplane::new(kernel),
            outputs,
            read_back_interval,
            read_back_at: now,
            retry_at: None,
            forget_at: None,
            report: DataplaneReport::default(),
        }
    }

    /// Takes turns until every sender of `inbox` is gone. `clock` tells the time.
    pub fn run(mut self, mut inbox: mpsc::Receiver<Message>, runtime: &Handle, clock: impl Fn() -> Instant) {
        loop {
            let deadline = tokio::time::Instant::from_std(self.deadline());
            let mut batch = Vec::new();
            match runtime.block_on(async { tokio::time::timeout_at(deadline, inbox.recv()).await }) {
                Ok(Some(message)) => batch.push(message),
                Ok(None) => return,
                Err(_) => {}
            }
            while batch.len() < MAX_BATCH
                && let Ok(message) = inbox.try_recv()
            {
                batch.push(message);
            }
            self.turn(batch, clock());
        }
    }

    /// When to take a turn even if nothing happens.
    pub fn deadline(&self) -> Instant {
        let look_at = self.look_at();
        self.forget_at.map_or(look_at, |forget_at| forget_at.min(look_at))
    }

    /// When to look at everything even if nothing happens.
    fn look_at(&self) -> Instant {
        self.retry_at
            .map_or(self.read_back_at, |retry_at| retry_at.min(self.read_back_at))
    }

    /// One turn.
    pub fn turn(&mut self, batch: Vec<Message>, now: Instant) {
        let is_due = self.look_at() <= now;
        let was_in_sync = self.model.in_sync;
        let (mut waiting, mut affected) = self.absorb(batch);
        if now >= self.read_back_at || !waiting.inspect.is_empty() {
            self.dataplane.note(KernelChange::Everything);
            self.read_back_at = now + self.read_back_interval;
        }
        self.inspect(std::mem::take(&mut waiting.inspect));
        if is_due || (affected != Affected::Everything && self.links_matter()) {
            affected = Affected::Everything;
        }
        let applied = match &affected {
            Affected::Nothing => None,
            Affected::Workloads(touched) => Some(self.follow(touched, now)),
            Affected::Everything => Some(self.make_it_so(now)),
        };
        if self.model.in_sync != was_in_sync {
            let InSync {
                datastore,
                bgp,
                cluster,
            } = self.model.in_sync;
            info!(datastore, bgp, cluster, "sources in sync");
        }
        self.answer(waiting, applied.as_ref());
        self.forget_connections(now);
    }

    /// Forgets connections of addresses that have gone, when it is time. Nobody waits for it.
    fn forget_connections(&mut self, now: Instant) {
        if self.forget_at.is_some_and(|at| at <= now)
            && let Err(error) = self.dataplane.forget_connections_of_gone()
        {
            debug!(%error, "cannot forget tracked connections");
            // Tried again by the turn that looks at everything, which also reports it.
            self.retry_at = Some(now);
        }
        self.forget_at = self.dataplane.forget_connections_at(now);
    }

    /// Takes in the messages; says who waits, and what may have to be different now.
    fn absorb(&mut self, batch: Vec<Message>) -> (Waiting, Affected) {
        let mut waiting = Waiting::default();
        let mut affected = Affected::Nothing;
        for message in batch {
            let (input, made) = match message {
                Message::Input(input) => (input, None),
                Message::Apply(input, done) => {
                    waiting.applied.push((attached(&input), done));
                    (input, None)
                }
                Message::ApplyMade(input, made, done) => {
                    waiting.applied.push((attached(&input), done));
                    (input, Some(made))
                }
                Message::Kernel(news) => {
                    affected = affected.and(self.hear(&news));
                    continue;
                }
                Message::Find(id, answer) => {
                    let _unheard = answer.send(self.find(&id));
                    continue;
                }
                Message::Begin(id, answer) => {
                    let found = self.find(&id);
                    let is_coming = found.in_sync.datastore && found.endpoint.is_none();
                    let _unheard = answer.send(found);
                    if !is_coming {
                        continue;
                    }
                    (Input::Attaching(id), None)
                }
                Message::Inspect(id, answer) => {
                    waiting.inspect.push((id, answer));
                    affected = Affected::Everything;
                    continue;
                }
                Message::Readiness(answer) => {
                    waiting.readiness.push(answer);
                    continue;
                }
                Message::Plan(answer) => {
                    waiting.plan.push(answer);
                    continue;
                }
                Message::Status(answer) => {
                    waiting.status.push(answer);
                    continue;
                }
            };
            match (&input, made) {
                (Input::Attached { endpoint, .. }, Some(made)) => {
                    self.dataplane.note_made(&endpoint.host_interface, *made);
                }
                (Input::Attached { .. }, None) => self.dataplane.note(KernelChange::Links),
                _ => {}
            }
            let news = self.model.absorb(input);
            if let Affected::Workloads(touched) = &news {
                self.look_for_links_of(touched);
            }
            affected = affected.and(news);
        }
        (waiting, affected)
    }

    /// Notes what the kernel reports; says what may have to be different.
    fn hear(&mut self, news: &KernelNews) -> Affected {
        let matters = match news {
            KernelNews::Changed(change) => {
                self.dataplane.note(*change);
                // Which of the links changed is seen when they are read back.
                *change != KernelChange::Links
            }
            KernelNews::WorkloadLinks(news) => {
                let is_of_workload = |name: &str| has_workload(&self.model, name);
                self.dataplane.note_heard(news, is_of_workload)
            }
            KernelNews::Bounced(names) => {
                let is_of_workload = |name: &str| has_workload(&self.model, name);
                self.dataplane.note_bounced(names, is_of_workload)
            }
            KernelNews::WorkloadNeighbors(news) => {
                let learnt = self.dataplane.note_neighbors(news);
                return self.workloads_on(&learnt);
            }
        };
        if matters {
            Affected::Everything
        } else {
            Affected::Nothing
        }
    }

    /// The workloads with these host interfaces, as far as their MAC addresses are known.
    fn workloads_on(&self, interfaces: &BTreeSet<String>) -> Affected {
        let on_interfaces = interfaces
            .iter()
            .flat_map(|name| self.model.endpoints.on_interface(name));
        let touched: Vec<Endpoint> = on_interfaces
            .filter(|(_, endpoint)| endpoint.mac.is_some())
            .map(|(_, endpoint)| endpoint.clone())
            .collect();
        if touched.is_empty() {
            Affected::Nothing
        } else {
            Affected::Workloads(touched)
        }
    }

    /// A link that nobody told of, of a workload that is there, is looked for.
    fn look_for_links_of(&mut self, touched: &[Endpoint]) {
        let is_unknown = |endpoint: &&Endpoint| {
            let name = &endpoint.host_interface;
            !self.dataplane.has_link(name) && has_workload(&self.model, name)
        };
        if touched.iter().any(|endpoint| is_unknown(&endpoint)) {
            self.dataplane.note(KernelChange::Links);
        }
    }

    /// Reads the links back if some changed. What changed matters if it is about a workload or an uplink: pods' links that
    /// come and go with ADD and DEL are known before the kernel tells of them.
    fn links_matter(&mut self) -> bool {
        let is_of_workload = |name: &str| has_workload(&self.model, name);
        // What cannot be read is for the apply to report.
        self.dataplane.links_changed(is_of_workload).unwrap_or(true)
    }

    /// Tells what of these endpoints, and of the rules for all, is not as it should be. The turn then mends it.
    fn inspect(&mut self, asked: Vec<(EndpointId, oneshot::Sender<Vec<String>>)>) {
        if asked.is_empty() {
            return;
        }
        // What cannot be read is among what the plan could not read.
        if let Err(error) = self.observe() {
            debug!(%error, "cannot read the links");
        }
        let desired = desired::compute(&self.model);
        let (ops, unread) = self.dataplane.plan(&desired, self.model.in_sync);
        for (id, answer) in asked {
            let findings = match self.find(&id).endpoint {
                Some((_, endpoint)) => apply::findings_about(&endpoint, &ops, &unread),
                None => vec!["it is not known to the agent".to_owned()],
            };
            let _unheard = answer.send(findings);
        }
    }

    /// Pods came or went: only what follows from them is looked at, unless that does not do.
    fn follow(&mut self, touched: &[Endpoint], now: Instant) -> ApplyReport {
        for endpoint in touched {
            let name = &endpoint.host_interface;
            if self.dataplane.has_link(name) {
                self.model.links.insert(name.clone());
            } else {
                self.model.links.remove(name);
            }
        }
        let is_settled = self.retry_at.is_none() && self.dataplane.is_settled(self.model.in_sync);
        if is_settled && let Some(part) = desired::part(&self.model, touched) {
            let announcements = desired::announcements(&self.model);
            self.announce_only_what_is_wanted(&announcements);
            if let Some(report) = self.dataplane.apply_part(&part, self.model.in_sync) {
                self.announce(announcements);
                self.record(&report);
                return report;
            }
        }
        self.make_it_so(now)
    }

    fn make_it_so(&mut self, now: Instant) -> ApplyReport {
        // What cannot be read stays as it was; the apply below reads again and reports the failure.
        if let Err(error) = self.observe() {
            debug!(%error, "cannot read the links");
        }
        let desired = desired::compute(&self.model);
        self.announce_only_what_is_wanted(&desired.announcements);
        let report = self.dataplane.apply(&desired, self.model.in_sync, now);
        self.publish(&desired, &report);
        let phases = self.model.migrations.phases();
        self.outputs.migrations.send_if_modified(|current| {
            let is_other = current != phases;
            if is_other {
                current.clone_from(phases);
            }
            is_other
        });
        self.announce(desired.announcements);
        self.retry_at = report.retry_at;
        self.record(&report);
        report
    }

    /// Takes the node's links and addresses into the model.
    fn observe(&mut self) -> Result<(), KernelError> {
        let (links, addresses) = self.dataplane.observed()?;
        let mut is_new = self
            .model
            .observe(links.keys(), node_interfaces(links, addresses));
        if is_new {
            self.outputs
                .interfaces
                .send_replace(self.model.interfaces.clone());
        }
        let mut sources = BTreeMap::new();
        for target in &self.model.hints.reach {
            if let Some(source) = self.dataplane.source_towards(*target)? {
                sources.insert(*target, source);
            }
        }
        is_new |= replaced(&mut self.model.hints.sources, sources);
        if is_new {
            self.model.detect();
        }
        Ok(())
    }

    /// Tells the tasks around the node what is new. What it says of itself comes last: then it is true.
    fn publish(&self, desired: &Desired, report: &ApplyReport) {
        if !self.model.in_sync.datastore {
            return;
        }
        self.outputs
            .pod_mtu
            .send_if_modified(|mtu| replaced(mtu, desired.pod_mtu));
        let pools = Some(desired.tunnel_pools.clone());
        self.outputs
            .tunnel_pools
            .send_if_modified(|current| replaced(current, pools));
        let cluster_needed = Some(self.model.needs_cluster());
        self.outputs
            .cluster_needed
            .send_if_modified(|current| replaced(current, cluster_needed));
        // Others may use a tunnel as soon as they hear of it; until they are known, nothing that they send is let in.
        if self.model.in_sync.cluster && !report.has_tunnel_failure() {
            let published = Some(desired.published.clone());
            self.outputs
                .published
                .send_if_modified(|current| replaced(current, published));
        }
    }

    /// Withdraws before the routes go.
    fn announce_only_what_is_wanted(&self, wanted: &BTreeMap<IpNetwork, Announcement>) {
        self.outputs
            .announcements
            .send_if_modified(|current| match current {
                Some(prefixes) => {
                    let before = prefixes.len();
                    prefixes.retain(|prefix, _| wanted.contains_key(prefix));
                    prefixes.len() != before
                }
                None => false,
            });
    }

    fn announced(&self) -> BTreeSet<IpNetwork> {
        let announcements = self.outputs.announcements.borrow();
        announcements.iter().flat_map(BTreeMap::keys).copied().collect()
    }

    /// Announces after the routes are there.
    fn announce(&self, wanted: BTreeMap<IpNetwork, Announcement>) {
        if !self.model.in_sync.datastore {
            return;
        }
        let wanted = Some(wanted);
        self.outputs
            .announcements
            .send_if_modified(|current| replaced(current, wanted));
    }

    fn record(&mut self, report: &ApplyReport) {
        let DataplaneReport {
            turns,
            operations,
            last_operations,
            failures,
        } = &mut self.report;
        *turns = turns.saturating_add(1);
        *operations = self.dataplane.writes();
        if !report.ops.is_empty() {
            let shown = report.ops.iter().take(MAX_REPORTED_OPERATIONS);
            *last_operations = shown.map(ToString::to_string).collect();
            debug!(operations = report.ops.len(), "the kernel follows");
        }
        let failing: Vec<String> = report.failures.iter().map(ToString::to_string).collect();
        for failure in failing.iter().filter(|failure| !failures.contains(failure)) {
            warn!(%failure, "the kernel does not follow; trying again");
        }
        if failing.is_empty() && !failures.is_empty() {
            info!("the kernel follows again");
        }
        *failures = failing;
    }

    fn answer(&mut self, waiting: Waiting, report: Option<&ApplyReport>) {
        // Who gave up waiting is not there to be told; that is their business.
        for (endpoint, done) in waiting.applied {
            let _unheard =
                done.send(endpoint.map_or(Ok(()), |endpoint| self.is_reachable(&endpoint, report)));
        }
        for answer in waiting.readiness {
            let _unheard = answer.send(Readiness {
                in_sync: self.model.in_sync,
                pools: self.model.pools.len(),
                kernel_fails: !self.report.failures.is_empty(),
            });
        }
        for answer in waiting.plan {
            let plan = PlanReport::of(&mut self.dataplane, &mut self.model, AnsweredBy::Agent);
            let _unheard = answer.send(plan);
        }
        for answer in waiting.status {
            let _unheard = answer.send(NodeStatus {
                model: self.model.clone(),
                announced: self.announced(),
                dataplane: self.report.clone(),
            });
        }
    }

    fn is_reachable(&self, endpoint: &Endpoint, report: Option<&ApplyReport>) -> Result<(), NotApplied> {
        if !self.model.links.contains(&endpoint.host_interface) {
            return Err(NotApplied(format!(
                "link {} is not there",
                endpoint.host_interface
            )));
        }
        match report.and_then(|report| report.failure_of(endpoint)) {
            Some(failure) => Err(NotApplied(failure.to_string())),
            None => Ok(()),
        }
    }

    /// The endpoint with this identity; or, when its network's name had to be guessed, the one with the same container
    /// and interface.
    fn find(&self, id: &EndpointId) -> Found {
        let exactly = self.model.endpoints.get_key_value(id);
        let but_for_the_network = || {
            self.model
                .endpoints
                .of_container(&id.container_id)
                .find(|(known, _)| known.ifname == id.ifname)
        };
        let found = exactly.or_else(but_for_the_network);
        Found {
            endpoint: found.map(|(id, endpoint)| (id.clone(), endpoint.clone())),
            in_sync: self.model.in_sync,
        }
    }
}

/// Whether a workload has this host interface.
fn has_workload(model: &Model, host_interface: &str) -> bool {
    model.endpoints.on_interface(host_interface).next().is_some()
}

/// The endpoint that an input brings.
fn attached(input: &Input) -> Option<Endpoint> {
    match input {
        Input::Attached { endpoint, .. } => Some(endpoint.clone()),
        _ => None,
    }
}

/// Puts `new` in the place of `current`; whether that is a change.
fn replaced<T: PartialEq>(current: &mut T, new: T) -> bool {
    let is_other = *current != new;
    *current = new;
    is_other
}

#[cfg(test)]
mod tests;
