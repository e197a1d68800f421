//! What OPENs offer, seen from both sides (RFC 5492, 6793, 2918, 7313, 8654).

use anyhow::{Context, ensure};

use super::{Feature, works};
use crate::eventually::eventually;
use crate::interop::peer::{Capability, peer_cannot};
use crate::interop::peers::Kind;
use crate::interop::setup::{AsWidth, Family};
use crate::interop::site::{Member, SOON, Site, announced, wait_established, wait_ours, wait_theirs};

pub(super) const FEATURES: &[Feature] = &[
    Feature {
        name: "capabilities",
        title: "Capabilities: what each side understood of the other's OPEN",
        quick: true,
        run: capabilities,
    },
    Feature {
        name: "four-octet-as",
        title: "4-octet AS numbers (RFC 6793)",
        quick: false,
        run: four_octet_as,
    },
    Feature {
        name: "two-octet-peer",
        title: "A peer without 4-octet AS numbers (RFC 6793)",
        quick: true,
        run: two_octet_peer,
    },
    Feature {
        name: "refresh-ours",
        title: "Route refresh, asked by us (RFC 2918)",
        quick: true,
        run: refresh_ours,
    },
    Feature {
        name: "refresh-theirs",
        title: "Route refresh, asked by the peer (RFC 2918)",
        quick: true,
        run: refresh_theirs,
    },
    Feature {
        name: "enhanced-refresh",
        title: "Enhanced route refresh: answers between marks, which take no route away (RFC 7313)",
        quick: false,
        run: enhanced_refresh,
    },
];

/// What our OPEN offers in this case.
const OFFERED: [Capability; 7] = [
    Capability::Ipv4,
    Capability::Ipv6,
    Capability::RouteRefresh,
    Capability::EnhancedRefresh,
    Capability::FourOctetAs,
    Capability::ExtendedMessage,
    Capability::GracefulRestart,
];

/// Keys of `negotiated` in our view, and the peers that are known to offer their half of it.
const AGREED: [(&str, &[Kind]); 5] = [
    ("four_octet_as", &Kind::ALL),
    ("route_refresh", &Kind::ALL),
    ("enhanced_route_refresh", &[Kind::Bird, Kind::Frr, Kind::Openbgpd]),
    ("extended_message", &[Kind::Bird, Kind::Frr, Kind::Exabgp]),
    (
        "graceful_restart",
        &[Kind::Bird, Kind::Frr, Kind::Gobgp, Kind::Exabgp],
    ),
];

fn capabilities(site: &Site) -> anyhow::Result<String> {
    let mut setup = site.setup()?;
    let session = &mut setup.sessions[0];
    session.families = vec![Family::Ipv4, Family::Ipv6];
    session.graceful_restart = Some(60);
    let peer = site.peer(setup)?;
    let mut config = site.config()?;
    config.peer()?.set("families", "[\"ipv4\", \"ipv6\"]");
    let ours = site.us(&config)?;
    wait_established(&ours, "peer", &*peer)?;
    let view = peer.session("us")?;
    let mut not_shown = Vec::new();
    for capability in OFFERED {
        match view.received.get(&capability) {
            Some(true) => {}
            Some(false) => anyhow::bail!("the peer did not understand {capability:?}: {view:?}"),
            None => not_shown.push(format!("{capability:?}")),
        }
    }
    let negotiated = &ours.peer("peer")?["negotiated"];
    let families = negotiated["families"].to_string();
    ensure!(
        families.contains("ipv4") && families.contains("ipv6"),
        "{negotiated}"
    );
    for (key, peers) in AGREED {
        let agreed = negotiated[key] == true || negotiated[key].is_u64() || negotiated[key].is_object();
        ensure!(
            agreed || !peers.contains(&site.kind()),
            "{key} is not agreed on: {negotiated}"
        );
    }
    Ok(if not_shown.is_empty() {
        String::new()
    } else {
        format!(
            "the peer does not show whether it understood {}",
            not_shown.join(", ")
        )
    })
}

