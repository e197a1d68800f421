//! Facts about a turn, on a kernel in memory.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::rc::Rc;

use super::*;
use crate::delta::Change;
use crate::desired::Announcement;
use crate::desired::{HostLink, NeighborKey, ProxyNeighbor, RouteKey, Rule};
use crate::kernel::fake::{FakeKernel, Fault, foreign};
use crate::kernel::{
    AddressChange, ConnectionFilter, ForeignRoute, KernelError, Link, LinkNews, Maker, NeighborChange,
    NexthopChange, NftChange, NftFamily, NftTables, ObservedNeighbor, ObservedRoute, ProxyNeighborChange,
    RouteChange, RuleChange, SeenNexthops, TunnelChange,
};
use crate::model::{
    Cluster, DatastoreSnapshot, Encapsulation, HostPort, Learned, NextHop, Pool, Protocol, TunnelKind,
};

type Announced = Option<BTreeMap<IpNetwork, Announcement>>;

/// A kernel that outlives its node, and sees what is announced while routes change.
#[derive(Clone)]
struct Shared {
    kernel: Rc<RefCell<FakeKernel>>,
    announced: Rc<RefCell<Option<watch::Receiver<Announced>>>>,
    /// Each change of a route, and whether its prefix was announced at that moment.
    changes: Rc<RefCell<Vec<(String, bool)>>>,
}

impl Kernel for Shared {
    fn links(&mut self) -> Result<BTreeMap<String, Link>, KernelError> {
        self.kernel.borrow_mut().links()
    }

    fn link(&mut self, name: &str) -> Result<Option<Link>, KernelError> {
        self.kernel.borrow_mut().link(name)
    }

    fn set_link(&mut self, name: &str, link: HostLink) -> Result<(), KernelError> {
        self.kernel.borrow_mut().set_link(name, link)
    }

    fn change_tunnel(&mut self, change: &TunnelChange) -> Result<(), KernelError> {
        self.kernel.borrow_mut().change_tunnel(change)
    }

    fn addresses(&mut self) -> Result<BTreeMap<String, Vec<IpNetwork>>, KernelError> {
        self.kernel.borrow_mut().addresses()
    }

    fn change_address(&mut self, change: &AddressChange) -> Result<(), KernelError> {
        self.kernel.borrow_mut().change_address(change)
    }

    fn neighbors(&mut self) -> Result<BTreeMap<NeighborKey, ObservedNeighbor>, KernelError> {
        self.kernel.borrow_mut().neighbors()
    }

    fn change_neighbors(&mut self, changes: &[NeighborChange]) -> Vec<Result<(), KernelError>> {
        self.kernel.borrow_mut().change_neighbors(changes)
    }

    fn proxy_neighbors(&mut self) -> Result<BTreeMap<ProxyNeighbor, Maker>, KernelError> {
        self.kernel.borrow_mut().proxy_neighbors()
    }

    fn change_proxy_neighbors(&mut self, changes: &[ProxyNeighborChange]) -> Vec<Result<(), KernelError>> {
        self.kernel.borrow_mut().change_proxy_neighbors(changes)
    }

    fn source_towards(&mut self, destination: IpAddr) -> Result<Option<IpAddr>, KernelError> {
        self.kernel.borrow_mut().source_towards(destination)
    }

    fn routes(&mut self) -> Result<BTreeMap<RouteKey, ObservedRoute>, KernelError> {
        self.kernel.borrow_mut().routes()
    }

    fn foreign_routes(
        &mut self,
        keys: &BTreeSet<RouteKey>,
    ) -> Result<BTreeMap<RouteKey, ForeignRoute>, KernelError> {
        self.kernel.borrow_mut().foreign_routes(keys)
    }

    fn change_routes(&mut self, changes: &[&RouteChange]) -> Vec<Result<(), KernelError>> {
        let announced = self
            .announced
            .borrow()
            .as_ref()
            .and_then(|it| it.borrow().clone())
            .unwrap_or_default();
        for change in changes {
            let verb = match change {
                Change::Create { .. } => "create",
                Change::Replace { .. } => "replace",
                Change::Delete { .. } => "delete",
            };
            let destination = change.key().destination;
            let is_announced = announced.contains_key(&destination);
            self.changes
                .borrow_mut()
                .push((format!("{verb} {destination}"), is_announced));
        }
        self.kernel.borrow_mut().change_routes(changes)
    }

