//! The hands: makes the kernel be as desired, and says what it did.
//!
//! [`Dataplane::apply`] reads back the kinds of objects marked dirty, computes the difference, carries it out in one
//! constant order (links, tunnels, sysctls, addresses, neighbours, rules, proxy neighbours that go, nexthop objects, routes, proxy
//! neighbours that come, then what is removed of nexthop objects, rules, neighbours, addresses and tunnels, nftables; within routes
//! creations ascending, then deletions descending) and remembers the result, so that a turn in which nothing changed asks the kernel nothing.
//! [`Dataplane::apply_part`] does the same for a few workloads without a look at the others.
//!
//! Invariants:
//! - Only what `ours.rs` calls ours is changed or deleted. A foreign route in the way is a failure that names it.
//! - While a source is not in sync, routes that follow from it are created only, never changed or deleted, and the
//!   nftables table is left alone: a restarted agent does not touch what is right.
//! - A failure never stops the rest, but for what depends on it: a rule, a nexthop group or a route goes when what takes its place is
//!   there. What failed is tried again after a delay that doubles from 100 ms to 30 s, at once if what is desired or observed of it
//!   changed, or if a link that is not a workload's changed.

mod addresses;
mod connections;
mod known_routes;
mod links;
mod neighbors;
mod nexthops;
mod nft;
mod nft_tables;
mod order;
mod part;
mod proxy_neighbors;
mod retry;
mod routes;
mod rules;
mod sysctl;
mod tunnels;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;
use tracing::debug;

use crate::delta::Change;
use crate::desired::{Desired, HostLink, LinkAddress, NeighborKey, ProxyNeighbor, RouteKey, RoutePath, Rule};
use crate::kernel::{
    AddressChange, Kernel, KernelChange, KernelError, Link, LinkNews, NeighborChange, NexthopChange,
    NftChange, NftFamily, ObservedNeighbor, ProxyNeighborChange, RouteChange, RuleChange, TunnelChange,
};
use crate::model::{Endpoint, InSync};
use crate::ours;
use crate::pod_link::HostEnd;
use order::Stage;

/// How often one `apply` looks: a device made anew takes one look more, and a failure on the way another.
const MAX_PASSES: usize = 3;
/// What a failure to forget tracked connections is called.
const CONNECTIONS: &str = "tracked connections";
/// When to try again to read what could not be read.
const UNREAD_RETRY: Duration = Duration::from_secs(1);

/// The kernel's objects that are ours, as last seen, and what is being tried again.
pub struct Dataplane<K> {
    kernel: K,
    links: links::Links,
    sysctls: sysctl::Sysctls,
    addresses: addresses::Addresses,
    neighbors: neighbors::Neighbors,
    proxy_neighbors: proxy_neighbors::ProxyNeighbors,
    routes: routes::Routes,
    rules: rules::Rules,
    nft: nft::Nft,
    connections: connections::Connections,
    retry: retry::Retry,
    writes: u64,
}

/// Links, and addresses by link.
pub type Observed<'a> = (&'a BTreeMap<String, Link>, &'a BTreeMap<String, Vec<IpNetwork>>);

/// One concrete operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// A host end is set up and given its MAC address.
    Link(Box<Change<String, HostLink, Link>>),
    /// A tunnel device is created, changed or removed.
    Tunnel(Box<TunnelChange>),
    /// A kernel parameter is written.
    Sysctl(Change<String, String>),
    /// An address of a tunnel device or of a host end is added or removed.
    Address(AddressChange),
    /// A neighbour is made, replaced or removed; or one that the kernel learnt is kept for good.
    Neighbor(NeighborChange),
    /// The node begins or ceases to answer for an address on a link.
    ProxyNeighbor(ProxyNeighborChange),
    /// A nexthop object is created, replaced or deleted.
    Nexthop(NexthopChange),
    /// A route is created, replaced or deleted.
    Route(RouteChange),
    /// A rule of routing policy is made or deleted.
    Rule(RuleChange),
    /// A table of nftables is replaced, or elements of its sets are changed.
    Nft(NftChange),
}

