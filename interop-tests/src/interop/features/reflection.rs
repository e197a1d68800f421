//! Route reflection (RFC 4456).

use anyhow::{Context, ensure};

use super::{Feature, works};
use crate::interop::ours::PeerKeys;
use crate::interop::setup::{Remote, Setup};
use crate::interop::site::{
    Member, OUR_AS, Site, announced, setup_of, wait_established, wait_ours, wait_theirs, wait_theirs_gone,
};

pub(super) const FEATURES: &[Feature] = &[
    Feature {
        name: "we-reflect",
        title: "Route reflection: we reflect between two clients (RFC 4456)",
        quick: true,
        run: we_reflect,
    },
    Feature {
        name: "they-reflect",
        title: "Route reflection: the peer reflects to us (RFC 4456)",
        quick: false,
        run: they_reflect,
    },
    Feature {
        name: "reflector-chain",
        title: "Route reflection: a chain of two reflectors, and withdrawal through it (RFC 4456)",
        quick: false,
        run: chain,
    },
];

fn client(name: &str, member: Member) -> PeerKeys {
    let mut keys = PeerKeys::new(name, member.v4().into(), OUR_AS);
    keys.set("route_reflector_client", true);
    keys
}

fn we_reflect(site: &Site) -> anyhow::Result<String> {
    let mut setup = site.setup()?;
    setup.asn = OUR_AS;
    let peer = site.peer(setup)?;
    let twin = site.twin(setup_of(Member::Third, OUR_AS, announced("10.3.0.0/24")?))?;
    let mut config = site.config()?;
    config.peers = vec![client("peer", Member::Peer), client("third", Member::Third)];
    let ours = site.us(&config)?;
    wait_established(&ours, "peer", &*peer)?;
    wait_established(&ours, "third", &*twin)?;
    wait_theirs(&*peer, "10.3.0.0/24")?;
    wait_theirs(&*twin, "10.2.0.0/24")?;
    let path = twin
        .paths("10.2.0.0/24".parse()?)?
        .into_iter()
        .next()
        .context("there is a path")?;
    ensure!(
        path.next_hop == Some(Member::Peer.v4().into()) && path.as_path.is_empty(),
        "{path:?}"
    );
    works()
}

/// The peer with a session to us and one to the third, both its clients.
fn reflector(site: &Site) -> anyhow::Result<Setup> {
    let mut setup = site.setup()?;
    setup.asn = OUR_AS;
    setup.sessions[0].reflector_client = true;
    let mut other = setup.sessions[0].clone();
    other.name = "third";
    other.remote = Remote::Address(Member::Third.v4().into());
    setup.sessions.push(other);
    Ok(setup)
}

/// The third, a client of the peer.
fn client_of_peer() -> anyhow::Result<Setup> {
    let mut setup = setup_of(Member::Third, OUR_AS, announced("10.3.0.0/24")?);
    setup.sessions[0].remote = Remote::Address(Member::Peer.v4().into());
    Ok(setup)
}

fn they_reflect(site: &Site) -> anyhow::Result<String> {
    let peer = site.peer(reflector(site)?)?;
    let third = site.third_bird(client_of_peer()?)?;
    let mut config = site.config()?;
    config.peer()?.set("as_number", OUR_AS);
    let ours = site.us(&config)?;
    wait_established(&ours, "peer", &*peer)?;
    let candidate = wait_ours(&ours, "10.3.0.0/24")?;
    let attributes = &candidate["attributes"];
    ensure!(
        attributes["originator_id"] == Member::Third.v4().to_string(),
        "{candidate}"
    );
    ensure!(
        attributes["cluster_list"]
            .as_array()
            .is_some_and(|list| list.len() == 1),
        "{candidate}"
    );
    ensure!(
        attributes["next_hop"] == Member::Third.v4().to_string(),
        "{candidate}"
    );
    wait_theirs(&*third, "10.1.0.0/24")?;
    works()
}

/// client (third) — reflector (peer) — reflector (we), which has the peer as non-client.
fn chain(site: &Site) -> anyhow::Result<String> {
    let mut setup = reflector(site)?;
    setup.sessions[0].reflector_client = false;
    let peer = site.peer(setup)?;
    let mut third = site.third_bird(client_of_peer()?)?;
    let mut config = site.config()?;
    config.peers = vec![client("peer", Member::Peer)];
    let ours = site.us(&config)?;
    wait_established(&ours, "peer", &*peer)?;
    wait_ours(&ours, "10.3.0.0/24")?;
    wait_theirs(&*third, "10.1.0.0/24")?;
    third.withdraw("10.3.0.0/24".parse()?)?;
    crate::interop::site::wait_ours_gone(&ours, "10.3.0.0/24")?;
    third.announce(&announced("10.3.1.0/24")?)?;
    wait_ours(&ours, "10.3.1.0/24")?;
    config.routes.clear();
    ours.reload(&config)?;
    wait_theirs_gone(&*third, "10.1.0.0/24")?;
    ensure!(ours.peer("peer")?["established_count"] == 1);
    works()
}
