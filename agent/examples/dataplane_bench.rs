//! Measures the dataplane in the network namespace it is started in; `calidris-lab bench routes` starts it and prints the
//! figures beside those of the peers. One line of JSON for each measurement: `{"metric": …, "seconds": …, "cpu_seconds": …, "peak_mib": …}`,
//! the last being the most memory the process ever had resident until then.
//!
//! The namespace must have the links that the lab makes: `up0` with 192.0.2.1/24, and for endpoints `cali0`, `cali1`, ….

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a measurement may fail by panicking"
)]

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Instant;

use calidris_agent::apply::{Dataplane, Op};
use calidris_agent::clock;
use calidris_agent::delta::delta;
use calidris_agent::desired::{Desired, Gateway, Route, RouteKey, RouteOrigin, RoutePath, compute, part};
use calidris_agent::kernel::{Kernel, KernelChange, Linux, RouteChange};
use calidris_agent::model::{Affected, Endpoint, EndpointId, InSync, Input, Model};
use ipnetwork::{IpNetwork, Ipv4Network};
use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use rustix::net::netdevice;

const IN_SYNC: InSync = InSync {
    datastore: true,
    bgp: true,
    cluster: true,
};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [what, count] = arguments.as_slice() else {
        panic!("expected: raw|writer|apply|resync|endpoint|nftables COUNT");
    };
    let count: u32 = count.parse().unwrap();
    match what.as_str() {
        "raw" => raw(count),
        "writer" => writer(count),
        "apply" => apply(count),
        "resync" => resync(count),
        "endpoint" => endpoint(count),
        "nftables" => nftables(count),
        other => panic!("no measurement {other}"),
    }
}

/// A measurement that has begun.
struct Measured {
    started: Instant,
    cpu_seconds: f64,
}

impl Measured {
    fn start() -> Self {
        Self {
            cpu_seconds: cpu_seconds(),
            started: clock::now(),
        }
    }

    fn told(self, metric: &str) {
        let seconds = clock::now().saturating_duration_since(self.started).as_secs_f64();
        let cpu_seconds = cpu_seconds() - self.cpu_seconds;
        println!(
            "{{\"metric\": \"{metric}\", \"seconds\": {seconds:.9}, \"cpu_seconds\": {cpu_seconds:.2}, \"peak_mib\": {:.1}}}",
            peak_mib()
        );
    }
}

/// Processor time of this process so far, user and system: the 14th and 15th field of `/proc/self/stat`, in hundredths of a second.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields = stat.rsplit_once(')').unwrap().1.split_ascii_whitespace();
    fields
        .skip(11)
        .take(2)
        .map(|ticks| ticks.parse::<f64>().unwrap())
        .sum::<f64>()
        / 100.0
}

fn peak_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.unwrap().split_ascii_whitespace().next().unwrap();
    kib.parse::<f64>().unwrap() / 1024.0
}

fn destination(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0a00_0000 + number)
}

/// Routes through one gateway, which they share as those that BGP learned do.
fn desired(count: u32) -> Desired {
    let path = RoutePath::via([Gateway {
        address: Ipv4Addr::new(192, 0, 2, 2).into(),
        interface: Some("up0".to_owned()),
    }]);
    let route = |number| {
        let key = RouteKey::main(IpNetwork::V4(Ipv4Network::from(destination(number))));
        let (origin, path) = (RouteOrigin::Bgp, path.clone());
        (key, Route { origin, path })
    };
    Desired {
        routes: (0..count).map(route).collect(),
        ..Desired::default()
    }
}

/// As fast as netlink goes: datagrams made beforehand, 128 messages each, one acknowledgement a datagram.
fn raw(count: u32) {
    let mut socket = Socket::new(NETLINK_ROUTE).unwrap();
    socket.bind_auto().unwrap();
    socket.connect(&SocketAddr::new(0, 0)).unwrap();
    socket.set_cap_ack(true).unwrap();
    let index = netdevice::name_to_index(&socket, "up0").unwrap();
    for (metric, kind, flags) in [("in", 24_u16, NLM_F_CREATE | NLM_F_EXCL), ("out", 25, 0)] {
        let numbers: Vec<u32> = (0..count).collect();
        let datagrams: Vec<Vec<u8>> = numbers
            .chunks(128)
            .map(|chunk| {
                let mut datagram = Vec::new();
                for (position, number) in chunk.iter().enumerate() {
                    let acknowledged = if position + 1 == chunk.len() { NLM_F_ACK } else { 0 };
                    message(
                        kind,
                        flags | NLM_F_REQUEST | acknowledged,
                        *number,
                        index,
                        &mut datagram,
                    );
                }
                datagram
            })
            .collect();
        let mut answer = Vec::with_capacity(64 << 10);
        let measured = Measured::start();
        for datagram in &datagrams {
            socket.send(datagram, 0).unwrap();
            answer.clear();
            socket.recv(&mut answer, 0).unwrap();
            assert_eq!(answer[16..20], [0; 4], "refused");
        }
        measured.told(metric);
    }
}

/// The message that the dataplane sends for a route of [`desired`].
fn message(kind: u16, flags: u16, number: u32, index: u32, datagram: &mut Vec<u8>) {
    datagram.extend(68_u32.to_ne_bytes());
    datagram.extend(kind.to_ne_bytes());
    datagram.extend(flags.to_ne_bytes());
    datagram.extend([0; 8]);
    datagram.extend([2, 32, 0, 0, 254, 203, 0, 1, 0, 0, 0, 0]);
    for (kind, value) in [
        (1_u16, destination(number).octets()),
        (15, 254_u32.to_ne_bytes()),
        (6, 1024_u32.to_ne_bytes()),
        (5, [192, 0, 2, 2]),
        (4, index.to_ne_bytes()),
    ] {
        datagram.extend(8_u16.to_ne_bytes());
        datagram.extend(kind.to_ne_bytes());
        datagram.extend(value);
    }
}

