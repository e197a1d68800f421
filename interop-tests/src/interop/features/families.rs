//! Which routes over which transport (RFC 4760, 2545, 8950), and peers without addresses.

use anyhow::{Context, ensure};

use super::{Feature, works};
use crate::interop::ours::Route;
use crate::interop::peer::{Capability, peer_cannot};
use crate::interop::peers::Kind;
use crate::interop::setup::{Family, Remote};
use crate::interop::site::{LAN, Member, Site, announced, wait_established, wait_ours, wait_theirs};

pub(super) const FEATURES: &[Feature] = &[
    Feature {
        name: "both-families",
        title: "IPv4 and IPv6 routes over one IPv4 session (RFC 4760)",
        quick: true,
        run: both_families,
    },
    Feature {
        name: "v4-over-v6",
        title: "IPv4 routes with IPv6 next hops (RFC 8950)",
        quick: true,
        run: v4_over_v6,
    },
    Feature {
        name: "unnumbered",
        title: "Unnumbered: peers found by router advertisements on an interface",
        quick: false,
        run: unnumbered,
    },
];

fn both_families(site: &Site) -> anyhow::Result<String> {
    if site.kind() == Kind::Openbgpd {
        return peer_cannot(
            "over an IPv4 session it announces its IPv6 routes with the next hop ::1, which we refuse",
        );
    }
    let mut setup = site.setup()?;
    setup.sessions[0].families = vec![Family::Ipv4, Family::Ipv6];
    setup.routes.push(announced("2001:db8:2::/48")?);
    let peer = site.peer(setup)?;
    let mut config = site.config()?;
    config.peer()?.set("families", "[\"ipv4\", \"ipv6\"]");
    // Over IPv4 there is no address of ours to put in by itself.
    config.routes.push(Route {
        announced: announced("2001:db8:1::/48")?,
        next_hop: Some(Member::Us.v6().into()),
    });
    let ours = site.us(&config)?;
    wait_established(&ours, "peer", &*peer)?;
    wait_ours(&ours, "10.2.0.0/24")?;
    wait_theirs(&*peer, "10.1.0.0/24")?;
    wait_theirs(&*peer, "2001:db8:1::/48")?;
    let paths = peer.paths("2001:db8:1::/48".parse()?)?;
    ensure!(
        paths
            .iter()
            .any(|path| path.next_hop == Some(Member::Us.v6().into())),
        "{paths:?}"
    );
    wait_ours(&ours, "2001:db8:2::/48")?;
    works()
}

fn v4_over_v6(site: &Site) -> anyhow::Result<String> {
    let mut setup = site.setup()?;
    let session = &mut setup.sessions[0];
    session.remote = Remote::Address(Member::Us.v6().into());
    session.local = Some(Member::Peer.v6().into());
    session.extended_next_hop = true;
    let peer = site.peer(setup)?;
    let mut config = site.config()?;
    config
        .peer()?
        .text("address", Member::Peer.v6())
        .set("extended_next_hop", true);
    let ours = site.us(&config)?;
    wait_established(&ours, "peer", &*peer)?;
    if let Some(understood) = peer.session("us")?.received.get(&Capability::ExtendedNextHop) {
        ensure!(*understood, "the peer did not understand our capability");
    }
    let candidate = wait_ours(&ours, "10.2.0.0/24")?;
    let hop = candidate["attributes"]["next_hop"].as_str().unwrap_or_default();
    ensure!(hop.contains(':'), "{candidate}");
    wait_theirs(&*peer, "10.1.0.0/24")?;
    let paths = peer.paths("10.1.0.0/24".parse()?)?;
    let hop = paths
        .first()
        .and_then(|path| path.next_hop)
        .context("a next hop")?;
    ensure!(hop.is_ipv6(), "{paths:?}");
    works()
}

fn unnumbered(site: &Site) -> anyhow::Result<String> {
    let mut setup = site.setup()?;
    let session = &mut setup.sessions[0];
    session.remote = Remote::Interface(LAN);
    session.local = None;
    session.extended_next_hop = true;
    let peer = site.peer(setup)?;
    let mut config = site.config()?;
    config
        .peer()?
        .unset("address")
        .text("interface", LAN)
        .set("extended_next_hop", true);
    let ours = site.us(&config)?;
    wait_established(&ours, "peer", &*peer)?;
    wait_ours(&ours, "10.2.0.0/24")?;
    wait_theirs(&*peer, "10.1.0.0/24")?;
    let paths = peer.paths("10.1.0.0/24".parse()?)?;
    ensure!(
        paths
            .iter()
            .any(|path| path.next_hop.is_some_and(|hop| hop.is_ipv6())),
        "{paths:?}"
    );
    works()
}
