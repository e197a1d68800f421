//! Two speakers on the loopback interface, with real sockets.
#![allow(clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::time::Duration;

use calidris_bgp::config::{ConnectMode, Distance, DynamicPeers, Effect, RemoteAs, SessionImpact};
use calidris_bgp::policy::Policy;
use calidris_bgp::route::Origination;
use calidris_bgp::session::State;
use calidris_bgp::{PeerConfig, SpeakerConfig};
use calidris_bgp_driver::{BgpHandle, DriverConfig, Shutdown, start};

const DEADLINE: Duration = Duration::from_secs(30);

/// A port nobody listens on at any of the loopback addresses.
fn free_port() -> u16 {
    let socket = TcpListener::bind("0.0.0.0:0").expect("bind");
    socket.local_addr().expect("address").port()
}

struct Side {
    address: IpAddr,
    asn: u32,
}

fn config(ours: &Side, theirs: &Side, port: u16, password: Option<&str>) -> DriverConfig {
    let mut peer = PeerConfig::new("other", theirs.address, theirs.asn);
    peer.port = port;
    peer.local_address = Some(ours.address);
    peer.import = Some(Policy::accept_all());
    peer.export = Some(Policy::accept_all());
    peer.connect_retry = Duration::from_secs(1);
    peer.transport.md5_password = password.map(str::to_owned);
    let IpAddr::V4(router_id) = ours.address else {
        unreachable!("IPv4 loopback")
    };
    DriverConfig {
        listen: vec![SocketAddr::new(ours.address, port)],
        speaker: SpeakerConfig {
            peers: vec![peer],
            ..SpeakerConfig::new(ours.asn, router_id)
        },
        restarting: false,
        seed: ours.asn.into(),
    }
}

fn sides(net: u8) -> (Side, Side) {
    let side = |host, asn| Side {
        address: IpAddr::from([127, 0, net, host]),
        asn,
    };
    (side(1, 65001), side(2, 65002))
}

async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut look: impl FnMut() -> F) -> T {
    let wait = async {
        let mut again = tokio::time::interval(Duration::from_millis(20));
        loop {
            if let Some(found) = look().await {
                return found;
            }
            again.tick().await;
        }
    };
    tokio::time::timeout(DEADLINE, wait)
        .await
        .unwrap_or_else(|_| panic!("never came about: {what}"))
}

async fn established(handle: &BgpHandle) {
    eventually("session Established", || async {
        let status = handle.status().await.expect("status");
        (status.peers[0].state == State::Established).then_some(())
    })
    .await;
}

fn routes(prefixes: &[&str]) -> BTreeMap<calidris_bgp::family::Prefix, Origination> {
    prefixes
        .iter()
        .map(|prefix| (prefix.parse().expect("prefix"), Origination::default()))
        .collect()
}

#[tokio::test]
async fn routes_reach_the_other_side_and_go_with_the_session() {
    let ((a, b), port) = (sides(11), free_port());
    let left = start(config(&a, &b, port, None)).await.expect("start");
    let mut right = start(config(&b, &a, port, None)).await.expect("start");
    left.originate(routes(&["10.1.0.0/26", "10.1.0.64/26"]))
        .await
        .expect("originate");
    right.originate(BTreeMap::new()).await.expect("originate");
    tokio::time::timeout(DEADLINE, right.in_sync())
        .await
        .expect("in time")
        .expect("in sync");
    right.changed().await.expect("changed");
    let mut best = BTreeMap::new();
    eventually("two routes", || {
        let right = right.clone();
        async move { Some(right.take_changes().await.expect("changes")).filter(|changes| !changes.is_empty()) }
    })
    .await
    .into_iter()
    .for_each(|change| {
        best.insert(change.prefix.to_string(), change.best.expect("best").next_hops[0].address);
    });
    assert_eq!(best.len(), 2, "{best:?}");
    assert!(best.values().all(|next_hop| *next_hop == a.address));

    left.shutdown(Shutdown::Cease {
        text: "test over".into(),
    })
    .await
    .expect("shutdown");
    let mut right_again = right.clone();
    tokio::time::timeout(DEADLINE, right_again.changed())
        .await
        .expect("in time")
        .expect("changed");
    let gone = eventually("withdrawn", || async {
        Some(right.take_changes().await.expect("changes")).filter(|changes| !changes.is_empty())
    })
    .await;
    assert!(
        gone.iter().all(|change| change.best.is_none()) && gone.len() == 2,
        "{gone:?}"
    );
    let status = right.status().await.expect("status");
    let error = status.peers[0].last_error.as_ref().expect("error");
    assert!(error.text.contains("test over"), "{}", error.text);
    assert_eq!(
        left.status().await.expect_err("stopped").to_string(),
        "the BGP speaker has stopped"
    );
}