    fn rules(&mut self) -> Result<BTreeSet<Rule>, KernelError> {
        self.kernel.borrow_mut().rules()
    }

    fn change_rule(&mut self, change: &RuleChange) -> Result<(), KernelError> {
        self.kernel.borrow_mut().change_rule(change)
    }

    fn nexthops(&mut self) -> Result<SeenNexthops, KernelError> {
        self.kernel.borrow_mut().nexthops()
    }

    fn change_nexthops(&mut self, changes: &[NexthopChange]) -> Vec<Result<(), KernelError>> {
        self.kernel.borrow_mut().change_nexthops(changes)
    }

    fn sysctl(&mut self, path: &str) -> Result<Option<String>, KernelError> {
        self.kernel.borrow_mut().sysctl(path)
    }

    fn set_sysctl(&mut self, path: &str, value: &str) -> Result<(), KernelError> {
        self.kernel.borrow_mut().set_sysctl(path, value)
    }

    fn forget_connections(&mut self, filter: &ConnectionFilter) -> Result<usize, KernelError> {
        self.kernel.borrow_mut().forget_connections(filter)
    }

    fn nft_tables(&mut self) -> Result<NftTables, KernelError> {
        self.kernel.borrow_mut().nft_tables()
    }

    fn our_nft_tables(&mut self) -> Result<Vec<NftFamily>, KernelError> {
        self.kernel.borrow_mut().our_nft_tables()
    }

    fn delete_nft_table(&mut self, family: NftFamily) -> Result<(), KernelError> {
        self.kernel.borrow_mut().delete_nft_table(family)
    }

    fn change_nft(&mut self, changes: &[NftChange]) -> Result<(), KernelError> {
        self.kernel.borrow_mut().change_nft(changes)
    }

    fn delete_link(&mut self, name: &str, index: u32) -> Result<(), KernelError> {
        self.kernel.borrow_mut().delete_link(name, index)
    }
}

/// A node, its kernel, and the time.
struct World {
    shared: Shared,
    node: Node<Shared>,
    announced: watch::Receiver<Announced>,
    now: Instant,
}

const READ_BACK: Duration = Duration::from_secs(90);

impl World {
    fn new() -> Self {
        let shared = Shared {
            kernel: Rc::default(),
            announced: Rc::default(),
            changes: Rc::default(),
        };
        for path in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
            shared
                .kernel
                .borrow_mut()
                .sysctls
                .insert(path.to_owned(), "0".to_owned());
        }
        Self::on(shared, crate::clock::now())
    }

    fn on(shared: Shared, now: Instant) -> Self {
        let (announcements, announced) = watch::channel(None);
        *shared.announced.borrow_mut() = Some(announced.clone());
        let outputs = Outputs {
            announcements,
            published: watch::channel(None).0,
            tunnel_pools: watch::channel(None).0,
            cluster_needed: watch::channel(None).0,
            pod_mtu: watch::channel(0).0,
            migrations: watch::channel(BTreeMap::new()).0,
            interfaces: watch::channel(BTreeMap::new()).0,
        };
        let node = Node::new(Model::new("n".into()), shared.clone(), outputs, READ_BACK, now);
        Self {
            shared,
            node,
            announced,
            now,
        }
    }

    /// The process dies and another one starts.
    fn restarted(self) -> Self {
        Self::on(self.shared, self.now)
    }

    fn tell(&mut self, inputs: impl IntoIterator<Item = Input>) {
        self.node
            .turn(inputs.into_iter().map(Message::Input).collect(), self.now);
    }

    fn hear(&mut self, news: KernelNews) {
        self.node.turn(vec![Message::Kernel(news)], self.now);
    }

    fn apply(&mut self, input: Input) -> Result<(), NotApplied> {
        let (done, mut applied) = oneshot::channel();
        self.node.turn(vec![Message::Apply(input, done)], self.now);
        applied.try_recv().unwrap()
    }

    fn find(&mut self, id: EndpointId) -> Found {
        let (answer, mut found) = oneshot::channel();
        self.node.turn(vec![Message::Find(id, answer)], self.now);
        found.try_recv().unwrap()
    }

    fn announced(&self) -> Option<Vec<String>> {
        self.announced
            .borrow()
            .as_ref()
            .map(|prefixes| prefixes.keys().map(ToString::to_string).collect())
    }

    fn routes(&self) -> Vec<String> {
        self.shared
            .kernel
            .borrow()
            .routes
            .keys()
            .map(|key| key.destination.to_string())
            .collect()
    }

    fn writes(&self) -> usize {
        self.shared.kernel.borrow().writes
    }

    /// A node with everything in sync, one block, one endpoint and one learned route.
    fn settled() -> Self {
        let mut world = Self::new();
        world.shared.kernel.borrow_mut().add_link("cali1");
        world.tell([snapshot(), learned(), Input::BgpInSync]);
        assert_eq!(world.routes(), ["10.0.0.0/26", "10.0.0.1/32", "10.9.0.0/26"]);
        world
    }
}

