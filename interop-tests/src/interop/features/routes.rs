//! What routes carry, how many there may be of a prefix, and of prefixes.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use anyhow::{Context, ensure};
use ipnetwork::IpNetwork;

use super::{Feature, works};
use crate::eventually::eventually;
use crate::interop::ours::{PeerKeys, Route, path_of};
use crate::interop::peer::Capability;
use crate::interop::setup::{Announced, Family};
use crate::interop::site::{
    Member, SOON, Site, THIRD_AS, announced, setup_of, wait_established, wait_ours, wait_theirs,
};

pub(super) const FEATURES: &[Feature] = &[
    Feature {
        name: "communities",
        title: "Communities, extended and large ones: through us unchanged (RFC 1997, 4360, 8092)",
        quick: true,
        run: communities,
    },
    Feature {
        name: "add-path-receive",
        title: "ADD-PATH: the peer sends us several paths (RFC 7911)",
        quick: false,
        run: add_path_receive,
    },
    Feature {
        name: "add-path-send",
        title: "ADD-PATH: we send the peer several paths (RFC 7911)",
        quick: false,
        run: add_path_send,
    },
    Feature {
        name: "large-tables",
        title: "50,000 prefixes each way, compared as sets",
        quick: false,
        run: large_tables,
    },
];

/// Of each kind, such as no daemon gives a meaning to.
fn with_communities(prefix: &str, asn: u16) -> anyhow::Result<Announced> {
    Ok(Announced {
        communities: vec![(asn, 7), (asn, 65000)],
        route_targets: vec![(asn, 70_000)],
        large_communities: vec![(u32::from(asn), 4_000_000_000, 3)],
        ..announced(prefix)?
    })
}

fn in_our_notation(route: &Announced) -> BTreeSet<String> {
    let targets = route.route_target_words().into_iter();
    let targets = targets.map(|target| format!("rt:{target}"));
    let standard = route.community_words().into_iter();
    standard
        .chain(targets)
        .chain(route.large_community_words())
        .collect()
}

fn communities(site: &Site) -> anyhow::Result<String> {
    let mut setup = site.setup()?;
    let theirs = with_communities("10.2.0.0/24", 65002)?;
    setup.routes = vec![theirs.clone()];
    let peer = site.peer(setup)?;
    let third = with_communities("10.3.0.0/24", 65003)?;
    let twin = site.third_bird(setup_of(Member::Third, THIRD_AS, third.clone()))?;
    let mut config = site.config()?;
    config
        .peers
        .push(PeerKeys::new("third", Member::Third.v4().into(), THIRD_AS));
    let own = Announced {
        route_targets: Vec::new(),
        ..with_communities("10.1.0.0/24", 65001)?
    };
    config.routes = vec![Route {
        announced: own.clone(),
        next_hop: None,
    }];
    let ours = site.us(&config)?;
    wait_established(&ours, "peer", &*peer)?;
    let received = path_of(&wait_ours(&ours, "10.2.0.0/24")?)?;
    ensure!(
        received.communities == in_our_notation(&theirs),
        "we have {received:?}"
    );
    for (daemon, prefix, wanted) in [
        (&peer, "10.1.0.0/24", &own),
        (&peer, "10.3.0.0/24", &third),
        (&twin, "10.2.0.0/24", &theirs),
    ] {
        wait_theirs(&**daemon, prefix)?;
        let path = daemon
            .paths(prefix.parse()?)?
            .into_iter()
            .next()
            .context("there is a path")?;
        ensure!(path.communities == in_our_notation(wanted), "{prefix}: {path:?}");
    }
    works()
}

/// The peer gets a prefix from the third as well and tells us both paths.
fn add_path_receive(site: &Site) -> anyhow::Result<String> {
    let mut setup = site.setup()?;
    setup.sessions[0].add_path = true;
    if site.kind() == crate::interop::peers::Kind::Exabgp {
        return crate::interop::peer::peer_cannot("it keeps no table from which it could send several paths");
    }
    let mut to_third = setup.sessions[0].clone();
    to_third.name = "third";
    to_third.remote = crate::interop::setup::Remote::Address(Member::Third.v4().into());
    to_third.remote_as = THIRD_AS;
    to_third.add_path = false;
    setup.sessions.push(to_third);
    let peer = site.peer(setup)?;
    let mut third = setup_of(Member::Third, THIRD_AS, announced("10.2.0.0/24")?);
    third.sessions[0].remote = crate::interop::setup::Remote::Address(Member::Peer.v4().into());
    third.sessions[0].remote_as = crate::interop::site::PEER_AS;
    let _third = site.third_bird(third)?;
    let mut config = site.config()?;
    config.peer()?.set("add_path_receive", true);
    let ours = site.us(&config)?;
    wait_established(&ours, "peer", &*peer)?;
    eventually("both paths at us", SOON, || {
        let candidates = ours.candidates("10.2.0.0/24")?;
        let paths: BTreeSet<String> = candidates
            .iter()
            .map(|c| c["attributes"]["as_path"].to_string())
            .collect();
        ensure!(paths.len() == 2, "{candidates:?}");
        Ok(())
    })?;
    works()
}