/// What an operation is about: one kernel object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// A host end, by name.
    Link(String),
    /// A tunnel device, by name.
    Tunnel(String),
    /// A kernel parameter, by path below `/proc/sys`.
    Sysctl(String),
    /// An address of a tunnel device or of a host end.
    Address(LinkAddress),
    /// A neighbour on a tunnel device or a host end.
    Neighbor(NeighborKey),
    /// An address that the node answers for.
    ProxyNeighbor(ProxyNeighbor),
    /// A nexthop object, by number.
    Nexthop(u32),
    /// A route.
    Route(RouteKey),
    /// A rule of routing policy.
    Rule(Rule),
    /// Our nftables table of a family.
    Nft(NftFamily),
}

/// Something that is not as desired, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What it is about: an object, or a kind that could not be read back.
    pub what: String,
    /// Why it failed, last time.
    pub reason: String,
    /// How often it failed in a row.
    pub attempts: u32,
    subject: Option<Subject>,
}

/// What one `apply` did.
#[derive(Debug, Clone, Default)]
pub struct ApplyReport {
    /// Operations carried out: every one is one write to the kernel that succeeded.
    pub ops: Vec<Op>,
    /// What is not as desired: tried now or earlier, and not yet right.
    pub failures: Vec<Failure>,
    /// When to call `apply` again even if nothing happens.
    pub retry_at: Option<Instant>,
}

impl<K: Kernel> Dataplane<K> {
    /// Knows nothing: the first use reads everything back.
    pub fn new(kernel: K) -> Self {
        Self {
            kernel,
            links: links::Links::default(),
            sysctls: sysctl::Sysctls::default(),
            addresses: addresses::Addresses::default(),
            neighbors: neighbors::Neighbors::default(),
            proxy_neighbors: proxy_neighbors::ProxyNeighbors::default(),
            routes: routes::Routes::default(),
            rules: rules::Rules::default(),
            nft: nft::Nft::default(),
            connections: connections::Connections::default(),
            retry: retry::Retry::default(),
            writes: 0,
        }
    }

    /// What changed is read back at the next use. To be called for what the netlink monitor reports, with
    /// [`KernelChange::Links`] when an endpoint was added, and every 90 s or so with [`KernelChange::Everything`].
    pub fn note(&mut self, change: KernelChange) {
        match change {
            KernelChange::Links => self.links.mark_dirty(),
            KernelChange::Routes => self.routes.mark_dirty(),
            KernelChange::Rules => self.rules.mark_dirty(),
            KernelChange::Addresses => {
                self.addresses.mark_dirty();
                // They go with a link's last address.
                self.proxy_neighbors.mark_dirty();
            }
            KernelChange::Neighbors => self.neighbors.mark_dirty(),
            KernelChange::Sysctls => self.sysctls.mark_dirty(),
            KernelChange::Nft => self.nft.mark_dirty(),
            KernelChange::Everything => {
                self.links.mark_dirty();
                self.sysctls.mark_dirty();
                self.addresses.mark_dirty();
                self.neighbors.mark_dirty();
                self.proxy_neighbors.mark_dirty();
                self.routes.mark_dirty();
                self.rules.mark_dirty();
                self.nft.mark_dirty();
            }
        }
    }

    /// A host end was made a moment ago, and this is how: it need not be read back.
    pub fn note_made(&mut self, host_interface: &str, made: HostEnd) {
        if let Some(changed) = self.links.made(host_interface, made.link) {
            self.links_differ(&changed);
        }
        self.sysctls.made(made.sysctls);
        // What could not be done for want of this link: its endpoint was heard of before, or it follows one of the same name.
        self.retry
            .try_again(|op| op.is_on_link(|name| name == host_interface));
    }

    /// Takes in what the kernel said of links with our prefix. Whether a workload's is gone; what else does not agree with what is
    /// known is read back at the next use.
    pub fn note_heard(
        &mut self,
        news: &BTreeMap<String, LinkNews>,
        is_of_workload: impl Fn(&str) -> bool,
    ) -> bool {
        let mut is_gone = false;
        for (name, news) in news {
            if let Some(changed) = self.links.heard(name, news, &is_of_workload) {
                self.links_differ(&changed);
                is_gone |= is_of_workload(name);
            }
        }
        is_gone
    }