fn four_octet_as(site: &Site) -> anyhow::Result<String> {
    let (us, them) = (4_200_000_001, 4_200_000_002);
    let mut setup = site.setup()?;
    setup.asn = them;
    setup.sessions[0].remote_as = us;
    let peer = site.peer(setup)?;
    let mut config = site.config()?;
    config.asn = us;
    config.peer()?.set("as_number", them);
    let ours = site.us(&config)?;
    wait_established(&ours, "peer", &*peer)?;
    let candidate = wait_ours(&ours, "10.2.0.0/24")?;
    ensure!(
        candidate["attributes"]["as_path"].as_str() == Some(them.to_string().as_str()),
        "{candidate}"
    );
    wait_theirs(&*peer, "10.1.0.0/24")?;
    let paths = peer.paths("10.1.0.0/24".parse()?)?;
    ensure!(
        paths.iter().all(|path| path.as_path == us.to_string()),
        "{paths:?}"
    );
    works()
}

/// Our AS does not fit: the peer sees AS_TRANS, and what we pass on keeps its long numbers behind the peer's back.
fn two_octet_peer(site: &Site) -> anyhow::Result<String> {
    if site.kind() == Kind::Openbgpd && site.major()? >= 9 {
        return peer_cannot(
            "the session comes up; it withdraws every route with an AS4_PATH (\"aspath merge failed, path invalidated and prefix \
             withdrawn\" in its log), as short as AS_PATH 23456 with AS4_PATH 4200000001, which the others read",
        );
    }
    // BIRD without the capability takes no neighbour with a longer number.
    let us = if site.kind() == Kind::Bird {
        65001
    } else {
        4_200_000_001_u32
    };
    let mut setup = site.setup()?;
    let session = &mut setup.sessions[0];
    // ExaBGP without the capability does not look into ours; the others do, and expect the long number.
    session.remote_as = if site.kind() == Kind::Exabgp { 23456 } else { us };
    session.as_width = AsWidth::TwoOctets;
    let peer = site.peer(setup)?;
    let mut third = crate::interop::site::setup_of(Member::Third, 4_200_000_003, announced("10.3.0.0/24")?);
    third.sessions[0].remote_as = us;
    let third = site.third_bird(third)?;
    let mut config = site.config()?;
    config.asn = us;
    let mut other = crate::interop::ours::PeerKeys::new("third", Member::Third.v4().into(), 4_200_000_003);
    other.text("restart_time", "0s");
    config.peers.push(other);
    let ours = site.us(&config)?;
    wait_established(&ours, "peer", &*peer)?;
    ensure!(
        ours.peer("peer")?["negotiated"]["four_octet_as"] == false,
        "the peer offers 4-octet AS numbers"
    );
    wait_theirs(&*peer, "10.1.0.0/24")?;
    wait_theirs(&*peer, "10.3.0.0/24")?;
    let path = peer
        .paths("10.3.0.0/24".parse()?)?
        .into_iter()
        .next()
        .context("there is a path")?;
    ensure!(
        [
            "23456 23456",
            "4200000001 4200000003",
            "65001 23456",
            "65001 4200000003"
        ]
        .contains(&path.as_path.as_str()),
        "{path:?}"
    );
    // And in the other direction, through us.
    wait_theirs(&*third, "10.2.0.0/24")?;
    let path = third
        .paths("10.2.0.0/24".parse()?)?
        .into_iter()
        .next()
        .context("there is a path")?;
    ensure!(path.as_path == format!("{us} 65002"), "{path:?}");
    works()
}

fn refresh_ours(site: &Site) -> anyhow::Result<String> {
    if is_deaf_to_refresh(site)? {
        return peer_cannot(
            "it tests the wrong way round whether a family was negotiated: a ROUTE-REFRESH for one that was it ignores \
             (\"route refresh: AID IPv4 unicast not negotiated\" in its log), one for another it answers",
        );
    }
    let mut setup = site.setup()?;
    // OpenBGPD offers no family in so many words when it has only IPv4, and then answers no refresh.
    setup.sessions[0].families = vec![Family::Ipv4, Family::Ipv6];
    let peer = site.peer(setup)?;
    let mut config = site.config()?;
    config.peer()?.set("families", "[\"ipv4\", \"ipv6\"]");
    let plain = fails_at_marks(site)?;
    if plain {
        config.peer()?.set("enhanced_refresh", false);
    }
    let ours = site.us(&config)?;
    wait_established(&ours, "peer", &*peer)?;
    wait_ours(&ours, "10.2.0.0/24")?;
    wait_theirs(&*peer, "10.1.0.0/24")?;
    let count = |what: &str| -> anyhow::Result<u64> {
        ours.peer("peer")?["counters"][what].as_u64().context("a counter")
    };
    let before = count("updates_in")?;
    ours.bgp(&["refresh", "peer"])?;
    eventually("the peer sends its routes again", SOON, || {
        let now = count("updates_in")?;
        ensure!(now > before, "{now} UPDATEs, {before} before");
        Ok(())
    })?;
    wait_ours(&ours, "10.2.0.0/24")?;
    let us = ours.peer("peer")?;
    ensure!(
        us["established_count"] == 1,
        "the session broke: we say {}, the peer {:?}",
        us["last_error"],
        peer.session("us")?
    );
    Ok(if plain {
        "with `enhanced_refresh = false` on our side, see `enhanced-refresh`".to_owned()
    } else {
        String::new()
    })
}

