//! How sessions come up, stay and end (RFC 4271 §6.8, §8; RFC 9003).

use std::time::Duration;

use anyhow::ensure;
use rustix::process::Signal;

use super::{Feature, works};
use crate::eventually::{eventually, steadily};
use crate::interop::peer::peer_cannot;
use crate::interop::peers::Kind;
use crate::interop::setup::{Family, Opening, Remote};
use crate::interop::site::{
    LAN, Member, PEER_AS, SOON, Site, announced, route, wait_established, wait_ours, wait_ours_gone,
    wait_theirs, wait_theirs_gone,
};
use crate::netns::Namespace;

pub(super) const FEATURES: &[Feature] = &[
    Feature {
        name: "we-connect",
        title: "Session: we connect",
        quick: true,
        run: we_connect,
    },
    Feature {
        name: "they-connect",
        title: "Session: the peer connects",
        quick: false,
        run: they_connect,
    },
    Feature {
        name: "collision",
        title: "Connection collision: one session stays",
        quick: true,
        run: collision,
    },
    Feature {
        name: "ibgp",
        title: "IBGP",
        quick: false,
        run: ibgp,
    },
    Feature {
        name: "local-as",
        title: "Local AS: for the peer we are in its own AS, and the session is internal (RFC 7705)",
        quick: true,
        run: local_as,
    },
    Feature {
        name: "ipv6-transport",
        title: "Session over IPv6",
        quick: false,
        run: ipv6_transport,
    },
    Feature {
        name: "hold-timer",
        title: "Hold time 3 s: a dead link ends the session on both sides, which comes back",
        quick: false,
        run: hold_timer,
    },
    Feature {
        name: "wrong-as",
        title: "A wrong AS number is refused, and both sides say why",
        quick: true,
        run: wrong_as,
    },
    Feature {
        name: "our-shutdown-text",
        title: "Shutdown text, ours to the peer (RFC 9003)",
        quick: true,
        run: our_shutdown_text,
    },
    Feature {
        name: "their-shutdown-text",
        title: "Shutdown text, the peer's to us (RFC 9003)",
        quick: true,
        run: their_shutdown_text,
    },
];

const TEXT: &str = "rack 7 moves until noon";

fn we_connect(site: &Site) -> anyhow::Result<String> {
    let mut setup = site.setup()?;
    setup.sessions[0].opening = Opening::Passive;
    let mut peer = site.peer(setup)?;
    let mut config = site.config()?;
    let ours = site.us(&config)?;
    wait_established(&ours, "peer", &*peer)?;
    let transport = ours.peer("peer")?["transport"].to_string();
    ensure!(transport.contains("192.0.2.2:179"), "who connected? {transport}");
    // Announcements and withdrawals in both directions.
    wait_ours(&ours, "10.2.0.0/24")?;
    wait_theirs(&*peer, "10.1.0.0/24")?;
    config.routes.push(route("10.1.1.0/24")?);
    ours.reload(&config)?;
    wait_theirs(&*peer, "10.1.1.0/24")?;
    peer.announce(&announced("10.2.1.0/24")?)?;
    wait_ours(&ours, "10.2.1.0/24")?;
    config.routes.pop();
    ours.reload(&config)?;
    wait_theirs_gone(&*peer, "10.1.1.0/24")?;
    peer.withdraw("10.2.1.0/24".parse()?)?;
    wait_ours_gone(&ours, "10.2.1.0/24")?;
    wait_theirs(&*peer, "10.1.0.0/24")?;
    works()
}

fn they_connect(site: &Site) -> anyhow::Result<String> {
    let mut config = site.config()?;
    config.peer()?.set("passive", true);
    let ours = site.us(&config)?;
    let mut setup = site.setup()?;
    setup.sessions[0].opening = Opening::Eager;
    let peer = site.peer(setup)?;
    wait_established(&ours, "peer", &*peer)?;
    let transport = ours.peer("peer")?["transport"].to_string();
    ensure!(transport.contains("192.0.2.1:179"), "who connected? {transport}");
    wait_ours(&ours, "10.2.0.0/24")?;
    wait_theirs(&*peer, "10.1.0.0/24")?;
    works()
}

