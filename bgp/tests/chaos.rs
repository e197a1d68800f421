//! Random histories on virtual time: connections are reset, links go dark, speakers die and return, routes come and go. Then everything is
//! mended, and every speaker must know exactly what is announced, with one session per link and nothing left of the past.
#![allow(clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod simulation;

use std::time::Duration;

use proptest::prelude::*;
use simulation::{World, open_peer, speaker};

const NODES: u8 = 4;

#[derive(Debug, Clone)]
enum Event {
    Reset(u8, u8),
    Cut(u8, u8),
    Mend(u8, u8),
    Kill(u8),
    Restart(u8),
    Originate(u8, u8),
    Wait(u16),
}

fn event() -> impl Strategy<Value = Event> {
    let node = 0..NODES;
    prop_oneof![
        (node.clone(), node.clone()).prop_map(|(a, b)| Event::Reset(a, b)),
        (node.clone(), node.clone()).prop_map(|(a, b)| Event::Cut(a, b)),
        (node.clone(), node.clone()).prop_map(|(a, b)| Event::Mend(a, b)),
        node.clone().prop_map(Event::Kill),
        node.clone().prop_map(Event::Restart),
        (node, any::<u8>()).prop_map(|(a, set)| Event::Originate(a, set)),
        (0..30_000u16).prop_map(Event::Wait),
        (0..200u16).prop_map(Event::Wait),
    ]
}

/// The prefixes of `node` that the bits of `set` name.
fn prefixes(node: u8, set: u8) -> Vec<String> {
    (0..8)
        .filter(|bit| set & (1 << bit) != 0)
        .map(|bit| format!("10.{node}.{bit}.0/24"))
        .collect()
}

fn originate(world: &mut World, node: u8, set: u8) {
    let prefixes = prefixes(node, set);
    world.originate(
        node.into(),
        &prefixes.iter().map(String::as_str).collect::<Vec<_>>(),
    );
}

/// A full mesh of EBGP.
fn mesh(latency: Duration) -> World {
    let mut world = World::new(latency);
    for i in 0..NODES {
        let others = (0..NODES).filter(|n| *n != i);
        let peers = others.map(|n| {
            open_peer(
                &format!("n{n}"),
                &format!("10.0.0.{}", n + 1),
                65001 + u32::from(n),
            )
        });
        world.add(
            &format!("10.0.0.{}", i + 1),
            speaker(65001 + u32::from(i), i + 1, peers.collect()),
        );
    }
    world
}

fn run(latency: u16, events: &[Event]) {
    let mut world = mesh(Duration::from_micros(latency.into()));
    let mut sets = [0u8; NODES as usize];
    let mut alive = [true; NODES as usize];
    for event in events {
        match *event {
            Event::Reset(a, b) if a != b => world.reset_connections(a.into(), b.into()),
            Event::Cut(a, b) if a != b => world.cut(a.into(), b.into()),
            Event::Mend(a, b) => world.mend(a.into(), b.into()),
            Event::Kill(n) if alive[usize::from(n)] => {
                alive[usize::from(n)] = false;
                world.kill(n.into());
            }
            Event::Restart(n) if !alive[usize::from(n)] => {
                alive[usize::from(n)] = true;
                world.restart(n.into());
                originate(&mut world, n, sets[usize::from(n)]);
            }
            Event::Originate(n, set) => {
                sets[usize::from(n)] = set;
                if alive[usize::from(n)] {
                    originate(&mut world, n, set);
                }
            }
            Event::Wait(millis) => world.run_for(Duration::from_millis(millis.into())),
            _ => {}
        }
    }
    for n in 0..NODES {
        for other in 0..NODES {
            world.mend(n.into(), other.into());
        }
        if !alive[usize::from(n)] {
            world.restart(n.into());
        }
        originate(&mut world, n, sets[usize::from(n)]);
    }
    let wanted: Vec<String> = (0..NODES)
        .flat_map(|n| prefixes(n, sets[usize::from(n)]))
        .collect();
    world.run_until(Duration::from_secs(1200), "everything known everywhere", |w| {
        (0..usize::from(NODES)).all(|node| {
            w.speaker(node).table_sizes().1 == wanted.len()
                && wanted.iter().all(|prefix| w.has_best(node, prefix))
                && (0..NODES)
                    .filter(|n| usize::from(*n) != node)
                    .all(|n| w.established(node, &format!("n{n}")))
        })
    });
    world.run_for(Duration::from_secs(600));
    for node in 0..usize::from(NODES) {
        assert_eq!(world.speaker(node).table_sizes().1, wanted.len(), "node {node}");
        for n in (0..NODES).filter(|n| usize::from(*n) != node) {
            let peer = world.peer(node, &format!("n{n}"));
            assert!(peer.families.iter().all(|family| family.stale == 0), "{peer:?}");
        }
    }
}

/// 48 histories, or as many as the environment asks for.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES")
        .ok()
        .and_then(|cases| cases.parse().ok())
        .unwrap_or(48)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), max_shrink_iters: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn after_any_history_everybody_knows_everything(
        latency in 0..50_000u16,
        events in prop::collection::vec(event(), 0..60),
    ) {
        run(latency, &events);
    }
}
