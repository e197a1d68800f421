//! Restarts that nobody notices (RFC 4724, 8538, 9494): a daemon is killed with SIGKILL while packets flow through routes that
//! a kernel has from BGP, and comes back.

use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, ensure};

use super::{Feature, works};
use crate::eventually::eventually;
use crate::http::ECHO_PORT;
use crate::interop::ours::{Ours, PeerKeys};
use crate::interop::peer::{Peer, PeerCannot, peer_cannot};
use crate::interop::peers::Kind;
use crate::interop::setup::{Kernel, Setup};
use crate::interop::site::{
    Member, SOON, Site, THIRD_AS, announced, net, setup_of, wait_established, wait_ours, wait_theirs,
};
use crate::kernel;
use crate::pinger::Pinger;

pub(super) const FEATURES: &[Feature] = &[
    Feature {
        name: "restart-ours",
        title: "Graceful restart: we are killed and come back, no packet lost (RFC 4724)",
        quick: true,
        run: restart_ours,
    },
    Feature {
        name: "restart-theirs",
        title: "Graceful restart: the peer is killed and comes back, no packet lost (RFC 4724)",
        quick: true,
        run: restart_theirs,
    },
    Feature {
        name: "restart-away",
        title: "Graceful restart: the peer stays away, its routes go after its restart time (RFC 4724)",
        quick: false,
        run: restart_away,
    },
    Feature {
        name: "notification-restart",
        title: "Graceful restart across NOTIFICATION (RFC 8538)",
        quick: false,
        run: notification_restart,
    },
    Feature {
        name: "long-lived-theirs",
        title: "Long-lived graceful restart: we keep the routes of a peer that stays away (RFC 9494)",
        quick: false,
        run: long_lived_theirs,
    },
    Feature {
        name: "long-lived-ours",
        title: "Long-lived graceful restart: the peer keeps ours (RFC 9494)",
        quick: false,
        run: long_lived_ours,
    },
];

/// Gives a member an address of a prefix it announces, and something that answers there.
fn answer_at(site: &Site, member: Member, address: &str) -> anyhow::Result<IpAddr> {
    site.namespace(member)?
        .ip(&format!("addr add {address}/32 dev lo"))?;
    site.serve(member)?;
    Ok(address.parse()?)
}

fn wait_kernel(site: &Site, member: Member, prefix: &str) -> anyhow::Result<()> {
    let namespace = site.namespace(member)?;
    eventually(&format!("{prefix} in the kernel"), SOON, || {
        let routes = kernel::routes(namespace)?;
        ensure!(routes.iter().any(|route| route.dst == prefix), "{routes:?}");
        Ok(())
    })
}

/// Starts packets once the first came back: the way is there, and somebody who answers at its end.
fn start_packets(site: &Site, from: Member, to: IpAddr) -> anyhow::Result<Pinger> {
    let namespace = site.namespace(from)?;
    let socket = namespace.enter(|| UdpSocket::bind("0.0.0.0:0"))??;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    eventually(&format!("{to} answers"), SOON, || {
        socket.send_to(&[0; 8], (to, ECHO_PORT))?;
        Ok(socket.recv_from(&mut [0; 8])?)
    })?;
    Pinger::start(namespace, to)
}

fn expect_no_loss(pinger: Pinger) -> anyhow::Result<()> {
    crate::pinger::expect_no_loss(vec![pinger])
}

fn gone(peer: &dyn Peer) -> anyhow::Result<()> {
    eventually("the peer sees that we are gone", SOON, || {
        let view = peer.session("us")?;
        ensure!(!view.established, "{view:?}");
        Ok(())
    })
}

/// The session with the peer is gone, and its route stays as one that may be out of date.
fn down_and_stale(ours: &Ours) -> anyhow::Result<()> {
    let us = ours.peer("peer")?;
    ensure!(us["state"] != "established", "{us}");
    let candidates = ours.candidates("10.2.0.0/24")?;
    ensure!(
        candidates.iter().any(|candidate| candidate["stale"] == true),
        "{candidates:?}"
    );
    Ok(())
}

fn wait_fresh(ours: &Ours) -> anyhow::Result<()> {
    eventually("the peer's route is fresh again", SOON, || {
        let candidates = ours.candidates("10.2.0.0/24")?;
        ensure!(
            candidates.iter().any(|candidate| candidate["stale"] == false),
            "{candidates:?}"
        );
        Ok(())
    })
}

