//! Facts about what an input does to the model.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::model::{DatastoreSnapshot, Input};

fn id(container: &str) -> EndpointId {
    EndpointId {
        network: "net".into(),
        container_id: container.into(),
        ifname: "eth0".into(),
    }
}

fn endpoint(host_interface: &str, address: &str) -> Endpoint {
    Endpoint {
        host_interface: host_interface.into(),
        addresses: BTreeSet::from([address.parse().unwrap()]),
        mac: None,
        namespace: None,
        pod: None,
        ..Endpoint::default()
    }
}

fn block(text: &str) -> IpNetwork {
    text.parse().unwrap()
}

fn attached(container: &str) -> Input {
    Input::Attached {
        id: id(container),
        endpoint: endpoint(&format!("cali{container}"), "10.0.0.1"),
        claimed_blocks: BTreeSet::from([block("10.0.0.0/26")]),
    }
}

fn snapshot(containers: &[&str]) -> Input {
    let endpoints = containers
        .iter()
        .map(|c| (id(c), endpoint(&format!("cali{c}"), "10.0.0.1")))
        .collect();
    Input::DatastoreSnapshot(DatastoreSnapshot {
        endpoints,
        ..DatastoreSnapshot::default()
    })
}

fn seen(container: &str) -> Input {
    Input::EndpointSeen(id(container), endpoint(&format!("cali{container}"), "10.0.0.1"))
}

fn after(inputs: impl IntoIterator<Item = Input>) -> Model {
    let mut model = Model::new("n".into());
    for input in inputs {
        model.absorb(input);
    }
    model
}

#[test]
fn which_endpoints_are_known_after_which_inputs() {
    let gone = || Input::EndpointUnseen(id("a"));
    let detached = || Input::Detached(id("a"));
    let rows: Vec<(&str, Vec<Input>, &[&str])> = vec![
        ("a snapshot replaces", vec![seen("a"), snapshot(&["b"])], &["b"]),
        ("seen", vec![seen("a")], &["a"]),
        ("seen, then deleted by somebody", vec![seen("a"), gone()], &[]),
        ("attached", vec![attached("a")], &["a"]),
        (
            "a picture from before the attachment",
            vec![attached("a"), snapshot(&[])],
            &["a"],
        ),
        (
            "a deletion from before the attachment",
            vec![attached("a"), gone()],
            &["a"],
        ),
        (
            "echoed by an event, then deleted",
            vec![attached("a"), seen("a"), gone()],
            &[],
        ),
        (
            "echoed by a snapshot, then gone",
            vec![attached("a"), snapshot(&["a"]), snapshot(&[])],
            &[],
        ),
        ("detached", vec![attached("a"), detached()], &[]),
        (
            "the echo of the attachment after its end",
            vec![attached("a"), detached(), seen("a")],
            &[],
        ),
        (
            "a picture from before the end",
            vec![seen("a"), detached(), snapshot(&["a"])],
            &[],
        ),
        (
            "all echoes, then a new life",
            vec![attached("a"), detached(), seen("a"), gone(), seen("a")],
            &["a"],
        ),
        (
            "attached again before the echo",
            vec![attached("a"), detached(), attached("a"), seen("a")],
            &["a"],
        ),
        (
            "detaching what is unknown leaves no trace",
            vec![detached(), seen("a")],
            &["a"],
        ),
    ];
    for (what, inputs, expected) in rows {
        let model = after(inputs);
        let known: Vec<&str> = model
            .endpoints
            .keys()
            .map(|id| id.container_id.as_str())
            .collect();
        assert_eq!(known, expected, "{what}");
    }
}

#[test]
fn a_claimed_block_stays_until_the_datastore_says_otherwise() {
    let own = block("10.0.0.0/26");
    let claimed = after([attached("a"), snapshot(&[])]);
    assert!(
        claimed.own_blocks.contains(&own),
        "a picture from before the claim"
    );
    let echoed = after([attached("a"), Input::OwnBlockConfirmed(own), snapshot(&["a"])]);
    assert!(
        echoed.own_blocks.is_empty(),
        "released by somebody after the echo"
    );
    let released = after([
        attached("a"),
        Input::OwnBlockConfirmed(own),
        Input::OwnBlockGone(own),
    ]);
    assert!(released.own_blocks.is_empty());
}

#[test]
fn a_new_container_of_the_same_pod_takes_the_host_interface_over() {
    let mut newer = attached("b");
    if let Input::Attached { endpoint, .. } = &mut newer {
        endpoint.host_interface = "calia".into();
    }
    let inputs = [attached("a"), newer, seen("a"), Input::Detached(id("a"))];
    for length in 2..=inputs.len() {
        let model = after(inputs[..length].iter().cloned());
        assert_eq!(
            model.endpoints.keys().collect::<Vec<_>>(),
            [&id("b")],
            "after {length} inputs"
        );
    }
}

