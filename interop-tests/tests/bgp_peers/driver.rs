//! The BGP speaker with its own driver, in a namespace beside a real BIRD and a real FRR: sessions, routes in both directions, restarts of either
//! side.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, anyhow, ensure};
use calidris_bgp::policy::Policy;
use calidris_bgp::route::{BestRoute, Origination};
use calidris_bgp::session::State;
use calidris_bgp::status::SpeakerStatus;
use calidris_bgp::{PeerConfig, SpeakerConfig};
use calidris_bgp_driver::{BgpHandle, DriverConfig, Shutdown, start};
use calidris_interop::daemon::{ESTABLISHED, Neighbor, Router, RouterConfig, RouterKind, start_router};
use calidris_interop::eventually::eventually;
use calidris_interop::fabric::Fabric;
use calidris_interop::lab::Lab;
use calidris_interop::netns::Namespace;
use calidris_interop::require;
use calidris_interop::require::Need;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;

const SOON: Duration = Duration::from_secs(30);
const NEEDS: &[Need] = &[Need::Root, Need::Iproute2, Need::Bird, Need::Frr];
const OURS: &str = "10.244.1.0/26";

/// A speaker of ours in a namespace, on a thread and runtime of its own.
struct Speaker {
    handle: BgpHandle,
    asking: Runtime,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<anyhow::Result<()>>>,
}