/// A setup with graceful restart whose routes go to the kernel; or, for a peer that cannot do that, to its table only.
fn start_peer(site: &Site, mut setup: Setup) -> anyhow::Result<(Box<dyn Peer>, Kernel)> {
    setup.kernel = Kernel::Programmed;
    match site.peer(setup.clone()) {
        Err(error) if error.is::<PeerCannot>() => {
            setup.kernel = Kernel::Untouched;
            Ok((site.peer(setup)?, Kernel::Untouched))
        }
        started => Ok((started?, Kernel::Programmed)),
    }
}

fn restart_ours(site: &Site) -> anyhow::Result<String> {
    if site.kind() == Kind::Exabgp {
        return peer_cannot("it keeps no table, so nothing survives our end");
    }
    let mut setup = site.setup()?;
    setup.sessions[0].graceful_restart = Some(60);
    let (peer, kernel) = start_peer(site, setup)?;
    let mut ours = site.us(&site.config()?)?;
    wait_established(&ours, "peer", &*peer)?;
    wait_theirs(&*peer, "10.1.0.0/24")?;
    let address = answer_at(site, Member::Us, "10.1.0.1")?;
    let pinger = match kernel {
        Kernel::Programmed => {
            wait_kernel(site, Member::Peer, "10.1.0.0/24")?;
            Some(start_packets(site, Member::Peer, address)?)
        }
        Kernel::Untouched => None,
    };
    for _ in 0..2 {
        ours.kill()?;
        gone(&*peer)?;
        let paths = peer.paths(net("10.1.0.0/24")?)?;
        ensure!(!paths.is_empty(), "our route went with us");
        ours.launch(&site.lab)?;
        wait_established(&ours, "peer", &*peer)?;
        eventually("our route is fresh again", SOON, || {
            let us = ours.peer("peer")?;
            ensure!(us["families"][0]["end_of_rib_sent"] == true, "{us}");
            let paths = peer.paths(net("10.1.0.0/24")?)?;
            ensure!(paths.iter().any(|path| !path.stale), "{paths:?}");
            Ok(())
        })?;
        wait_ours(&ours, "10.2.0.0/24")?;
    }
    match pinger {
        Some(pinger) => expect_no_loss(pinger).map(|()| String::new()),
        None => Ok("looked at in the peer's table: it programs no kernel here".to_owned()),
    }
}

/// The peer, our speaker, and who forwards.
type Forwarding = (Box<dyn Peer>, Ours, Box<dyn Peer>);

/// Peer — we — BIRD, whose kernel has the peer's routes from us, with the peer as next hop.
fn with_forwarder(site: &Site, setup: Setup) -> anyhow::Result<Forwarding> {
    let peer = site.peer(setup)?;
    let mut third = setup_of(Member::Third, THIRD_AS, announced("10.3.0.0/24")?);
    third.kernel = Kernel::Programmed;
    let third = site.third_bird(third)?;
    let mut config = site.config()?;
    let mut forwarder = PeerKeys::new("third", Member::Third.v4().into(), THIRD_AS);
    forwarder.text("next_hop", "keep");
    config.peers.push(forwarder);
    let ours = site.us(&config)?;
    wait_established(&ours, "peer", &*peer)?;
    wait_established(&ours, "third", &*third)?;
    wait_ours(&ours, "10.2.0.0/24")?;
    wait_kernel(site, Member::Third, "10.2.0.0/24")?;
    Ok((peer, ours, third))
}

fn restart_theirs(site: &Site) -> anyhow::Result<String> {
    match site.kind() {
        Kind::Openbgpd => return peer_cannot("it offers no graceful restart of its own, only End-of-RIB"),
        Kind::Exabgp => {
            return peer_cannot("it forwards nothing, and says that its forwarding state is not preserved");
        }
        Kind::Frr if site.major()? >= 10 => {
            return peer_cannot(
                "it sends End-of-RIB with its first KEEPALIVE and its routes some 40 ms later, so that by RFC 4724 §4.2 they go meanwhile: \
                 seen as packets lost",
            );
        }
        _ => {}
    }
    let mut setup = site.setup()?;
    setup.sessions[0].graceful_restart = Some(60);
    if matches!(site.kind(), Kind::Bird | Kind::Frr) {
        setup.kernel = Kernel::Programmed;
    }
    let (mut peer, ours, _third) = with_forwarder(site, setup)?;
    let address = answer_at(site, Member::Peer, "10.2.0.1")?;
    let pinger = start_packets(site, Member::Third, address)?;
    peer.kill()?;
    eventually("we see that the peer is gone, and keep its route", SOON, || {
        down_and_stale(&ours)
    })?;
    peer.launch(&site.lab)?;
    wait_established(&ours, "peer", &*peer)?;
    wait_fresh(&ours)?;
    expect_no_loss(pinger)?;
    works()
}