    /// Takes in what the kernel said of neighbours on links with our prefix; `None`: gone. Returns the links on which there is
    /// something to keep, perhaps: to be followed by [`Self::apply_part`].
    pub fn note_neighbors(
        &mut self,
        news: &BTreeMap<NeighborKey, Option<ObservedNeighbor>>,
    ) -> BTreeSet<String> {
        self.neighbors.heard(news)
    }

    /// The links of the node, read back if dirty: for [`crate::model::Model::links`], before desired is computed.
    ///
    /// # Errors
    /// When the kernel cannot be asked; what was known before stays known.
    pub fn links(&mut self) -> Result<&BTreeMap<String, Link>, KernelError> {
        if let Some(changed) = self.links.read_back(&mut self.kernel)? {
            self.links_differ(&changed);
        }
        Ok(self.links.known())
    }

    /// The links and the addresses of the node, read back if dirty: for [`Model::observe`](crate::model::Model::observe).
    ///
    /// # Errors
    /// When the kernel cannot be asked; what was known before stays known.
    pub fn observed(&mut self) -> Result<Observed<'_>, KernelError> {
        self.links()?;
        let addresses = self.addresses.read_back(&mut self.kernel)?;
        Ok((self.links.known(), addresses))
    }

    /// The address that packets to `destination` would leave with now.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn source_towards(&mut self, destination: IpAddr) -> Result<Option<IpAddr>, KernelError> {
        self.kernel.source_towards(destination)
    }

    /// These links were down for a moment: the kernel has removed what was on them, for IPv4 without a word. Whether one of
    /// them `concerns`, or is no workload's.
    pub fn note_bounced(&mut self, names: &BTreeSet<String>, concerns: impl Fn(&str) -> bool) -> bool {
        let changed = links::LinksChanged::of(names.clone());
        self.links_differ(&changed);
        changed.matters(concerns)
    }

    /// Reads the links back if dirty. Whether one changed that `concerns`, or one that is no workload's.
    ///
    /// # Errors
    /// As [`Self::links`].
    pub fn links_changed(&mut self, concerns: impl Fn(&str) -> bool) -> Result<bool, KernelError> {
        let Some(changed) = self.links.read_back(&mut self.kernel)? else {
            return Ok(false);
        };
        self.links_differ(&changed);
        Ok(changed.matters(concerns))
    }

    fn links_differ(&mut self, changed: &links::LinksChanged) {
        self.sysctls.links_changed(changed);
        self.addresses.links_changed(changed);
        self.neighbors.links_changed(changed);
        self.proxy_neighbors.links_changed(changed);
        let gone = self.routes.links_changed(changed);
        self.connections.gone(gone);
        if changed.uplinks {
            self.retry.try_all_again();
        } else {
            // A pod's link was seen before it was up, and what leads to it was refused: who waits for the pod must not wait
            // for the delay too.
            self.retry
                .try_again(|op| op.is_on_link(|name| changed.names.contains(name)));
        }
    }

    /// When [`Self::forget_connections_of_gone`] is to be called, now being `now`; `None`: not at all.
    pub fn forget_connections_at(&mut self, now: Instant) -> Option<Instant> {
        self.connections.due_at(now)
    }

    /// Forgets tracked connections of addresses that have gone. Reads the kernel's whole table of them.
    ///
    /// # Errors
    /// When the kernel cannot be asked or refuses; the next use of the kernel tries again.
    pub fn forget_connections_of_gone(&mut self) -> Result<(), KernelError> {
        self.connections.gone_are_due();
        self.connections.forget(&mut self.kernel)
    }

    /// What `apply` would do, without doing it (dry run), and which kinds could not be read back.
    /// The kernel is read, not written.
    pub fn plan(&mut self, desired: &Desired, in_sync: InSync) -> (Vec<Op>, Vec<Failure>) {
        let mut ops = Vec::new();
        let mut unread = Vec::new();
        let mut collect = |kind: &str, result: Result<Vec<Op>, KernelError>| match result {
            // A full table is not moved.
            Ok(more) if ops.is_empty() => ops = more,
            Ok(more) => ops.extend(more),
            Err(error) => unread.push(Failure::unread(kind, &error)),
        };
        match self.links() {
            Ok(_) => {
                collect("links", Ok(self.links.difference(&desired.links)));
                collect(
                    "tunnels",
                    Ok(tunnels::difference(self.links.known(), desired, in_sync)),
                );
            }
            Err(error) => collect("links", Err(error)),
        }
        collect(
            "sysctls",
            self.sysctls.difference(&mut self.kernel, &desired.sysctls),
        );
        let ours = self.tunnels(desired);
        let links = self.links.known();
        let is_host_end = |name: &str| links.get(name).is_some_and(|link| link.is_ours(name));
        let is_ours = |name: &str| ours.contains(name) || is_host_end(name);
        collect(
            "addresses",
            self.addresses
                .difference(&mut self.kernel, desired, is_ours, in_sync),
        );
        let wanted = ours
            .into_iter()
            .filter(|name| desired.tunnels.contains_key(name))
            .collect();
        collect(
            "neighbors",
            self.neighbors
                .difference(&mut self.kernel, desired, &wanted, in_sync),
        );
        collect(
            "routes",
            self.routes.difference(&mut self.kernel, desired, in_sync),
        );
        let wanted = &desired.proxy_neighbors;
        collect(
            "proxy neighbors",
            self.proxy_neighbors.difference(&mut self.kernel, wanted, in_sync),
        );
        collect("rules", self.rules.difference(&mut self.kernel, desired, in_sync));
        if in_sync.datastore {
            collect(
                "nftables",
                self.nft.difference(&mut self.kernel, desired, in_sync),
            );
        }
        (order::in_order(ops), unread)
    }

    /// Makes the kernel be as desired, as far as the gates and the kernel allow.
    pub fn apply(&mut self, desired: &Desired, in_sync: InSync, now: Instant) -> ApplyReport {
        let mut report = ApplyReport::default();
        let mut failed = self.pass(desired, in_sync, now, &mut report);
        for _ in 1..MAX_PASSES {
            if !self.is_in_doubt(in_sync) {
                break;
            }
            // The kernel was not what it was believed to be, or is no longer. Look again: it may be right already.
            failed = self.pass(desired, in_sync, now, &mut report);
        }
        // What failed has a time of its own.
        let is_unsettled = failed.is_empty() && self.is_in_doubt(in_sync);
        for (op, reason) in self.explain(failed) {
            self.retry.failed(op, reason, now);
        }
        if !report.failures.is_empty() || is_unsettled {
            report.retry_at = Some(now + UNREAD_RETRY);
        }
        report.failures.extend(self.retry.failures());
        report.retry_at = report.retry_at.into_iter().chain(self.retry.earliest()).min();
        report
    }

    /// Number of successful writes since the start.
    pub fn writes(&self) -> u64 {
        self.writes
    }

    /// Reads back what is dirty, then carries out what is to be done now. Returns what failed.
    fn pass(
        &mut self,
        desired: &Desired,
        in_sync: InSync,
        now: Instant,
        report: &mut ApplyReport,
    ) -> Vec<(Op, KernelError)> {
        let (wanted, unread) = self.plan(desired, in_sync);
        report.failures = unread;
        let ops = self.retry.due(wanted, now);
        self.perform(ops, report)
    }

    /// Carries operations out and returns what failed.
    fn perform(&mut self, mut ops: Vec<Op>, report: &mut ApplyReport) -> Vec<(Op, KernelError)> {
        self.connections.before(&ops);
        self.forget_connections(report);
        let mut results = self.carry_out(&ops).into_iter();
        let mut errors = Vec::new();
        let mut has_failed = |_: &mut Op| match results.next() {
            Some(Err(error)) => {
                errors.push(error);
                true
            }
            _ => false,
        };
        let failed: Vec<Op> = ops.extract_if(.., &mut has_failed).collect();
        for op in &ops {
            debug!(%op, "wrote to the kernel");
            self.writes += 1;
            self.retry.succeeded(op);
            self.connections.after(op);
        }
        if report.ops.is_empty() {
            report.ops = ops;
        } else {
            report.ops.append(&mut ops);
        }
        self.forget_connections(report);
        failed.into_iter().zip(errors).collect()
    }

    fn forget_connections(&mut self, report: &mut ApplyReport) {
        if let Err(error) = self.connections.forget(&mut self.kernel) {
            report.failures.retain(|failure| failure.what != CONNECTIONS);
            report.failures.push(Failure::unread(CONNECTIONS, &error));
        }
    }

    /// Carries operations out that are in order, neighbours, nexthop objects and routes in batches, and records in the caches what came
    /// of it: one result an operation.
    fn carry_out(&mut self, ops: &[Op]) -> Vec<Result<(), KernelError>> {
        let mut results = Vec::new();
        let mut rest = ops;
        while let Some(first) = rest.first() {
            let this = Stage::of(first);
            let (stage, later) = rest.split_at(rest.partition_point(|op| Stage::of(op) <= this));
            rest = later;
            // A stage has one kind of operations.
            match first {
                Op::Neighbor(_) => {
                    let changes: Vec<NeighborChange> =
                        stage.iter().filter_map(Op::as_neighbor).cloned().collect();
                    results.extend(self.neighbors.carry_out(&mut self.kernel, &changes));
                }
                Op::ProxyNeighbor(_) => {
                    let changes: Vec<ProxyNeighborChange> =
                        stage.iter().filter_map(Op::as_proxy_neighbor).cloned().collect();
                    results.extend(self.proxy_neighbors.carry_out(&mut self.kernel, &changes));
                }
                Op::Nexthop(_) => {
                    let changes: Vec<NexthopChange> =
                        stage.iter().filter_map(Op::as_nexthop).cloned().collect();
                    results.extend(self.routes.carry_out_nexthops(&mut self.kernel, &changes));
                }
                Op::Route(_) => {
                    let changes: Vec<&RouteChange> = stage.iter().filter_map(Op::as_route).collect();
                    let is_looked_up = |is_ipv6, table| self.rules.lead_to(is_ipv6, table);
                    let more = self.routes.carry_out(&mut self.kernel, &changes, is_looked_up);
                    if results.is_empty() {
                        // Of a full table there are many.
                        results = more;
                    } else {
                        results.extend(more);
                    }
                }
                Op::Nft(_) => {
                    let changes: Vec<NftChange> = stage.iter().filter_map(Op::as_nft).cloned().collect();
                    results.extend(self.nft.carry_out(&mut self.kernel, &changes));
                }
                _ => results.extend(stage.iter().filter_map(|op| self.carry_out_alone(op))),
            }
        }
        results
    }

    /// `None` for what is carried out in batches.
    fn carry_out_alone(&mut self, op: &Op) -> Option<Result<(), KernelError>> {
        match op {
            Op::Link(change) => {
                // With a new MAC address the kernel forgets the link's neighbours.
                self.neighbors.forget(change.key());
                Some(self.links.carry_out(&mut self.kernel, change))
            }
            Op::Tunnel(change) => Some(self.change_tunnel(change)),
            Op::Sysctl(change) => Some(self.sysctls.carry_out(&mut self.kernel, change)),
            Op::Address(change) => Some(self.change_address(change)),
            Op::Rule(change) => {
                let has_routes = |is_ipv6, table| self.routes.may_have_some_in(is_ipv6, table);
                Some(self.rules.carry_out(&mut self.kernel, change, has_routes))
            }
            Op::Neighbor(_) | Op::ProxyNeighbor(_) | Op::Nexthop(_) | Op::Route(_) | Op::Nft(_) => None,
        }
    }

    fn change_address(&mut self, change: &AddressChange) -> Result<(), KernelError> {
        if matches!(change, Change::Delete { .. }) {
            // With the last address of a family the kernel forgets the routes and neighbours of a link, and says so of neither.
            self.neighbors.mark_dirty();
            self.routes.mark_dirty();
        }
        self.addresses.carry_out(&mut self.kernel, change)
    }

    fn change_tunnel(&mut self, change: &TunnelChange) -> Result<(), KernelError> {
        let (result, effect) = tunnels::carry_out(&mut self.kernel, change);
        // What a device has become, also in part, is seen by looking.
        self.links.mark_dirty();
        if effect == tunnels::Effect::New {
            self.sysctls.forget(change.key());
            self.addresses.mark_dirty();
            self.neighbors.mark_dirty();
            self.routes.mark_dirty();
        }
        result
    }

    /// Names of the tunnel devices that are there and ours to keep right or to remove.
    fn tunnels(&self, desired: &Desired) -> BTreeSet<String> {
        let links = self.links.known().iter();
        links
            .filter(|(name, link)| {
                (desired.tunnels.contains_key(*name) && link.transport.is_some())
                    || (!desired.undecided_tunnels.contains(*name) && link.is_our_tunnel(name))
            })
            .map(|(name, _)| name.clone())
            .collect()
    }

    fn is_in_doubt(&self, in_sync: InSync) -> bool {
        self.links.is_dirty()
            || self.addresses.is_dirty()
            || self.neighbors.is_dirty()
            || self.proxy_neighbors.is_dirty()
            || self.routes.is_dirty()
            || self.rules.is_dirty()
            || (in_sync.datastore && self.nft.is_dirty())
    }

    /// Turns errors into words. Where a route of somebody else is in the way, that route is named.
    fn explain(&mut self, failed: Vec<(Op, KernelError)>) -> Vec<(Op, String)> {
        let blocked: BTreeSet<RouteKey> = failed
            .iter()
            .filter_map(|(op, error)| match op {
                Op::Route(change) if error.errno() == Some(libc::EEXIST) => Some(change.key().clone()),
                _ => None,
            })
            .collect();
        let foreign = if blocked.is_empty() {
            BTreeMap::new()
        } else {
            self.kernel.foreign_routes(&blocked).unwrap_or_default()
        };
        failed
            .into_iter()
            .map(|(op, error)| {
                let in_the_way = match &op {
                    Op::Route(change) => foreign.get(change.key()),
                    _ => None,
                };
                let reason = match in_the_way {
                    Some(route) => format!(
                        "a route that is not ours is in the way and stays: {}",
                        route.described
                    ),
                    None => error.to_string(),
                };
                (op, reason)
            })
            .collect()
    }
}