fn id(container: &str) -> EndpointId {
    EndpointId {
        network: "net".into(),
        container_id: container.into(),
        ifname: "eth0".into(),
    }
}

fn endpoint() -> Endpoint {
    Endpoint {
        host_interface: "cali1".into(),
        addresses: BTreeSet::from(["10.0.0.1".parse().unwrap()]),
        mac: None,
        namespace: None,
        pod: None,
        ..Endpoint::default()
    }
}

fn attached() -> Input {
    let claimed_blocks = BTreeSet::from(["10.0.0.0/26".parse().unwrap()]);
    Input::Attached {
        id: id("a"),
        endpoint: endpoint(),
        claimed_blocks,
    }
}

fn snapshot() -> Input {
    let pool = Pool {
        cidr: "10.0.0.0/8".parse().unwrap(),
        nat_outgoing: true,
        encapsulation: Encapsulation::None,
        disable_bgp_export: false,
    };
    Input::DatastoreSnapshot(DatastoreSnapshot {
        pools: BTreeMap::from([("p".into(), pool)]),
        own_blocks: BTreeSet::from(["10.0.0.0/26".parse().unwrap()]),
        endpoints: BTreeMap::from([(id("a"), endpoint())]),
        ..DatastoreSnapshot::default()
    })
}

fn learned() -> Input {
    let next_hop = NextHop {
        address: "192.0.2.1".parse().unwrap(),
        interface: None,
    };
    Input::Learned(BTreeMap::from([(
        "10.9.0.0/26".parse().unwrap(),
        Learned::via(BTreeSet::from([next_hop])),
    )]))
}

#[test]
fn nothing_is_announced_before_the_datastore_is_known() {
    let mut world = World::new();
    world.tell([
        Input::OwnBlockConfirmed("10.0.0.0/26".parse().unwrap()),
        Input::BgpInSync,
    ]);
    assert_eq!(world.announced(), None);
    world.tell([snapshot()]);
    assert_eq!(world.announced(), Some(vec!["10.0.0.0/26".to_owned()]));
}

#[test]
fn a_block_is_announced_after_its_route_is_there_and_withdrawn_before_it_goes() {
    let mut world = World::new();
    world.tell([snapshot()]);
    world.tell([Input::OwnBlockGone("10.0.0.0/26".parse().unwrap())]);
    let of_block = |(change, is_announced): &(String, bool)| {
        change
            .contains("10.0.0.0/26")
            .then(|| (change.clone(), *is_announced))
    };
    let changes: Vec<(String, bool)> = world
        .shared
        .changes
        .borrow()
        .iter()
        .filter_map(of_block)
        .collect();
    assert_eq!(
        changes,
        [
            ("create 10.0.0.0/26".to_owned(), false),
            ("delete 10.0.0.0/26".to_owned(), false)
        ]
    );
    assert_eq!(world.announced(), Some(Vec::new()));
}