fn restart_away(site: &Site) -> anyhow::Result<String> {
    if site.kind() == Kind::Openbgpd {
        return peer_cannot("it offers no graceful restart of its own, only End-of-RIB");
    }
    let mut setup = site.setup()?;
    // The shortest that every peer takes.
    setup.sessions[0].graceful_restart = Some(5);
    let mut peer = site.peer(setup)?;
    let ours = site.us(&site.config()?)?;
    wait_established(&ours, "peer", &*peer)?;
    wait_ours(&ours, "10.2.0.0/24")?;
    peer.kill()?;
    crate::interop::site::wait_ours_gone(&ours, "10.2.0.0/24")?;
    works()
}

/// The session ends with a NOTIFICATION of ours (hold timer), which is to be as if we had restarted.
fn notification_restart(site: &Site) -> anyhow::Result<String> {
    let mut setup = site.setup()?;
    setup.sessions[0].graceful_restart = Some(60);
    setup.sessions[0].hold_time = 3;
    let peer = site.peer(setup)?;
    let mut config = site.config()?;
    config.peer()?.text("hold_time", "3s");
    let ours = site.us(&config)?;
    wait_established(&ours, "peer", &*peer)?;
    wait_ours(&ours, "10.2.0.0/24")?;
    let negotiated = ours.peer("peer")?["negotiated"].clone();
    if negotiated["notification_survived"] != true {
        return peer_cannot("the peer does not set the N bit");
    }
    site.fabric.unplug("peer", crate::interop::site::LAN)?;
    eventually(
        "the hold timer ends the session, and we keep the route",
        SOON,
        || down_and_stale(&ours),
    )?;
    site.fabric.replug("peer", crate::interop::site::LAN)?;
    wait_established(&ours, "peer", &*peer)?;
    wait_fresh(&ours)?;
    works()
}

fn long_lived(site: &Site) -> anyhow::Result<(Setup, crate::interop::ours::Config)> {
    let mut setup = site.setup()?;
    setup.sessions[0].graceful_restart = Some(5);
    setup.sessions[0].long_lived = Some(60);
    let mut config = site.config()?;
    config
        .peer()?
        .text("restart_time", "5s")
        .text("long_lived_stale_time", "60s")
        .text("long_lived_keep", "60s");
    Ok((setup, config))
}

fn long_lived_theirs(site: &Site) -> anyhow::Result<String> {
    let (setup, config) = long_lived(site)?;
    let mut peer = site.peer(setup)?;
    let ours = site.us(&config)?;
    wait_established(&ours, "peer", &*peer)?;
    wait_ours(&ours, "10.2.0.0/24")?;
    peer.kill()?;
    // The community LLGR_STALE marks what outlived the restart time.
    eventually("long-lived stale", SOON, || {
        let candidates = ours.candidates("10.2.0.0/24")?;
        let marked = |candidate: &serde_json::Value| {
            let text = candidate.to_string();
            text.contains("llgr-stale") || text.contains("65535:6") || text.contains("long_lived")
        };
        ensure!(candidates.iter().any(marked), "{candidates:?}");
        Ok(())
    })?;
    peer.launch(&site.lab)?;
    wait_established(&ours, "peer", &*peer)?;
    wait_fresh(&ours)?;
    works()
}

fn long_lived_ours(site: &Site) -> anyhow::Result<String> {
    let (setup, config) = long_lived(site)?;
    let peer = site.peer(setup)?;
    let mut ours = site.us(&config)?;
    wait_established(&ours, "peer", &*peer)?;
    wait_theirs(&*peer, "10.1.0.0/24")?;
    ours.kill()?;
    gone(&*peer)?;
    // Beyond the restart time of five seconds.
    let window = Duration::from_secs(8);
    crate::eventually::steadily("the peer keeps our route", window, || {
        let paths = peer.paths(net("10.1.0.0/24")?)?;
        ensure!(!paths.is_empty(), "it is gone");
        Ok(())
    })?;
    ours.launch(&site.lab)?;
    wait_established(&ours, "peer", &*peer)?;
    eventually("our route is fresh again", SOON, || {
        let paths = peer.paths(net("10.1.0.0/24")?)?;
        let path = paths.first().context("there is a path")?;
        let marked = path
            .communities
            .iter()
            .any(|community| community == "65535:6" || community.contains("llgr"));
        ensure!(!path.stale && !marked, "{paths:?}");
        Ok(())
    })?;
    works()
}