/// What of a plan is about the workload or about the rules for all, in words: its link, its parameters, its routes, nftables.
#[must_use]
pub fn findings_about(endpoint: &Endpoint, ops: &[Op], unread: &[Failure]) -> Vec<String> {
    let about = |op: &&Op| is_about(endpoint, &op.subject()) || matches!(op, Op::Nft(_));
    let to_do = ops
        .iter()
        .filter(about)
        .map(|op| format!("not as it should be: {op}"));
    to_do.chain(unread.iter().map(ToString::to_string)).collect()
}

fn is_about(endpoint: &Endpoint, subject: &Subject) -> bool {
    let interface = &endpoint.host_interface;
    match subject {
        Subject::Link(name) => name == interface,
        Subject::Sysctl(path) => sysctl::interface_of(path) == Some(interface),
        Subject::Route(key) => endpoint
            .addresses
            .iter()
            .any(|address| key.destination == IpNetwork::from(*address)),
        Subject::Neighbor(key) => key.interface == *interface,
        Subject::Address(address) => address.interface == *interface,
        Subject::ProxyNeighbor(proxy) => endpoint.addresses.contains(&proxy.address),
        Subject::Tunnel(_) | Subject::Nexthop(_) | Subject::Rule(_) => false,
        // Closed until it is known there.
        Subject::Nft(family) => *family == NftFamily::Inet,
    }
}

