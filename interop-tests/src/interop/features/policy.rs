//! Who may tell whom how much: roles (RFC 9234), prefix limits, default deny (RFC 8212), well-known communities.

use std::time::Duration;

use anyhow::ensure;

use super::{Feature, works};
use crate::eventually::{eventually, steadily};
use crate::interop::ours::Route;
use crate::interop::peer::Capability;
use crate::interop::setup::{Announced, Family};
use crate::interop::site::{SOON, Site, announced, route, wait_established, wait_ours, wait_theirs};

pub(super) const FEATURES: &[Feature] = &[
    Feature {
        name: "roles",
        title: "Roles that fit, and the Only to Customer attribute (RFC 9234)",
        quick: true,
        run: roles,
    },
    Feature {
        name: "roles-mismatch",
        title: "Roles that do not fit end the session (RFC 9234)",
        quick: false,
        run: roles_mismatch,
    },
    Feature {
        name: "max-prefix-ours",
        title: "Prefix limit of ours: the peer is told, and the session stays down",
        quick: false,
        run: max_prefix_ours,
    },
    Feature {
        name: "max-prefix-theirs",
        title: "Prefix limit of the peer's: we hear why the session ended",
        quick: false,
        run: max_prefix_theirs,
    },
    Feature {
        name: "default-deny",
        title: "EBGP without policy passes nothing (RFC 8212)",
        quick: false,
        run: default_deny,
    },
    Feature {
        name: "no-advertise",
        title: "Well-known communities from the peer are honoured (RFC 1997)",
        quick: false,
        run: no_advertise,
    },
];

fn roles(site: &Site) -> anyhow::Result<String> {
    let mut setup = site.setup()?;
    setup.sessions[0].role = Some("provider");
    let peer = site.peer(setup)?;
    let mut config = site.config()?;
    config.peer()?.text("role", "customer");
    let ours = site.us(&config)?;
    wait_established(&ours, "peer", &*peer)?;
    if let Some(understood) = peer.session("us")?.received.get(&Capability::Role) {
        ensure!(*understood, "the peer did not understand our role");
    }
    let candidate = wait_ours(&ours, "10.2.0.0/24")?;
    // From above: put in by the peer, or by us for it.
    ensure!(candidate["attributes"]["otc"] == 65002, "{candidate}");
    wait_theirs(&*peer, "10.1.0.0/24")?;
    works()
}

fn roles_mismatch(site: &Site) -> anyhow::Result<String> {
    let mut setup = site.setup()?;
    setup.sessions[0].role = Some("provider");
    let peer = site.peer(setup)?;
    let mut config = site.config()?;
    config.peer()?.text("role", "peer");
    let ours = site.us(&config)?;
    eventually("the mismatch is named", SOON, || {
        let us = ours.peer("peer")?;
        let named = ours.log()?.to_lowercase().contains("role mismatch");
        ensure!(named, "{us}");
        ensure!(us["established_count"] == 0, "{us}");
        Ok(())
    })?;
    let view = peer.session("us")?;
    ensure!(!view.established, "{view:?}");
    works()
}

fn ten(net: u8) -> anyhow::Result<Vec<Announced>> {
    (0..10)
        .map(|number| announced(&format!("10.{net}.{number}.0/24")))
        .collect()
}

fn max_prefix_ours(site: &Site) -> anyhow::Result<String> {
    let mut setup = site.setup()?;
    setup.routes = ten(2)?;
    let peer = site.peer(setup)?;
    let mut config = site.config()?;
    config.peer()?.set("max_prefixes", 5).text("restart_time", "0s");
    let ours = site.us(&config)?;
    eventually("we end the session", SOON, || {
        let us = ours.peer("peer")?;
        let named = ours.log()?.to_lowercase().contains("maximum number of prefixes");
        ensure!(named && us["state"] != "established", "{us}");
        Ok(())
    })?;
    steadily("it stays down", Duration::from_secs(3), || {
        let us = ours.peer("peer")?;
        ensure!(
            us["state"] != "established" && us["established_count"] == 1,
            "{us}"
        );
        Ok(())
    })?;
    config.peer()?.set("max_prefixes", 50);
    ours.reload(&config)?;
    wait_established(&ours, "peer", &*peer)?;
    wait_ours(&ours, "10.2.9.0/24")?;
    works()
}