fn collision(site: &Site) -> anyhow::Result<String> {
    let mut setup = site.setup()?;
    setup.sessions[0].opening = Opening::Eager;
    let peer = site.peer(setup)?;
    let mut ours = site.us(&site.config()?)?;
    // OpenBGPD 9 stays Idle for more than 45 s after its second session that ended, and closes every connection meanwhile.
    let once = site.kind() == Kind::Openbgpd && site.major()? >= 9;
    for _ in 0..if once { 1 } else { 3 } {
        wait_established(&ours, "peer", &*peer)?;
        wait_theirs(&*peer, "10.1.0.0/24")?;
        eventually("one connection is left", SOON, || {
            let count = connections(site.namespace(Member::Us)?)?;
            ensure!(count == 1, "{count} connections");
            Ok(())
        })?;
        steadily("the session stays", Duration::from_secs(1), || {
            let us = ours.peer("peer")?;
            ensure!(
                us["state"] == "established" && us["established_count"] == 1,
                "{us}"
            );
            Ok(())
        })?;
        ours.kill()?;
        ours.launch(&site.lab)?;
    }
    wait_established(&ours, "peer", &*peer)?;
    Ok(if once {
        "after one restart of ours instead of three: after the second it stays Idle for longer than the 45 s that a case waits".to_owned()
    } else {
        String::new()
    })
}

fn connections(namespace: &Namespace) -> anyhow::Result<usize> {
    let text = namespace.run(std::process::Command::new("ss").args([
        "-Htn",
        "state",
        "established",
        "( sport = 179 or dport = 179 )",
    ]))?;
    Ok(text.lines().count())
}

fn ibgp(site: &Site) -> anyhow::Result<String> {
    let mut setup = site.setup()?;
    setup.asn = crate::interop::site::OUR_AS;
    let peer = site.peer(setup)?;
    let mut config = site.config()?;
    config.peer()?.set("as_number", config_as());
    let ours = site.us(&config)?;
    wait_established(&ours, "peer", &*peer)?;
    let candidate = wait_ours(&ours, "10.2.0.0/24")?;
    ensure!(
        candidate["source"] == "ibgp" || candidate["source"] == "internal",
        "{candidate}"
    );
    wait_theirs(&*peer, "10.1.0.0/24")?;
    let paths = peer.paths("10.1.0.0/24".parse()?)?;
    ensure!(paths.iter().all(|path| path.as_path.is_empty()), "{paths:?}");
    works()
}

fn local_as(site: &Site) -> anyhow::Result<String> {
    let mut setup = site.setup()?;
    setup.sessions[0].remote_as = PEER_AS;
    let peer = site.peer(setup)?;
    let mut config = site.config()?;
    config.peer()?.set("local_as", PEER_AS);
    let ours = site.us(&config)?;
    wait_established(&ours, "peer", &*peer)?;
    let candidate = wait_ours(&ours, "10.2.0.0/24")?;
    ensure!(candidate["source"] == "ibgp", "{candidate}");
    wait_theirs(&*peer, "10.1.0.0/24")?;
    let paths = peer.paths("10.1.0.0/24".parse()?)?;
    ensure!(paths.iter().all(|path| path.as_path.is_empty()), "{paths:?}");
    works()
}

fn config_as() -> u32 {
    crate::interop::site::OUR_AS
}

fn ipv6_transport(site: &Site) -> anyhow::Result<String> {
    let mut setup = site.setup()?;
    let session = &mut setup.sessions[0];
    session.remote = Remote::Address(Member::Us.v6().into());
    session.local = Some(Member::Peer.v6().into());
    session.families = vec![Family::Ipv6];
    setup.routes = vec![announced("2001:db8:2::/48")?];
    let peer = site.peer(setup)?;
    let mut config = site.config()?;
    config.routes = vec![route("2001:db8:1::/48")?];
    config
        .peer()?
        .text("address", Member::Peer.v6())
        .set("families", "[\"ipv6\"]");
    let ours = site.us(&config)?;
    wait_established(&ours, "peer", &*peer)?;
    wait_ours(&ours, "2001:db8:2::/48")?;
    wait_theirs(&*peer, "2001:db8:1::/48")?;
    works()
}