#[test]
fn learned_routes_follow_the_latest_word() {
    let prefix = block("10.1.0.0/26");
    let hop = |address: &str| {
        Learned::via(BTreeSet::from([NextHop {
            address: address.parse().unwrap(),
            interface: None,
        }]))
    };
    let learned = |best| Input::Learned(BTreeMap::from([(prefix, best)]));
    let model = after([learned(hop("192.0.2.1")), learned(hop("192.0.2.2"))]);
    assert_eq!(model.learned.get(&prefix), hop("192.0.2.2").as_ref());
    assert!(
        after([learned(hop("192.0.2.1")), learned(None)])
            .learned
            .is_empty()
    );
    assert_eq!(
        Learned::via(BTreeSet::new()),
        None,
        "a route without next hop is none"
    );
}

#[test]
fn each_gate_opens_by_its_own_source() {
    assert_eq!(after([seen("a"), attached("b")]).in_sync, InSync::default());
    assert_eq!(
        after([snapshot(&[])]).in_sync,
        InSync {
            datastore: true,
            bgp: false,
            cluster: false,
        }
    );
    assert_eq!(
        after([Input::BgpInSync]).in_sync,
        InSync {
            datastore: false,
            bgp: true,
            cluster: false,
        }
    );
}

#[test]
fn an_echo_changes_nothing_and_news_do() {
    let block = || block("10.0.0.0/26");
    let rows: Vec<(&str, Vec<Input>, Input, bool)> = vec![
        ("the echo of an attachment", vec![attached("a")], seen("a"), false),
        (
            "an endpoint of somebody else",
            vec![attached("a")],
            seen("b"),
            true,
        ),
        (
            "the echo of a detachment",
            vec![seen("a"), Input::Detached(id("a"))],
            Input::EndpointUnseen(id("a")),
            false,
        ),
        (
            "an endpoint deleted by somebody",
            vec![seen("a")],
            Input::EndpointUnseen(id("a")),
            true,
        ),
        (
            "the echo of a claim",
            vec![attached("a")],
            Input::OwnBlockConfirmed(block()),
            false,
        ),
        (
            "a block lost",
            vec![attached("a")],
            Input::OwnBlockGone(block()),
            true,
        ),
        (
            "a detachment of what is unknown",
            vec![],
            Input::Detached(id("a")),
            false,
        ),
        ("BGP in sync", vec![], Input::BgpInSync, true),
        (
            "BGP in sync again",
            vec![Input::BgpInSync],
            Input::BgpInSync,
            false,
        ),
    ];
    for (what, before, input, expected) in rows {
        let mut model = after(before);
        let was = model.clone();
        assert_eq!(model.absorb(input) != Affected::Nothing, expected, "{what}");
        let is_other = (&model.endpoints, &model.own_blocks, model.in_sync)
            != (&was.endpoints, &was.own_blocks, was.in_sync);
        assert_eq!(is_other, expected, "{what}: what it says is true");
    }
}

#[test]
fn workloads_are_affected_as_they_were_and_as_they_are() {
    let mut model = Model::new("node-a".into());
    let interfaces = |affected: Affected| match affected {
        Affected::Workloads(endpoints) => endpoints
            .into_iter()
            .map(|endpoint| (endpoint.host_interface, endpoint.addresses))
            .collect::<BTreeSet<_>>(),
        other => panic!("{other:?}"),
    };
    let put = |container: &str, interface: &str, address: &str| {
        let endpoint = Endpoint {
            host_interface: interface.into(),
            addresses: [address.parse().unwrap()].into(),
            ..Endpoint::default()
        };
        Input::EndpointSeen(id(container), endpoint)
    };
    let of = |parts: &[(&str, &str)]| {
        let parts = parts.iter();
        parts
            .map(|(interface, address)| ((*interface).to_owned(), [address.parse().unwrap()].into()))
            .collect::<BTreeSet<_>>()
    };
    assert_eq!(
        interfaces(model.absorb(put("a", "cali1", "10.0.0.1"))),
        of(&[("cali1", "10.0.0.1")])
    );
    // A newer container of the same pod, then another address.
    assert_eq!(
        interfaces(model.absorb(put("b", "cali1", "10.0.0.2"))),
        of(&[("cali1", "10.0.0.1"), ("cali1", "10.0.0.2")])
    );
    assert_eq!(
        interfaces(model.absorb(put("b", "cali2", "10.0.0.3"))),
        of(&[("cali1", "10.0.0.2"), ("cali2", "10.0.0.3")])
    );
    assert_eq!(
        interfaces(model.absorb(Input::Detached(id("b")))),
        of(&[("cali2", "10.0.0.3")])
    );
    let claims = Input::Attached {
        id: id("c"),
        endpoint: Endpoint::default(),
        claimed_blocks: ["10.0.0.0/26".parse().unwrap()].into(),
    };
    assert_eq!(
        model.absorb(claims),
        Affected::Everything,
        "a block has routes and announcements"
    );
}

