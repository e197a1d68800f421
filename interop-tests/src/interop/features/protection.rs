//! Who may speak to us at all (RFC 2385, 5082), and peers nobody listed.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::ensure;

use super::{Feature, works};
use crate::eventually::steadily;
use crate::interop::ours::Ours;
use crate::interop::peer::Peer;
use crate::interop::setup::{Opening, Remote};
use crate::interop::site::{OUR_AS, PEER_AS, SOON, Site, wait_established, wait_ours, wait_theirs};

pub(super) const FEATURES: &[Feature] = &[
    Feature {
        name: "md5",
        title: "TCP-MD5: right key, and a wrong one (RFC 2385)",
        quick: true,
        run: md5,
    },
    Feature {
        name: "gtsm",
        title: "GTSM on both sides, and on ours alone (RFC 5082)",
        quick: true,
        run: gtsm,
    },
    Feature {
        name: "dynamic-ours",
        title: "Dynamic neighbours: we take the peer from a range",
        quick: false,
        run: dynamic_ours,
    },
    Feature {
        name: "dynamic-md5",
        title: "Dynamic neighbours with TCP-MD5: a key for a range",
        quick: false,
        run: dynamic_md5,
    },
    Feature {
        name: "dynamic-theirs",
        title: "Dynamic neighbours: the peer takes us from a range",
        quick: false,
        run: dynamic_theirs,
    },
];

/// Long enough for every peer to have tried a few times.
const WINDOW: Duration = Duration::from_secs(4);

fn secret(site: &Site, text: &str) -> anyhow::Result<PathBuf> {
    let file = site.lab.folder("us")?.join("secret");
    std::fs::write(&file, text)?;
    Ok(file)
}

fn never_established(ours: &Ours, peer: &dyn Peer) -> anyhow::Result<()> {
    steadily("no session comes up", WINDOW, || {
        let us = ours.bgp(&["peers"])?;
        ensure!(!us.to_string().contains("\"established\""), "{us}");
        let them = peer.session("us")?;
        ensure!(!them.established, "{them:?}");
        Ok(())
    })
}

fn md5(site: &Site) -> anyhow::Result<String> {
    let mut setup = site.setup()?;
    setup.sessions[0].password = Some("sandpiper");
    let peer = site.peer(setup)?;
    let mut config = site.config()?;
    let file = secret(site, "sandpiper\n")?;
    config.peer()?.text("password_file", file.display());
    let mut ours = site.us(&config)?;
    wait_established(&ours, "peer", &*peer)?;
    wait_ours(&ours, "10.2.0.0/24")?;
    wait_theirs(&*peer, "10.1.0.0/24")?;
    ours.kill()?;
    secret(site, "sandpaper\n")?;
    ours.launch(&site.lab)?;
    crate::eventually::eventually("the peer misses us", SOON, || {
        let view = peer.session("us")?;
        ensure!(!view.established, "{view:?}");
        Ok(())
    })?;
    never_established(&ours, &*peer)?;
    works()
}

fn gtsm(site: &Site) -> anyhow::Result<String> {
    let mut setup = site.setup()?;
    setup.sessions[0].gtsm = true;
    setup.sessions[0].opening = Opening::Eager;
    let mut peer = site.peer(setup.clone())?;
    let mut config = site.config()?;
    config.peer()?.set("ttl_security", 1);
    let ours = site.us(&config)?;
    wait_established(&ours, "peer", &*peer)?;
    wait_ours(&ours, "10.2.0.0/24")?;
    // A peer that sends with the usual TTL could be anywhere.
    peer.kill()?;
    setup.sessions[0].gtsm = false;
    let peer = site.peer(setup)?;
    never_established(&ours, &*peer)?;
    works()
}

fn dynamic(site: &Site, password: Option<&'static str>) -> anyhow::Result<String> {
    let mut config = site.config()?;
    config.peers.clear();
    let mut range = crate::interop::ours::PeerKeys::default();
    range
        .text("name", "rack")
        .text("range", "192.0.2.0/24")
        .set("as_number", PEER_AS);
    range
        .set("families", "[\"ipv4\"]")
        .text("import", "accept")
        .text("export", "accept");
    if let Some(password) = password {
        let file = secret(site, password)?;
        range.text("password_file", file.display());
    }
    config.dynamic.push(range);
    let ours = site.us(&config)?;
    let mut setup = site.setup()?;
    setup.sessions[0].password = password;
    setup.sessions[0].opening = Opening::Eager;
    let peer = site.peer(setup)?;
    wait_theirs(&*peer, "10.1.0.0/24")?;
    wait_ours(&ours, "10.2.0.0/24")?;
    let peers = ours.bgp(&["peers"])?;
    ensure!(peers.to_string().contains("192.0.2.2"), "{peers}");
    works()
}

fn dynamic_ours(site: &Site) -> anyhow::Result<String> {
    dynamic(site, None)
}

fn dynamic_md5(site: &Site) -> anyhow::Result<String> {
    dynamic(site, Some("sandpiper"))
}

fn dynamic_theirs(site: &Site) -> anyhow::Result<String> {
    let mut setup = site.setup()?;
    let session = &mut setup.sessions[0];
    session.remote = Remote::Range("192.0.2.0/24".parse()?);
    session.remote_as = OUR_AS;
    session.opening = Opening::Passive;
    let peer = site.peer(setup)?;
    let ours = site.us(&site.config()?)?;
    wait_established(&ours, "peer", &*peer)?;
    wait_ours(&ours, "10.2.0.0/24")?;
    wait_theirs(&*peer, "10.1.0.0/24")?;
    works()
}
