//! Two speakers on the loopback interface, with real sockets.
#![allow(clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::time::Duration;

use calidris_bgp::config::ConnectMode;
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
        right.configure(other).await.expect("configure").reset.is_empty(),
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