fn max_prefix_theirs(site: &Site) -> anyhow::Result<String> {
    let mut setup = site.setup()?;
    setup.sessions[0].max_prefixes = Some(5);
    let peer = site.peer(setup)?;
    let mut config = site.config()?;
    config.routes = (0..10)
        .map(|n| route(&format!("10.1.{n}.0/24")))
        .collect::<Result<_, _>>()?;
    let ours = site.us(&config)?;
    eventually("we hear why", SOON, || {
        let us = ours.peer("peer")?;
        let log = ours.log()?.to_lowercase();
        ensure!(log.contains("maximum number of prefixes"), "{us}");
        Ok(())
    })?;
    let view = peer.session("us")?;
    ensure!(!view.established, "{view:?}");
    works()
}

fn default_deny(site: &Site) -> anyhow::Result<String> {
    let peer = site.peer(site.setup()?)?;
    let mut config = site.config()?;
    config.peer()?.unset("import").unset("export");
    let ours = site.us(&config)?;
    wait_established(&ours, "peer", &*peer)?;
    eventually("the peer has told its table", SOON, || {
        let us = ours.peer("peer")?;
        ensure!(us["families"][0]["received"] == 1, "{us}");
        Ok(())
    })?;
    let us = ours.peer("peer")?;
    ensure!(
        us["families"][0]["accepted"] == 0 && us["families"][0]["announced"] == 0,
        "{us}"
    );
    let prefixes = peer.prefixes(Family::Ipv4)?;
    ensure!(prefixes.is_empty(), "{prefixes:?}");
    // With policy everything passes, without a new session.
    ours.reload(&site.config()?)?;
    wait_ours(&ours, "10.2.0.0/24")?;
    wait_theirs(&*peer, "10.1.0.0/24")?;
    ensure!(ours.peer("peer")?["established_count"] == 1);
    works()
}

/// NO_ADVERTISE (65535:65282): what the peer sends so is used and passed on to nobody; what we send so stays at the peer.
fn no_advertise(site: &Site) -> anyhow::Result<String> {
    let mut setup = site.setup()?;
    let tagged = Announced {
        communities: vec![(65535, 65282)],
        ..announced("10.2.1.0/24")?
    };
    setup.routes.push(tagged);
    let peer = site.peer(setup)?;
    use crate::interop::site::{Member, THIRD_AS, setup_of};
    let third = site.third_bird(setup_of(Member::Third, THIRD_AS, announced("10.3.0.0/24")?))?;
    let mut config = site.config()?;
    config.routes.push(Route {
        announced: Announced {
            communities: vec![(65535, 65281)],
            ..announced("10.1.1.0/24")?
        },
        next_hop: None,
    });
    config.peers.push(crate::interop::ours::PeerKeys::new(
        "third",
        Member::Third.v4().into(),
        THIRD_AS,
    ));
    let ours = site.us(&config)?;
    wait_established(&ours, "peer", &*peer)?;
    wait_ours(&ours, "10.2.1.0/24")?;
    wait_theirs(&*third, "10.2.0.0/24")?;
    let prefixes = third.prefixes(Family::Ipv4)?;
    ensure!(
        !prefixes.contains(&"10.2.1.0/24".parse()?),
        "passed on: {prefixes:?}"
    );
    // NO_EXPORT on a route of ours: it does not leave our AS.
    ensure!(
        !prefixes.contains(&"10.1.1.0/24".parse()?),
        "exported: {prefixes:?}"
    );
    works()
}