impl ApplyReport {
    /// Whether a tunnel device or its address is not as desired, or not known to be.
    #[must_use]
    pub fn has_tunnel_failure(&self) -> bool {
        self.failures.iter().any(|failure| match &failure.subject {
            None | Some(Subject::Tunnel(_)) => true,
            Some(Subject::Address(address)) => ours::TUNNELS.contains(&address.interface.as_str()),
            Some(Subject::Neighbor(key)) => ours::TUNNELS.contains(&key.interface.as_str()),
            Some(_) => false,
        })
    }

    /// What keeps the workload from being reached: a failure of its link, its parameters, its routes or the nftables table
    /// that lets its packets in.
    #[must_use]
    pub fn failure_of(&self, endpoint: &Endpoint) -> Option<&Failure> {
        self.failures.iter().find(|failure| match &failure.subject {
            // A kind could not be read back: nothing is known to be right.
            None => true,
            Some(subject) => is_about(endpoint, subject),
        })
    }
}

impl Op {
    /// Whether it sets up one of these links of workloads, or leads to it.
    fn is_on_link(&self, is_one: impl Fn(&str) -> bool) -> bool {
        match self {
            Self::Link(change) => is_one(change.key()),
            Self::Sysctl(change) => sysctl::interface_of(change.key()).is_some_and(is_one),
            Self::Address(change) => is_one(&change.key().interface),
            Self::Route(Change::Create { value: route, .. } | Change::Replace { to: route, .. }) => {
                matches!(&route.path, RoutePath::Link { interface } if is_one(interface))
            }
            _ => false,
        }
    }