/// We have a prefix of our own that the third announces as well, and tell the peer both paths.
fn add_path_send(site: &Site) -> anyhow::Result<String> {
    let mut setup = site.setup()?;
    setup.sessions[0].add_path = true;
    let peer = site.peer(setup)?;
    let _third = site.third_bird(setup_of(Member::Third, THIRD_AS, announced("10.1.0.0/24")?))?;
    let mut config = site.config()?;
    config.peer()?.set("add_path_send", 8);
    config
        .peers
        .push(PeerKeys::new("third", Member::Third.v4().into(), THIRD_AS));
    let ours = site.us(&config)?;
    wait_established(&ours, "peer", &*peer)?;
    if let Some(understood) = peer.session("us")?.received.get(&Capability::AddPath) {
        ensure!(*understood, "the peer did not understand our capability");
    }
    eventually("both paths at the peer", SOON, || {
        let paths = peer.paths("10.1.0.0/24".parse()?)?;
        let seen: BTreeSet<&str> = paths.iter().map(|path| path.as_path.as_str()).collect();
        ensure!(seen == BTreeSet::from(["65001", "65001 65003"]), "{paths:?}");
        Ok(())
    })?;
    works()
}

const LARGE: u32 = 50_000;
const PATIENT_SECS: u16 = 240;

/// /24s counted up from an address.
fn many(first: Ipv4Addr) -> anyhow::Result<Vec<IpNetwork>> {
    (0..LARGE)
        .map(|number| {
            let address = u32::from(first) + number * 256;
            Ok(IpNetwork::new(Ipv4Addr::from(address).into(), 24)?)
        })
        .collect()
}

fn large_tables(site: &Site) -> anyhow::Result<String> {
    let (from_us, from_them) = (many([20, 0, 0, 0].into())?, many([60, 0, 0, 0].into())?);
    let mut setup = site.setup()?;
    setup.routes = from_them.iter().copied().map(Announced::plain).collect();
    // ExaBGP is silent for longer than usual while it reads.
    setup.sessions[0].hold_time = PATIENT_SECS;
    let peer = site.peer(setup)?;
    let mut config = site.config()?;
    config.peer()?.text("hold_time", format!("{PATIENT_SECS}s"));
    config.routes = from_us
        .iter()
        .map(|prefix| Route {
            announced: Announced::plain(*prefix),
            next_hop: None,
        })
        .collect();
    let ours = site.us(&config)?;
    wait_established(&ours, "peer", &*peer)?;
    let within = SOON * 5;
    eventually("everything at us", within, || {
        let us = ours.peer("peer")?;
        let accepted = us["families"][0]["accepted"].as_u64().unwrap_or(0);
        ensure!(accepted == u64::from(LARGE), "{accepted} of {LARGE}");
        Ok(())
    })?;
    let routes = ours.bgp(&["routes", "--best"])?;
    let from_peer = |route: &&serde_json::Value| route["candidates"][0]["from"] == "peer";
    let have: BTreeSet<IpNetwork> = routes
        .as_array()
        .into_iter()
        .flatten()
        .filter(from_peer)
        .filter_map(|route| route["prefix"].as_str()?.parse().ok())
        .collect();
    ensure!(
        have == from_them.iter().copied().collect(),
        "we have {} prefixes, but other ones",
        have.len()
    );
    let wanted: BTreeSet<IpNetwork> = from_us.iter().copied().collect();
    eventually("everything at the peer", within, || {
        let have = peer.prefixes(Family::Ipv4)?;
        ensure!(
            have == wanted,
            "{} of {LARGE}",
            have.intersection(&wanted).count()
        );
        Ok(())
    })?;
    works()
}