/// The batching writer: a list of changes to the kernel's answers.
fn writer(count: u32) {
    let mut kernel = Linux::open().unwrap();
    let there = desired(count).routes;
    let nothing = BTreeMap::new();
    let creations: Vec<RouteChange> = delta(&there, &nothing, |_, _| true).collect();
    let creations: Vec<&RouteChange> = creations.iter().collect();
    let measured = Measured::start();
    let results = kernel.change_routes(&creations);
    measured.told("in");
    assert!(
        results.iter().all(Result::is_ok),
        "{:?}",
        results.iter().find(|result| result.is_err())
    );
    let seen = kernel.routes().unwrap();
    let nothing = BTreeMap::new();
    let deletions: Vec<RouteChange> = delta(&nothing, &seen, |_: &Route, _| true).collect();
    let deletions: Vec<&RouteChange> = deletions.iter().collect();
    let measured = Measured::start();
    let results = kernel.change_routes(&deletions);
    measured.told("out");
    assert!(results.iter().all(Result::is_ok));
}

/// The whole way: read back, difference, changes, what is known afterwards, the report.
fn apply(count: u32) {
    let mut dataplane = Dataplane::new(Linux::open().unwrap());
    dataplane.apply(&Desired::default(), IN_SYNC, clock::now());
    for (metric, desired) in [("in", desired(count)), ("out", Desired::default())] {
        let measured = Measured::start();
        let report = dataplane.apply(&desired, IN_SYNC, clock::now());
        measured.told(metric);
        let routes = report.ops.iter().filter(|op| matches!(op, Op::Route(_))).count();
        assert_eq!(routes, count as usize, "{:?}", report.failures.first());
    }
}

/// Nothing to do: after a start, at a periodic read-back, and in a turn in which nothing changed.
fn resync(count: u32) {
    let desired = desired(count);
    Dataplane::new(Linux::open().unwrap()).apply(&desired, IN_SYNC, clock::now());
    let mut dataplane = Dataplane::new(Linux::open().unwrap());
    for (metric, is_told) in [("start", false), ("read-back", true), ("idle-turn", false)] {
        if is_told {
            dataplane.note(KernelChange::Routes);
        }
        let measured = Measured::start();
        let report = dataplane.apply(&desired, IN_SYNC, clock::now());
        measured.told(metric);
        assert_eq!(report.ops, [], "something was to be done");
    }
    dataplane.apply(&Desired::default(), IN_SYNC, clock::now());
}

fn id(number: u32) -> EndpointId {
    EndpointId {
        network: "bench".to_owned(),
        container_id: format!("c{number}"),
        ifname: "eth0".to_owned(),
    }
}

fn pod(number: u32) -> Endpoint {
    Endpoint {
        host_interface: format!("cali{number}"),
        addresses: [destination(number).into()].into(),
        ..Endpoint::default()
    }
}

/// From an endpoint known to its packets let in, beside `count` others; the links are there. Then a look at everything, which
/// finds nothing to do.
fn endpoint(count: u32) {
    let mut model = Model::new("bench".to_owned());
    model.in_sync = IN_SYNC;
    model.endpoints = (0..count).map(|number| (id(number), pod(number))).collect();
    let mut dataplane = Dataplane::new(Linux::open().unwrap());
    look_at_everything(&mut dataplane, &mut model);
    for number in count..count + 20 {
        let measured = Measured::start();
        let affected = model.absorb(Input::EndpointSeen(id(number), pod(number)));
        let Affected::Workloads(touched) = affected else {
            panic!("{affected:?}");
        };
        assert!(dataplane.is_settled(IN_SYNC));
        let part = part(&model, &touched).unwrap();
        let report = dataplane.apply_part(&part, IN_SYNC).unwrap();
        measured.told("endpoint");
        assert!(report.ops.iter().any(|op| matches!(op, Op::Route(_))));
        let measured = Measured::start();
        assert_eq!(look_at_everything(&mut dataplane, &mut model), 0);
        measured.told("whole-turn");
    }
}

/// A turn that reads the links back; how much it did.
fn look_at_everything(dataplane: &mut Dataplane<Linux>, model: &mut Model) -> usize {
    dataplane.note(KernelChange::Links);
    model.links = dataplane.links().unwrap().keys().cloned().collect();
    let report = dataplane.apply(&compute(model), model.in_sync, clock::now());
    assert!(report.failures.is_empty(), "{:?}", report.failures);
    report.ops.len()
}

/// The nftables tables with `count` endpoints: made, changed by one, read back.
fn nftables(count: u32) {
    let mut model = Model::new("bench".to_owned());
    model.in_sync = IN_SYNC;
    model.endpoints = (0..count).map(|number| (id(number), pod(number))).collect();
    let mut dataplane = Dataplane::new(Linux::open().unwrap());
    let mut turn = |metric: &str, model: &Model, change: Option<KernelChange>| {
        if let Some(change) = change {
            dataplane.note(change);
        }
        let desired = Desired {
            workloads: compute(model).workloads,
            ..Desired::default()
        };
        let measured = Measured::start();
        let report = dataplane.apply(&desired, IN_SYNC, clock::now());
        measured.told(metric);
        assert!(report.failures.is_empty(), "{:?}", report.failures);
    };
    turn("create", &model, None);
    for number in count..count + 20 {
        model.absorb(Input::EndpointSeen(id(number), pod(number)));
        turn("add-one", &model, None);
        model.absorb(Input::EndpointUnseen(id(number)));
        turn("remove-one", &model, None);
    }
    turn("read-back", &model, Some(KernelChange::Nft));
}