#[tokio::test]
async fn a_restart_keeps_the_routes_at_the_other_side() {
    let ((a, b), port) = (sides(12), free_port());
    let left = start(config(&a, &b, port, None)).await.expect("start");
    let right = start(config(&b, &a, port, None)).await.expect("start");
    left.originate(routes(&["10.1.0.0/26"])).await.expect("originate");
    right.originate(BTreeMap::new()).await.expect("originate");
    let has_route = || async { (!right.best_routes().await.expect("best").is_empty()).then_some(()) };
    eventually("route", has_route).await;
    right.take_changes().await.expect("changes");
    left.shutdown(Shutdown::ForRestart).await.expect("shutdown");
    eventually("session down", || async {
        let status = right.status().await.expect("status");
        (status.peers[0].state != State::Established).then_some(())
    })
    .await;
    assert!(has_route().await.is_some(), "kept as stale");
    let successor = start(DriverConfig {
        restarting: true,
        ..config(&a, &b, port, None)
    })
    .await
    .expect("start");
    established(&successor).await;
    successor
        .originate(routes(&["10.1.0.0/26"]))
        .await
        .expect("originate");
    eventually("not stale any more", || async {
        let status = right.status().await.expect("status");
        status.peers[0]
            .families
            .iter()
            .all(|f| f.stale == 0 && f.end_of_rib_received)
            .then_some(())
    })
    .await;
    assert!(has_route().await.is_some());
    assert!(
        right.take_changes().await.expect("changes").is_empty(),
        "nothing changed for the forwarding table"
    );
}

#[tokio::test]
async fn passwords_must_match() {
    let ((a, b), port) = (sides(13), free_port());
    let left = start(config(&a, &b, port, Some("same secret")))
        .await
        .expect("start");
    let right = start(config(&b, &a, port, Some("same secret")))
        .await
        .expect("start");
    established(&left).await;
    established(&right).await;
    let mut other = config(&b, &a, port, Some("another secret")).speaker;
    other.peers[0].connect = ConnectMode::Passive;
    assert!(
        right
            .configure(other)
            .await
            .expect("configure")
            .with_session(SessionImpact::Reset)
            .is_empty(),
        "a password is no reason to reset"
    );
}

#[tokio::test]
async fn an_address_in_use_is_named() {
    let ((a, b), port) = (sides(14), free_port());
    let _left = start(config(&a, &b, port, None)).await.expect("start");
    let error = start(config(&a, &b, port, None))
        .await
        .expect_err("the address is taken");
    assert!(
        error.to_string().contains(&format!("127.0.14.1:{port}")),
        "{error}"
    );
}

/// The value of a counter in `/proc/net/netstat`: how often the kernel dropped for a reason.
fn kernel_counter(name: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/net/netstat").expect("netstat");
    let lines: Vec<&str> = text.lines().filter(|line| line.starts_with("TcpExt:")).collect();
    let [names, values] = lines.as_slice() else {
        panic!("two lines of TcpExt: {text}")
    };
    let place = names.split_whitespace().position(|other| other == name);
    let value = values.split_whitespace().nth(place.expect("counter"));
    value.expect("value").parse().expect("number")
}

/// A server whose peers come from 127.0.`net`.0/24, signed with `password`.
fn server(net: u8, port: u16, max_peers: u32, password: Option<&str>) -> DriverConfig {
    let mut template = PeerConfig::new("template", IpAddr::from([127, 0, net, 255]), 0);
    template.open_as = Some(RemoteAs::External);
    template.import = Some(Policy::accept_all());
    template.export = Some(Policy::accept_all());
    template.transport.md5_password = password.map(str::to_owned);
    DriverConfig {
        listen: vec![SocketAddr::from(([127, 0, net, 1], port))],
        speaker: SpeakerConfig {
            dynamic: vec![DynamicPeers {
                name: "clients".to_owned(),
                range: format!("127.0.{net}.0/24").parse().expect("prefix"),
                max_peers,
                template,
            }],
            ..SpeakerConfig::new(65001, [127, 0, net, 1].into())
        },
        restarting: false,
        seed: 1,
    }
}

/// A client of that server, at host `host`.
fn client(net: u8, host: u8, port: u16, password: Option<&str>) -> DriverConfig {
    let hub = Side {
        address: IpAddr::from([127, 0, net, 1]),
        asn: 65001,
    };
    let us = Side {
        address: IpAddr::from([127, 0, net, host]),
        asn: 65000 + u32::from(host),
    };
    let mut config = config(&us, &hub, port, password);
    config.speaker.peers[0].idle_hold_max = Duration::from_secs(2);
    config
}