#[test]
fn what_the_datastore_shows_of_an_attachment_under_way_is_no_fact_yet() {
    let coming = || Input::Attaching(id("a"));
    let known = |inputs: Vec<Input>| {
        let model = after(inputs);
        (model.endpoints.contains_key(&id("a")), model)
    };
    for echo in [seen("a"), snapshot(&["a"])] {
        let (is_known, mut model) = known(vec![coming(), echo.clone()]);
        assert!(!is_known, "{echo:?}");
        // The echo has been: what is deleted from now on is deleted by somebody else.
        model.absorb(attached("a"));
        assert!(model.endpoints.contains_key(&id("a")));
        model.absorb(Input::EndpointUnseen(id("a")));
        assert!(!model.endpoints.contains_key(&id("a")), "after {echo:?}");
        // Given up: it is not to be seen again until it is deleted.
        let given_up = vec![coming(), echo.clone(), Input::Detached(id("a")), seen("a")];
        assert!(!known(given_up.clone()).0, "{echo:?}");
        let again = [given_up, vec![Input::EndpointUnseen(id("a")), seen("a")]].concat();
        assert!(known(again).0, "{echo:?}");
    }
    // The echo is still to come.
    assert!(known(vec![coming(), attached("a"), Input::EndpointUnseen(id("a"))]).0);
    assert!(known(vec![coming(), attached("a"), seen("a")]).0);
    // Given up before the datastore had it: nothing stays behind.
    let (is_known, model) = known(vec![coming(), Input::Detached(id("a"))]);
    assert!(!is_known && model.unechoed == Unechoed::default());
    // A deletion that is not repeated yet counts more.
    assert!(
        !known(vec![
            attached("a"),
            seen("a"),
            Input::Detached(id("a")),
            coming(),
            seen("a")
        ])
        .0
    );
}

#[test]
fn a_migration_goes_its_way() {
    use MigrationPhase::{Awaited, Live, Settling};
    use MigrationRole::{Source, Target};
    let interface = "calia".to_owned();
    let roles = |role: Option<MigrationRole>| {
        Input::MigrationRoles(role.map(|role| (interface.clone(), role)).into_iter().collect())
    };
    let here = || Input::MigratedHere(interface.clone());
    let settled = || Input::MigrationSettled(interface.clone());
    let rows = [
        (vec![], None),
        (vec![here(), settled(), roles(Some(Source)), roles(None)], None),
        (vec![roles(Some(Target))], Some(Awaited)),
        (
            vec![roles(Some(Target)), settled(), roles(Some(Target))],
            Some(Awaited),
        ),
        (vec![roles(Some(Target)), here()], Some(Live)),
        (
            vec![
                roles(Some(Target)),
                here(),
                settled(),
                here(),
                roles(Some(Target)),
            ],
            Some(Live),
        ),
        (vec![roles(Some(Target)), roles(None)], Some(Settling)),
        (vec![roles(Some(Target)), here(), roles(None)], Some(Settling)),
        (
            vec![
                roles(Some(Target)),
                here(),
                roles(None),
                here(),
                roles(Some(Target)),
            ],
            Some(Settling),
        ),
        (vec![roles(Some(Target)), here(), roles(None), settled()], None),
        (vec![roles(Some(Target)), here(), roles(Some(Source))], None),
        (
            vec![roles(Some(Target)), here(), roles(None), roles(Some(Source))],
            None,
        ),
        (vec![roles(Some(Target)), here(), Input::Detached(id("a"))], None),
        (
            vec![roles(Some(Target)), Input::EndpointUnseen(id("a")), roles(None)],
            None,
        ),
    ];
    for (inputs, expected) in rows {
        let model = after([seen("a")].into_iter().chain(inputs.clone()));
        assert_eq!(model.migrations.phase(&interface), expected, "{inputs:?}");
    }
    // It is said of one that is only coming.
    let model = after([Input::Attaching(id("a")), seen("a"), roles(Some(Target))]);
    assert_eq!(model.migrations.phases(), &BTreeMap::new());
    let model = after([
        Input::Attaching(id("a")),
        seen("a"),
        roles(Some(Target)),
        attached("a"),
    ]);
    assert_eq!(model.migrations.phase(&interface), Some(Awaited));
}

#[test]
fn after_a_restart_what_the_kernel_prefers_runs_here() {
    let snapshot = || {
        let endpoints = ["a", "b"].map(|name| {
            let address = if name == "a" { "10.0.0.1" } else { "10.0.0.2" };
            (id(name), endpoint(&format!("cali{name}"), address))
        });
        Input::DatastoreSnapshot(DatastoreSnapshot {
            endpoints: endpoints.into(),
            migrations: ["calia", "calib"]
                .map(|name| (name.to_owned(), MigrationRole::Target))
                .into(),
            ..DatastoreSnapshot::default()
        })
    };
    let mut model = Model::new("n".into());
    model.migrations = Migrations::after_restart(["10.0.0.2".parse().unwrap()].into());
    model.absorb(snapshot());
    assert_eq!(model.migrations.phase("calia"), Some(MigrationPhase::Awaited));
    assert_eq!(model.migrations.phase("calib"), Some(MigrationPhase::Live));
    model.absorb(snapshot());
    assert_eq!(model.migrations.phase("calib"), Some(MigrationPhase::Live));
}