#[test]
fn an_attachment_is_answered_when_its_route_is_there() {
    let mut world = World::new();
    world.tell([Input::DatastoreSnapshot(DatastoreSnapshot::default())]);
    world.shared.kernel.borrow_mut().add_link("cali1");
    assert_eq!(world.apply(attached()), Ok(()));
    assert_eq!(world.routes(), ["10.0.0.0/26", "10.0.0.1/32"]);
    assert_eq!(world.apply(Input::Detached(id("a"))), Ok(()));
    assert_eq!(world.routes(), ["10.0.0.0/26"]);
}

#[test]
fn an_attachment_without_its_route_is_answered_with_the_reason() {
    let mut world = World::new();
    world.tell([Input::DatastoreSnapshot(DatastoreSnapshot::default())]);
    assert_eq!(
        world.apply(attached()),
        Err(NotApplied("link cali1 is not there".to_owned()))
    );

    let mut world = World::new();
    world.tell([Input::DatastoreSnapshot(DatastoreSnapshot::default())]);
    world.shared.kernel.borrow_mut().add_link("cali1");
    let key = RouteKey::main("10.0.0.1/32".parse().unwrap());
    world
        .shared
        .kernel
        .borrow_mut()
        .foreign
        .insert(key, foreign("via 192.0.2.77 proto static"));
    let NotApplied(why) = world.apply(attached()).unwrap_err();
    assert!(
        why.contains("10.0.0.1/32") && why.contains("via 192.0.2.77 proto static"),
        "{why}"
    );
}

#[test]
fn a_restarted_process_writes_nothing_when_all_is_right() {
    let world = World::settled();
    let writes = world.writes();
    let mut world = world.restarted();
    for inputs in [
        vec![],
        vec![attached()],
        vec![snapshot()],
        vec![learned()],
        vec![Input::BgpInSync],
    ] {
        world.tell(inputs);
        assert_eq!(world.writes(), writes);
    }
    assert_eq!(world.announced(), Some(vec!["10.0.0.0/26".to_owned()]));
}

#[test]
fn a_restarted_process_removes_what_is_stale_only_when_it_knows() {
    let mut world = World::settled().restarted();
    world.tell([Input::DatastoreSnapshot(DatastoreSnapshot::default())]);
    assert_eq!(world.routes(), ["10.9.0.0/26"], "what BGP learned waits for BGP");
    world.tell([Input::BgpInSync]);
    assert_eq!(world.routes(), [""; 0]);

    let mut world = World::settled().restarted();
    world.tell([Input::BgpInSync]);
    assert_eq!(
        world.routes(),
        ["10.0.0.0/26", "10.0.0.1/32"],
        "what the datastore says waits for it"
    );
}

#[test]
fn what_failed_is_tried_again_at_its_time() {
    let mut world = World::new();
    world.shared.kernel.borrow_mut().add_link("cali1");
    world.tell([]);
    let calls = world.shared.kernel.borrow().calls;
    world.shared.kernel.borrow_mut().fault = Some((calls + 3, Fault::Refused));
    world.tell([snapshot()]);
    let mut turns = 0;
    while world.node.deadline() < world.node.read_back_at {
        world.now = world.node.deadline();
        world.tell([]);
        turns += 1;
        assert!(turns < 20, "{:?}", world.node.report.failures);
    }
    assert_eq!(world.routes(), ["10.0.0.0/26", "10.0.0.1/32"]);
    assert_eq!(world.node.report.failures, [""; 0]);
}

#[test]
fn everything_is_read_back_from_time_to_time() {
    let mut world = World::settled();
    world.shared.kernel.borrow_mut().routes.clear();
    world.tell([]);
    assert_eq!(world.routes(), [""; 0], "nobody said that anything changed");
    world.now = world.node.deadline();
    world.tell([]);
    assert_eq!(world.routes().len(), 3);
    assert_eq!(world.node.deadline(), world.now + READ_BACK);
}

#[test]
fn a_reported_change_is_repaired_at_once() {
    let mut world = World::settled();
    world.shared.kernel.borrow_mut().routes.clear();
    world.hear(KernelNews::Changed(KernelChange::Routes));
    assert_eq!(world.routes().len(), 3);
}