impl Speaker {
    fn start(namespace: &Namespace, config: DriverConfig) -> anyhow::Result<Self> {
        let (started, handle) = mpsc::channel();
        let (stop, stopped) = oneshot::channel();
        let namespace = namespace.clone();
        let thread = std::thread::spawn(move || {
            namespace.enter(move || {
                let runtime = Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(async {
                    started.send(start(config).await)?;
                    // An error means that whoever could stop us is gone.
                    let _ = stopped.await;
                    Ok(())
                })
            })?
        });
        let handle = handle.recv().context("the speaker's thread ended")??;
        let asking = Builder::new_current_thread().enable_all().build()?;
        Ok(Self {
            handle,
            asking,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Ends as by SIGKILL: the kernel closes the connections, nobody says a word.
    fn kill(mut self) -> anyhow::Result<()> {
        self.end()
    }

    fn end(&mut self) -> anyhow::Result<()> {
        drop(self.stop.take());
        match self.thread.take() {
            Some(thread) => thread
                .join()
                .map_err(|_| anyhow!("the speaker's thread panicked"))?,
            None => Ok(()),
        }
    }

    fn status(&self) -> anyhow::Result<SpeakerStatus> {
        Ok(self.asking.block_on(self.handle.status())?)
    }

    fn originate(&self, prefixes: &[&str]) -> anyhow::Result<()> {
        let mut routes = BTreeMap::new();
        for prefix in prefixes {
            routes.insert(prefix.parse()?, Origination::default());
        }
        Ok(self.asking.block_on(self.handle.originate(routes))?)
    }

    fn best(&self) -> anyhow::Result<BTreeMap<String, BestRoute>> {
        let changes = self.asking.block_on(self.handle.best_routes())?;
        Ok(changes
            .into_iter()
            .filter_map(|change| Some((change.prefix.to_string(), change.best?)))
            .collect())
    }

    fn wait_established(&self) -> anyhow::Result<()> {
        eventually("all sessions of the speaker", SOON, || {
            let status = self.status()?;
            ensure!(
                status.peers.iter().all(|peer| peer.state == State::Established),
                "{status:#?}"
            );
            Ok(())
        })
    }

    fn wait_in_sync(&self) -> anyhow::Result<()> {
        eventually("in sync", SOON, || {
            let status = self.status()?;
            ensure!(status.in_sync, "{status:#?}");
            Ok(())
        })
    }
}

impl Drop for Speaker {
    fn drop(&mut self) {
        // A failure here is that of a test that has failed already.
        let _ = self.end();
    }
}

/// One subnet with a speaker of ours (.1), BIRD (.2, AS 65001) and FRR (.3, AS 65002), each router with a subnet behind it.
struct Site {
    lab: Lab,
    us: Namespace,
    routers: Vec<Box<dyn Router + Send>>,
    local_as: u32,
}

impl Site {
    fn build(name: &str, local_as: u32) -> anyhow::Result<Self> {
        let lab = Lab::create(&format!("{name}-{}", std::process::id()))?;
        let fabric = Fabric::create(&lab)?;
        for subnet in ["lan", "stub1", "stub2"] {
            fabric.add_subnet(subnet)?;
        }
        let us = lab.namespace("us")?;
        fabric.plug(("us", &us), "lan", "192.0.2.1/24".parse()?)?;
        let mut routers = Vec::new();
        for (kind, name, host, stub) in [
            (RouterKind::Bird, "bird", 2, "stub1"),
            (RouterKind::Frr, "frr", 3, "stub2"),
        ] {
            let namespace = lab.namespace(name)?;
            fabric.plug((name, &namespace), "lan", format!("192.0.2.{host}/24").parse()?)?;
            fabric.plug(
                (name, &namespace),
                stub,
                format!("198.51.100.{}/27", host * 32 + 1).parse()?,
            )?;
            let config = RouterConfig {
                name: name.to_owned(),
                router_id: [192, 0, 2, host].into(),
                as_number: 64999 + u32::from(host),
                hold_time: 30,
                announce: vec![format!("198.51.100.{}/27", host * 32).parse()?],
                neighbors: vec![Neighbor {
                    name: "speaker".to_owned(),
                    address: [192, 0, 2, 1].into(),
                    as_number: local_as,
                }],
            };
            routers.push(start_router(&lab, kind, &namespace, config)?);
        }
        Ok(Self {
            lab,
            us,
            routers,
            local_as,
        })
    }

    fn config(&self, restarting: bool) -> DriverConfig {
        let peer = |name: &str, host: u8, asn: u32| {
            let mut peer = PeerConfig::new(name, [192, 0, 2, host].into(), asn);
            peer.import = Some(Policy::accept_all());
            peer.export = Some(Policy::accept_all());
            peer.connect_retry = Duration::from_secs(2);
            peer
        };
        let peers = vec![peer("bird", 2, 65001), peer("frr", 3, 65002)];
        DriverConfig {
            listen: vec![([0, 0, 0, 0], 179).into()],
            speaker: SpeakerConfig {
                peers,
                ..SpeakerConfig::new(self.local_as, [192, 0, 2, 1].into())
            },
            restarting,
            seed: u64::from(std::process::id()),
        }
    }

    /// Whether every router sends packets for our prefix to us.
    fn routers_have_ours(&self) -> anyhow::Result<()> {
        let us: IpAddr = [192, 0, 2, 1].into();
        for router in &self.routers {
            let routes = router.routes()?;
            let hops = routes
                .get(&OURS.parse()?)
                .with_context(|| format!("{OURS} is not in {routes:?}"))?;
            ensure!(hops.contains(&us), "{OURS} goes to {hops:?}");
        }
        Ok(())
    }
}

fn both_stubs(speaker: &Speaker) -> anyhow::Result<()> {
    let best = speaker.best()?;
    for (prefix, hop) in [
        ("198.51.100.64/27", [192, 0, 2, 2]),
        ("198.51.100.96/27", [192, 0, 2, 3]),
    ] {
        let route = best
            .get(prefix)
            .with_context(|| format!("{prefix} is not in {best:?}"))?;
        ensure!(
            route
                .next_hops
                .iter()
                .any(|next| next.address == IpAddr::from(hop)),
            "{route:?}"
        );
    }
    Ok(())
}

#[test]
fn bird_and_frr_exchange_routes_with_the_speaker_and_through_it() -> anyhow::Result<()> {
    require!(NEEDS);
    let site = Site::build("bgp-ebgp", 64513)?;
    let speaker = Speaker::start(&site.us, site.config(false))?;
    speaker.originate(&[OURS])?;
    speaker.wait_established()?;
    speaker.wait_in_sync()?;
    eventually("both stubs", SOON, || both_stubs(&speaker))?;
    eventually("our prefix at the routers", SOON, || site.routers_have_ours())?;
    eventually("each other's stub through us", SOON, || {
        for (router, stub) in site.routers.iter().zip(["198.51.100.96/27", "198.51.100.64/27"]) {
            let routes = router.routes()?;
            ensure!(routes.contains_key(&stub.parse()?), "{routes:?}");
        }
        Ok(())
    })?;
    speaker.originate(&[])?;
    eventually("our prefix gone", SOON, || {
        ensure!(site.routers_have_ours().is_err(), "still there");
        Ok(())
    })?;
    speaker.asking.block_on(speaker.handle.shutdown(Shutdown::Cease {
        text: "test over".to_owned(),
    }))?;
    eventually("the routers see the session end", SOON, || {
        for router in &site.routers {
            let sessions = router.sessions()?;
            ensure!(
                sessions.values().all(|state| state != ESTABLISHED),
                "{sessions:?}"
            );
        }
        Ok(())
    })?;
    drop(speaker);
    site.lab.take_down()
}

#[test]
fn a_killed_speaker_comes_back_and_no_router_drops_its_routes() -> anyhow::Result<()> {
    require!(NEEDS);
    let site = Site::build("bgp-kill", 64513)?;
    let mut speaker = Speaker::start(&site.us, site.config(false))?;
    speaker.originate(&[OURS])?;
    speaker.wait_in_sync()?;
    eventually("our prefix at the routers", SOON, || site.routers_have_ours())?;
    for _ in 0..2 {
        speaker.kill()?;
        eventually("the routers see the session end", SOON, || {
            for router in &site.routers {
                let sessions = router.sessions()?;
                ensure!(
                    sessions.values().all(|state| state != ESTABLISHED),
                    "{sessions:?}"
                );
            }
            Ok(())
        })?;
        site.routers_have_ours().context("after the kill")?;
        speaker = Speaker::start(&site.us, site.config(true))?;
        eventually("sessions again", SOON, || {
            site.routers_have_ours().context("while the sessions come back")?;
            let status = speaker.status()?;
            ensure!(
                status.peers.iter().all(|peer| peer.state == State::Established),
                "{status:#?}"
            );
            Ok(())
        })?;
        site.routers_have_ours()
            .context("before our routes are known again")?;
        speaker.originate(&[OURS])?;
        speaker.wait_in_sync()?;
        eventually("End-of-RIB sent", SOON, || {
            let status = speaker.status()?;
            let families = status.peers.iter().flat_map(|peer| &peer.families);
            ensure!(
                families.clone().all(|family| family.end_of_rib_sent),
                "{status:#?}"
            );
            site.routers_have_ours()
        })?;
        eventually("both stubs", SOON, || both_stubs(&speaker))?;
    }
    drop(speaker);
    site.lab.take_down()
}

#[test]
fn a_restarted_router_and_a_cleared_session_come_back() -> anyhow::Result<()> {
    require!(NEEDS);
    let mut site = Site::build("bgp-router", 64513)?;
    let speaker = Speaker::start(&site.us, site.config(false))?;
    speaker.originate(&[OURS])?;
    speaker.wait_in_sync()?;
    for round in 1..=2 {
        for router in 0..site.routers.len() {
            if round == 1 {
                site.routers[router].restart(&site.lab)?;
            } else {
                site.routers[router].clear("speaker")?;
            }
            eventually("the session was established again", SOON, || {
                let status = speaker.status()?;
                let peer = &status.peers[router];
                ensure!(
                    peer.established_count > round && peer.state == State::Established,
                    "{status:#?}"
                );
                Ok(())
            })?;
            eventually("both stubs", SOON, || both_stubs(&speaker))?;
            eventually("our prefix at the routers", SOON, || site.routers_have_ours())?;
        }
    }
    drop(speaker);
    site.lab.take_down()
}