/// OpenBGPD 7 ignores requests for families that were negotiated.
fn is_deaf_to_refresh(site: &Site) -> anyhow::Result<bool> {
    Ok(site.kind() == Kind::Openbgpd && site.major()? < 8)
}

/// ExaBGP 4 offers enhanced refresh whenever it offers refresh, and cannot write the marks.
fn fails_at_marks(site: &Site) -> anyhow::Result<bool> {
    Ok(site.kind() == Kind::Exabgp && site.major()? < 5)
}

fn refresh_theirs(site: &Site) -> anyhow::Result<String> {
    let peer = site.peer(site.setup()?)?;
    let ours = site.us(&site.config()?)?;
    wait_established(&ours, "peer", &*peer)?;
    wait_theirs(&*peer, "10.1.0.0/24")?;
    let count = || -> anyhow::Result<u64> {
        ours.peer("peer")?["counters"]["updates_out"]
            .as_u64()
            .context("a counter")
    };
    let before = count()?;
    peer.refresh("us")?;
    eventually("we send our routes again", SOON, || {
        let now = count()?;
        ensure!(now > before, "{now} UPDATEs, {before} before");
        Ok(())
    })?;
    wait_theirs(&*peer, "10.1.0.0/24")?;
    ensure!(ours.peer("peer")?["established_count"] == 1);
    works()
}

fn enhanced_refresh(site: &Site) -> anyhow::Result<String> {
    if fails_at_marks(site)? {
        return peer_cannot(
            "it offers it, and at the first request fails to write the mark that its answer begins with (TypeError: 'RouteRefresh' \
             object is not iterable) and closes the connection without NOTIFICATION",
        );
    }
    let mut setup = site.setup()?;
    // A refresh begins after End-of-RIB only (RFC 7313 §4.2), which some send with graceful restart only.
    setup.sessions[0].graceful_restart = Some(60);
    let peer = site.peer(setup)?;
    let ours = site.us(&site.config()?)?;
    wait_established(&ours, "peer", &*peer)?;
    wait_ours(&ours, "10.2.0.0/24")?;
    if ours.peer("peer")?["negotiated"]["enhanced_route_refresh"] != true {
        return peer_cannot("the peer does not offer it");
    }
    // Marks around the answer leave everything where it is, in both directions.
    if !is_deaf_to_refresh(site)? {
        let heard = || -> anyhow::Result<u64> {
            let us = ours.peer("peer")?;
            us["counters"]["route_refreshes_in"].as_u64().context("a counter")
        };
        let before = heard()?;
        ours.bgp(&["refresh", "peer"])?;
        eventually("the peer's answer begins and ends with a mark", SOON, || {
            let now = heard()?;
            ensure!(now >= before + 2, "{now} ROUTE-REFRESH messages, {before} before");
            Ok(())
        })?;
    }
    peer.refresh("us")?;
    crate::eventually::steadily(
        "both keep their routes",
        std::time::Duration::from_secs(1),
        || {
            let candidates = ours.candidates("10.2.0.0/24")?;
            ensure!(!candidates.is_empty(), "we lost it");
            let prefixes = peer.prefixes(Family::Ipv4)?;
            ensure!(
                prefixes.contains(&"10.1.0.0/24".parse()?),
                "the peer has {prefixes:?}"
            );
            Ok(())
        },
    )?;
    eventually("nothing is left half refreshed", SOON, || {
        let us = ours.peer("peer")?;
        ensure!(
            us["families"][0]["stale"] == 0 && us["established_count"] == 1,
            "{us}"
        );
        Ok(())
    })?;
    Ok(if is_deaf_to_refresh(site)? {
        "asked by the peer; asked by us see `refresh-ours`".to_owned()
    } else {
        String::new()
    })
}