#[test]
fn an_endpoint_is_found_by_identity_or_else_by_container() {
    let mut world = World::settled();
    assert_eq!(world.find(id("a")).endpoint, Some((id("a"), endpoint())));
    let other_network = EndpointId {
        network: "guessed".into(),
        ..id("a")
    };
    assert_eq!(world.find(other_network).endpoint, Some((id("a"), endpoint())));
    let other_interface = EndpointId {
        ifname: "net1".into(),
        ..id("a")
    };
    assert_eq!(world.find(other_interface).endpoint, None);
    assert_eq!(world.find(id("b")).endpoint, None);
}

#[test]
fn questions_alone_do_not_disturb_the_kernel() {
    let mut world = World::settled();
    let calls = world.shared.kernel.borrow().calls;
    world.find(id("a"));
    let (answer, mut status) = oneshot::channel();
    world.node.turn(vec![Message::Status(answer)], world.now);
    let status = status.try_recv().unwrap();
    assert_eq!(status.model.endpoints.len(), 1);
    assert_eq!(status.announced.len(), 1);
    assert!(status.dataplane.operations > 0);
    assert_eq!(world.shared.kernel.borrow().calls, calls);
}

fn of_link(name: &str, news: LinkNews) -> KernelNews {
    KernelNews::WorkloadLinks([(name.to_owned(), news)].into())
}

#[test]
fn what_the_kernel_says_of_links_costs_no_reading_back_where_it_was_expected() {
    let mut world = World::settled();
    let (calls, link) = {
        let kernel = world.shared.kernel.borrow();
        (kernel.calls, kernel.links["cali1"].clone())
    };
    world.hear(of_link("cali1", LinkNews::Seen(link.clone())));
    world.hear(of_link("cali1", LinkNews::Gone(link.index + 7)));
    // Nobody's.
    world.shared.kernel.borrow_mut().add_link("cali2");
    let other = world.shared.kernel.borrow().links["cali2"].clone();
    world.hear(of_link("cali2", LinkNews::Seen(other)));
    world.hear(of_link("cali3", LinkNews::Gone(99)));
    assert_eq!(world.shared.kernel.borrow().calls, calls);

    // Somebody's now: it is found, although nobody told of it again.
    let of_other = Endpoint {
        host_interface: "cali2".into(),
        addresses: BTreeSet::from(["10.0.0.2".parse().unwrap()]),
        ..endpoint()
    };
    world.tell([Input::EndpointSeen(id("b"), of_other)]);
    assert!(
        world.routes().contains(&"10.0.0.2/32".to_owned()),
        "{:?}",
        world.routes()
    );
}

#[test]
fn a_workloads_link_that_is_gone_or_another_one_is_followed() {
    let mut world = World::settled();
    let index = world.shared.kernel.borrow().links["cali1"].index;
    world.shared.kernel.borrow_mut().remove_link("cali1");
    world.hear(of_link("cali1", LinkNews::Gone(index)));
    assert_eq!(world.routes(), ["10.0.0.0/26", "10.9.0.0/26"]);
    world.shared.kernel.borrow_mut().add_link("cali0");
    world.shared.kernel.borrow_mut().add_link("cali1");
    let again = world.shared.kernel.borrow().links["cali1"].clone();
    world.hear(of_link("cali1", LinkNews::Seen(again)));
    assert_eq!(world.routes(), ["10.0.0.0/26", "10.0.0.1/32", "10.9.0.0/26"]);
}