fn hold_timer(site: &Site) -> anyhow::Result<String> {
    let mut setup = site.setup()?;
    setup.sessions[0].hold_time = 3;
    let peer = site.peer(setup)?;
    let mut config = site.config()?;
    config.peer()?.text("hold_time", "3s").text("restart_time", "0s");
    let ours = site.us(&config)?;
    wait_established(&ours, "peer", &*peer)?;
    wait_ours(&ours, "10.2.0.0/24")?;
    ensure!(ours.peer("peer")?["negotiated"]["hold_time"] == 3);
    site.fabric.unplug("peer", LAN)?;
    wait_ours_gone(&ours, "10.2.0.0/24")?;
    let error = ours.peer("peer")?["last_error"].to_string().to_lowercase();
    ensure!(error.contains("hold timer"), "{error}");
    wait_theirs_gone(&*peer, "10.1.0.0/24")?;
    site.fabric.replug("peer", LAN)?;
    wait_established(&ours, "peer", &*peer)?;
    wait_ours(&ours, "10.2.0.0/24")?;
    works()
}

fn wrong_as(site: &Site) -> anyhow::Result<String> {
    let mut setup = site.setup()?;
    setup.sessions[0].opening = Opening::Eager;
    let peer = site.peer(setup)?;
    let mut config = site.config()?;
    config.peer()?.set("as_number", 65009).set("passive", true);
    let ours = site.us(&config)?;
    eventually("we say that the AS is wrong", SOON, || {
        let us = ours.peer("peer")?;
        let error = us["last_error"]["text"].to_string().to_lowercase();
        ensure!(error.contains("bad peer as"), "{us}");
        ensure!(us["established_count"] == 0, "{us}");
        Ok(())
    })?;
    let said = eventually("the peer says so too", Duration::from_secs(8), || {
        let view = peer.session("us")?;
        ensure!(!view.established, "{view:?}");
        let error = view.last_error.to_lowercase();
        let words = ["bad peer as", "as unacceptable", "(2,2)", "error(2,2)"];
        ensure!(words.iter().any(|word| error.contains(word)), "{view:?}");
        Ok(())
    });
    Ok(match said {
        Ok(()) => String::new(),
        Err(_) => "refused on our side with OPEN Message Error / Bad Peer AS; the peer does not show what it was told".to_owned(),
    })
}

fn our_shutdown_text(site: &Site) -> anyhow::Result<String> {
    if site.kind() == Kind::Exabgp && site.major()? < 5 {
        return peer_cannot(
            "it fails at reading a NOTIFICATION with a text (TypeError: %b requires a bytes-like object) and answers it with \
             Message Header Error, subcode 0; the text is not to be seen",
        );
    }
    let peer = site.peer(site.setup()?)?;
    let mut config = site.config()?;
    let ours = site.us(&config)?;
    wait_established(&ours, "peer", &*peer)?;
    config.peer()?.text("shutdown", TEXT);
    ours.reload(&config)?;
    eventually("the peer repeats our words", SOON, || {
        let view = peer.session("us")?;
        ensure!(!view.established && view.last_error.contains(TEXT), "{view:?}");
        Ok(())
    })?;
    wait_theirs_gone(&*peer, "10.1.0.0/24")?;
    // Back again, then the whole speaker goes.
    config.peer()?.unset("shutdown");
    ours.reload(&config)?;
    wait_established(&ours, "peer", &*peer)?;
    ours.signal(Signal::INT)?;
    eventually("the peer knows that we are gone", SOON, || {
        let view = peer.session("us")?;
        ensure!(!view.established, "{view:?}");
        Ok(())
    })?;
    works()
}

fn their_shutdown_text(site: &Site) -> anyhow::Result<String> {
    let peer = site.peer(site.setup()?)?;
    let ours = site.us(&site.config()?)?;
    wait_established(&ours, "peer", &*peer)?;
    wait_ours(&ours, "10.2.0.0/24")?;
    peer.shut_down("us", TEXT)?;
    // What is tried after the session may fail in its own words; the log keeps the peer's.
    eventually("we repeat the peer's words", SOON, || {
        let us = ours.peer("peer")?;
        ensure!(us["state"] != "established", "{us}");
        let told = us["last_error"].to_string().contains(TEXT) || ours.log()?.contains(TEXT);
        ensure!(told, "{us}");
        Ok(())
    })?;
    wait_ours_gone(&ours, "10.2.0.0/24")?;
    works()
}