async fn peer_names(handle: &BgpHandle) -> Vec<String> {
    let status = handle.status().await.expect("status");
    status.peers.into_iter().map(|peer| peer.name).collect()
}

#[tokio::test]
async fn a_range_of_addresses_has_one_key_and_a_limit() {
    let (net, port) = (21, free_port());
    let hub = start(server(net, port, 2, Some("for all"))).await.expect("start");
    let first = start(client(net, 2, port, Some("for all"))).await.expect("start");
    established(&first).await;
    let before = kernel_counter("TCPMD5Failure") + kernel_counter("TCPMD5NotFound");
    let _wrong = start(client(net, 3, port, Some("something else")))
        .await
        .expect("start");
    let _none = start(client(net, 4, port, None)).await.expect("start");
    eventually("segments of both dropped by the kernel", || async {
        let dropped = kernel_counter("TCPMD5Failure") + kernel_counter("TCPMD5NotFound");
        (dropped >= before + 2).then_some(())
    })
    .await;
    let second = start(client(net, 5, port, Some("for all"))).await.expect("start");
    established(&second).await;
    assert_eq!(
        peer_names(&hub).await,
        ["clients:127.0.21.2", "clients:127.0.21.5"],
        "who is not signed is nobody"
    );
    let third = start(client(net, 6, port, Some("for all"))).await.expect("start");
    eventually("refused", || async {
        third.status().await.expect("status").peers[0].last_error.clone()
    })
    .await;
    assert_eq!(peer_names(&hub).await.len(), 2);
    second
        .shutdown(Shutdown::Cease { text: String::new() })
        .await
        .expect("shutdown");
    established(&third).await;
    assert_eq!(
        peer_names(&hub).await,
        ["clients:127.0.21.2", "clients:127.0.21.6"]
    );
}

#[tokio::test]
async fn a_password_changes_on_both_sides_without_a_reset() {
    let ((a, b), port) = (sides(22), free_port());
    let left = start(config(&a, &b, port, Some("old"))).await.expect("start");
    let right = start(config(&b, &a, port, Some("old"))).await.expect("start");
    left.originate(routes(&["10.1.0.0/26"])).await.expect("originate");
    right.originate(BTreeMap::new()).await.expect("originate");
    established(&left).await;
    let has_routes = |count: usize| {
        let right = right.clone();
        move || {
            let right = right.clone();
            async move { (right.best_routes().await.expect("best").len() == count).then_some(()) }
        }
    };
    eventually("route", has_routes(1)).await;
    let before = kernel_counter("TCPMD5Failure");
    let new = config(&a, &b, port, Some("new")).speaker;
    let plan = left.plan(new.clone()).await.expect("plan");
    assert_eq!(plan.with_effect(Effect::Socket), ["other"], "{plan:?}");
    assert_eq!(left.configure(new).await.expect("configure"), plan);
    // With different keys nothing passes …
    left.originate(routes(&["10.1.0.0/26", "10.1.0.64/26"]))
        .await
        .expect("originate");
    eventually("segments with the new key dropped", || async {
        (kernel_counter("TCPMD5Failure") > before).then_some(())
    })
    .await;
    // … and when the other side has the new one too, what was held up comes.
    right
        .configure(config(&b, &a, port, Some("new")).speaker)
        .await
        .expect("configure");
    eventually("the second route", has_routes(2)).await;
    for side in [&left, &right] {
        let status = side.status().await.expect("status");
        assert_eq!(status.peers[0].established_count, 1, "{status:?}");
    }
}

#[tokio::test]
async fn a_missing_secret_keeps_the_session_down_and_says_why() {
    let ((a, b), port) = (sides(23), free_port());
    let mut without = config(&a, &b, port, None);
    without.speaker.peers[0].transport.missing_secret = Some("/etc/secret: no such file".to_owned());
    let left = start(without.clone()).await.expect("start");
    let right = start(config(&b, &a, port, None)).await.expect("start");
    // The other side would take a session without a password; ours must not.
    eventually("refused", || async {
        right.status().await.expect("status").peers[0].last_error.clone()
    })
    .await;
    let status = left.status().await.expect("status");
    let why = status.peers[0].held_down.clone().expect("held down");
    assert!(why.contains("/etc/secret: no such file"), "{why}");
    assert_eq!(status.peers[0].established_count, 0);
    assert!(left.is_in_sync() || status.peers[0].state == State::Idle);
    // Found at last, on both sides.
    left.configure(config(&a, &b, port, Some("found")).speaker)
        .await
        .expect("configure");
    right
        .configure(config(&b, &a, port, Some("found")).speaker)
        .await
        .expect("configure");
    established(&left).await;
}