    /// What it is about.
    #[must_use]
    pub fn subject(&self) -> Subject {
        match self {
            Self::Link(change) => Subject::Link(change.key().clone()),
            Self::Tunnel(change) => Subject::Tunnel(change.key().clone()),
            Self::Sysctl(change) => Subject::Sysctl(change.key().clone()),
            Self::Address(change) => Subject::Address(change.key().clone()),
            Self::Neighbor(change) => Subject::Neighbor(change.key().clone()),
            Self::ProxyNeighbor(change) => Subject::ProxyNeighbor(change.key().clone()),
            Self::Nexthop(change) => Subject::Nexthop(*change.key()),
            Self::Route(change) => Subject::Route(change.key().clone()),
            Self::Rule(change) => Subject::Rule(change.key().clone()),
            Self::Nft(change) => Subject::Nft(change.family),
        }
    }
}

impl Failure {
    fn unread(kind: &str, error: &KernelError) -> Self {
        Self {
            what: kind.to_owned(),
            reason: error.to_string(),
            attempts: 1,
            subject: None,
        }
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Link(change) => write!(f, "link: {change}"),
            Self::Tunnel(change) => write!(f, "tunnel: {change}"),
            Self::Address(Change::Delete { key, .. }) => write!(f, "address: delete {key}"),
            Self::Address(change) => write!(f, "address: create {}", change.key()),
            Self::Neighbor(change) => write!(f, "neighbor: {change}"),
            Self::ProxyNeighbor(Change::Delete { key, .. }) => write!(f, "proxy neighbor: delete {key}"),
            Self::ProxyNeighbor(change) => write!(f, "proxy neighbor: create {}", change.key()),
            Self::Sysctl(change) => write!(f, "sysctl: {change}"),
            Self::Nexthop(change) => write!(f, "nexthop: {change}"),
            Self::Route(change) => write!(f, "route: {change}"),
            Self::Rule(Change::Delete { key, .. }) => write!(f, "rule: delete {key}"),
            Self::Rule(change) => write!(f, "rule: create {}", change.key()),
            Self::Nft(change) => write!(f, "nft: {change}"),
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Link(name) => write!(f, "link {name}"),
            Self::Tunnel(name) => write!(f, "tunnel {name}"),
            Self::Address(address) => write!(f, "address {address}"),
            Self::Neighbor(key) => write!(f, "neighbor {key}"),
            Self::ProxyNeighbor(key) => write!(f, "proxy neighbor {key}"),
            Self::Sysctl(path) => write!(f, "sysctl {path}"),
            Self::Nexthop(id) => write!(f, "nexthop {id}"),
            Self::Route(key) => write!(f, "route {key}"),
            Self::Rule(rule) => write!(f, "rule {rule}"),
            Self::Nft(family) => write!(f, "nftables table {family} {}", ours::NFT_TABLE),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} (attempt {})", self.what, self.reason, self.attempts)
    }
}

#[cfg(test)]
mod nexthop_tests;
#[cfg(test)]
mod overlay_tests;
#[cfg(test)]
mod part_tests;
#[cfg(test)]
mod proxy_neighbor_tests;
#[cfg(test)]
mod rule_tests;
#[cfg(test)]
mod tests;