#[test]
fn connections_of_an_address_that_goes_are_forgotten_later_but_before_anybody_gets_it() {
    let forgotten = |world: &World| -> Vec<usize> {
        let kernel = world.shared.kernel.borrow();
        kernel
            .forgotten
            .iter()
            .map(|filter| filter.addresses.len())
            .collect()
    };
    let pod = |number: u8| {
        let endpoint = Endpoint {
            host_interface: format!("cali{number}"),
            addresses: BTreeSet::from([IpAddr::from([10, 0, 0, number])]),
            ..endpoint()
        };
        Input::EndpointSeen(id(&number.to_string()), endpoint)
    };
    let gone = |number: u8| Input::EndpointUnseen(id(&number.to_string()));
    let mut world = World::settled();
    for number in [2, 3, 4] {
        world
            .shared
            .kernel
            .borrow_mut()
            .add_link(&format!("cali{number}"));
    }
    world.tell([pod(2), pod(3), pod(4)]);
    world.tell([gone(2)]);
    world.now += Duration::from_millis(600);
    world.tell([gone(3)]);
    assert_eq!(forgotten(&world), [0; 0], "nobody has them");
    let due = world.node.deadline();
    assert_eq!(
        due,
        world.now + Duration::from_millis(400),
        "a second after the first"
    );
    world.now = due;
    world.tell([]);
    assert_eq!(forgotten(&world), [2], "together");

    world.tell([gone(4)]);
    world.tell([pod(4)]);
    assert_eq!(forgotten(&world), [2, 1], "before it is somebody's again");
    assert!(
        world.node.deadline() > due + Duration::from_secs(2),
        "nothing is left to do"
    );

    // Ports of the node led to it: somebody may come to them again.
    let Input::EndpointSeen(at, mut with_port) = pod(4) else {
        unreachable!()
    };
    world.tell([gone(4)]);
    with_port.host_ports.insert(HostPort {
        protocol: Protocol::Sctp,
        host_address: None,
        host_port: 3868,
        port: 38,
    });
    world.tell([Input::EndpointSeen(at, with_port)]);
    world.tell([gone(4)]);
    assert_eq!(forgotten(&world), [2, 1, 1, 1]);
    world.tell([pod(4)]);

    // What fails is tried again.
    world.tell([gone(4)]);
    world.now = world.node.deadline();
    let calls = world.shared.kernel.borrow().calls;
    world.shared.kernel.borrow_mut().fault = Some((calls, Fault::LostBefore));
    world.tell([]);
    assert_eq!(forgotten(&world), [2, 1, 1, 1]);
    world.now = world.node.deadline();
    world.tell([]);
    assert_eq!(forgotten(&world), [2, 1, 1, 1, 1]);
}

#[test]
fn a_tunnel_is_published_when_it_lets_the_others_in_and_lets_them_in_until_it_goes() {
    let mut world = World::settled();
    world.tell(TunnelKind::ALL.map(|kind| Input::TunnelAddress(kind, None)));
    let outputs = |world: &World| {
        let published = world.node.outputs.published.borrow().clone();
        let tunnels = published.unwrap_or_default().facts.tunnels.len();
        (*world.node.outputs.cluster_needed.borrow(), tunnels)
    };
    assert_eq!(outputs(&world), (Some(false), 0));

    let pool = |encapsulation| {
        let pool = Pool {
            cidr: "10.0.0.0/8".parse().unwrap(),
            nat_outgoing: true,
            encapsulation,
            disable_bgp_export: false,
        };
        Input::Pool("p".into(), Some(pool))
    };
    let kind = TunnelKind::VxlanV4;
    let address = Input::TunnelAddress(kind, Some("10.0.0.9".parse().unwrap()));
    world.node.model.settings.ipv4_address = Some("192.0.2.11/24".parse().unwrap());
    world.tell([pool(Encapsulation::VxlanAlways), address]);
    assert!(world.shared.kernel.borrow().links.contains_key(kind.interface()));
    assert_eq!(outputs(&world), (Some(true), 0), "the others are not known");
    world.tell([Input::Cluster(Some(Cluster::default()))]);
    assert_eq!(outputs(&world), (Some(true), 1));

    world.tell([pool(Encapsulation::None)]);
    assert_eq!(outputs(&world), (Some(true), 1), "not all have heard");
    world.tell([Input::TunnelAddress(kind, None)]);
    assert_eq!(outputs(&world), (Some(false), 0));
    world.tell([Input::Cluster(None), pool(Encapsulation::VxlanAlways)]);
    assert!(!world.node.model.in_sync.cluster, "needed again, and not known");
}