/// Both sides with a distance each; the left one connects, or the right one.
async fn at_distance(net: u8, left: Distance, right: Distance, left_connects: ConnectMode) -> [BgpHandle; 2] {
    let ((a, b), port) = (sides(net), free_port());
    let mut sides = [config(&a, &b, port, None), config(&b, &a, port, None)];
    sides[0].speaker.peers[0].transport.distance = left;
    sides[1].speaker.peers[0].transport.distance = right;
    sides[0].speaker.peers[0].connect = left_connects;
    sides[1].speaker.peers[0].connect = match left_connects {
        ConnectMode::Active => ConnectMode::Passive,
        ConnectMode::Passive => ConnectMode::Active,
    };
    let [left, right] = sides;
    [
        start(left).await.expect("start"),
        start(right).await.expect("start"),
    ]
}

#[tokio::test]
async fn gtsm_takes_neighbours_and_nobody_else_in_both_directions() {
    let near = Distance::Gtsm { hops: 1 };
    for (net, mode) in [(24, ConnectMode::Active), (25, ConnectMode::Passive)] {
        let [left, right] = at_distance(net, near, near, mode).await;
        established(&left).await;
        established(&right).await;
    }
    // Who sends with another TTL might be anywhere. It connects to us: seen by how it opened the connection.
    let [left, far] = at_distance(26, near, Distance::Multihop(64), ConnectMode::Passive).await;
    let error = eventually("refused by TTL", || async {
        left.status().await.expect("status").peers[0].last_error.clone()
    })
    .await;
    assert!(
        error.text.contains("opened with TTL 64; expected at least 255"),
        "{error:?}"
    );
    // We connect to it: the kernel drops what it answers.
    let before = kernel_counter("TCPMinTTLDrop");
    let [again, _far] = at_distance(27, near, Distance::Multihop(64), ConnectMode::Active).await;
    eventually("its segments dropped", || async {
        (kernel_counter("TCPMinTTLDrop") > before).then_some(())
    })
    .await;
    for side in [&left, &far, &again] {
        let status = side.status().await.expect("status");
        assert_eq!(status.peers[0].established_count, 0, "{status:?}");
    }
    // A session in use follows a new distance: what was near enough is not any more.
    let [left, right] = at_distance(
        28,
        Distance::Multihop(9),
        Distance::Multihop(9),
        ConnectMode::Active,
    )
    .await;
    established(&left).await;
    let before = kernel_counter("TCPMinTTLDrop");
    let mut speaker = {
        let ((a, b), port) = (sides(28), 0);
        config(&a, &b, port, None).speaker
    };
    let in_use = left.status().await.expect("status").peers[0]
        .transport
        .expect("up");
    speaker.peers[0].port = in_use.1.port();
    speaker.peers[0].transport.distance = near;
    let impact = left.configure(speaker).await.expect("configure");
    assert_eq!(impact.with_session(SessionImpact::Stays), ["other"], "{impact:?}");
    right
        .originate(routes(&["10.1.0.0/26"]))
        .await
        .expect("originate");
    eventually("its segments dropped", || async {
        (kernel_counter("TCPMinTTLDrop") > before).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hold_time_of_three_seconds_is_kept_while_a_large_table_passes() {
    let ((a, b), port) = (sides(29), free_port());
    let mut configs = [config(&a, &b, port, None), config(&b, &a, port, None)];
    for config in &mut configs {
        config.speaker.peers[0].hold_time = 3;
    }
    let [left, right] = configs;
    let left = start(left).await.expect("start");
    let right = start(right).await.expect("start");
    let many = |first: u32| -> BTreeMap<_, _> {
        let prefix = |n: u32| format!("{}/24", std::net::Ipv4Addr::from((first << 24) + (n << 8)));
        (0..30_000)
            .map(|n| (prefix(n).parse().expect("prefix"), Origination::default()))
            .collect()
    };
    left.originate(many(10)).await.expect("originate");
    right.originate(many(11)).await.expect("originate");
    established(&left).await;
    for (side, rounds) in [(&left, 4), (&right, 4)] {
        eventually("the whole table, and some KEEPALIVEs after it", || async {
            let status = side.status().await.expect("status");
            let peer = &status.peers[0];
            let all = peer
                .families
                .first()
                .is_some_and(|family| family.received == 30_000);
            (all && peer.counters.keepalives_in >= rounds).then_some(())
        })
        .await;
        let status = side.status().await.expect("status");
        assert_eq!(
            status.peers[0].established_count, 1,
            "{:?}",
            status.peers[0].last_error
        );
        assert_eq!(
            status.peers[0].negotiated.as_ref().map(|terms| terms.hold_time),
            Some(3)
        );
    }
}
