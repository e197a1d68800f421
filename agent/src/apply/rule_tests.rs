//! The table of remote routes and the rules that lead to it, against a kernel in memory: from any table to any other, with any call
//! failing, no destination is ever without a route that is looked up, and no table is looked up before what is here.

use proptest::prelude::*;

use super::tests::{IN_SYNC, is_as_desired, kernel, model, settle};
use super::*;
use crate::clock;
use crate::desired::{MAIN_TABLE, RuleAction, compute};
use crate::kernel::fake::{FakeKernel, Fault, foreign};
use crate::model::Model;

const FIRST: u32 = 32000;

fn with_table(table: u32) -> Model {
    let mut model = model();
    model.settings.remote_route_table = table;
    model
}

fn learned() -> BTreeSet<IpNetwork> {
    model().learned.into_keys().collect()
}

/// What was done about rules and learned routes.
fn lines(ops: &[Op]) -> Vec<String> {
    ops.iter()
        .filter(|op| match op {
            Op::Rule(_) => true,
            Op::Route(change) => learned().contains(&change.key().destination),
            _ => false,
        })
        .map(ToString::to_string)
        .collect()
}

fn settled(table: u32) -> Dataplane<FakeKernel> {
    let mut dataplane = Dataplane::new(kernel());
    settle(&mut dataplane, &compute(&with_table(table)));
    dataplane
}

#[test]
fn another_table_gets_its_rules_then_its_routes_and_then_the_old_ones_go() {
    let mut dataplane = Dataplane::new(settled(MAIN_TABLE).kernel);
    dataplane.kernel.never_without = learned();
    let there = compute(&with_table(100));
    let to_it = [
        "rule: create inet priority 32000 lookup main suppress_prefixlength 0",
        "rule: create inet priority 32001 lookup 100",
        "rule: create inet6 priority 32000 lookup main suppress_prefixlength 0",
        "rule: create inet6 priority 32001 lookup 100",
        "route: create 10.65.1.0/26 metric 1024 table 100 via 192.0.2.2 (bgp)",
        "route: create fd00:10:66::/64 metric 1024 table 100 via 2001:db8::2 (bgp)",
        "route: delete fd00:10:66::/64 metric 1024 via 2001:db8::2 (bgp)",
        "route: delete 10.65.1.0/26 metric 1024 via 192.0.2.2 (bgp)",
    ];
    let (planned, _) = dataplane.plan(&there, IN_SYNC);
    assert_eq!(lines(&planned), to_it);
    assert_eq!(lines(&settle(&mut dataplane, &there)), to_it);
    assert!(is_as_desired(&dataplane.kernel, &there));

    let mut second = Dataplane::new(dataplane.kernel);
    assert_eq!(settle(&mut second, &there), [], "a second start writes nothing");

    let back = lines(&settle(&mut second, &compute(&with_table(MAIN_TABLE))));
    assert_eq!(
        back[4..],
        [
            "rule: delete inet6 priority 32001 lookup 100",
            "rule: delete inet6 priority 32000 lookup main suppress_prefixlength 0",
            "rule: delete inet priority 32001 lookup 100",
            "rule: delete inet priority 32000 lookup main suppress_prefixlength 0",
        ]
    );
    assert!(second.kernel.rules.is_empty());
}

#[test]
fn before_everything_is_in_sync_rules_are_only_made() {
    let mut dataplane = Dataplane::new(settled(100).kernel);
    for wanted in [MAIN_TABLE, 200] {
        for in_sync in [
            InSync {
                datastore: false,
                ..IN_SYNC
            },
            InSync {
                bgp: false,
                ..IN_SYNC
            },
            InSync {
                cluster: false,
                ..IN_SYNC
            },
        ] {
            let report = dataplane.apply(&compute(&with_table(wanted)), in_sync, clock::now());
            let goes = |op: &Op| matches!(op, Op::Rule(Change::Delete { .. }));
            assert!(
                !report.ops.iter().any(goes),
                "{wanted} {in_sync:?}: {:#?}",
                report.ops
            );
        }
    }
    assert_eq!(dataplane.kernel.rules.len(), 6, "{:#?}", dataplane.kernel.rules);
}

#[test]
fn a_route_stays_while_the_one_that_takes_its_place_is_refused() {
    let mut dataplane = Dataplane::new(settled(MAIN_TABLE).kernel);
    dataplane.kernel.never_without = learned();
    let desired = compute(&with_table(100));
    let blocked = RouteKey {
        table: 100,
        ..RouteKey::main("10.65.1.0/26".parse().unwrap())
    };
    let in_the_way = foreign("10.65.1.0/26 via 192.0.2.9 proto static");
    dataplane.kernel.foreign.insert(blocked, in_the_way);
    let mut now = clock::now();
    for _ in 0..4 {
        let report = dataplane.apply(&desired, IN_SYNC, now);
        let mut failing: Vec<String> = report.failures.iter().map(ToString::to_string).collect();
        failing.sort_unstable_by_key(String::len);
        assert_eq!(failing.len(), 2, "{failing:#?}");
        assert!(
            failing[0].contains("the route that takes its place is not there yet"),
            "{failing:#?}"
        );
        assert!(failing[1].contains("proto static"), "{failing:#?}");
        now = report.retry_at.unwrap();
    }
    dataplane.kernel.foreign.clear();
    settle(&mut dataplane, &desired);
    assert!(is_as_desired(&dataplane.kernel, &desired));
}

#[test]
fn rules_of_ours_that_nobody_wants_go_also_those_of_another_kind() {
    let mut start = settled(100).kernel;
    let stray = |priority, action| Rule {
        is_ipv6: false,
        priority,
        action,
    };
    let lookup = RuleAction::Lookup {
        table: 77,
        without_default: false,
    };
    let strays = [stray(5, lookup), stray(FIRST + 1, RuleAction::Other(vec![2; 12]))];
    start.rules.extend(strays.clone());
    let mut dataplane = Dataplane::new(start);
    settle(&mut dataplane, &compute(&with_table(100)));
    assert_eq!(dataplane.kernel.rules, settled(100).kernel.rules);
    assert!(strays.iter().all(|stray| !dataplane.kernel.rules.contains(stray)));
}

/// What somebody else does to what is there.
fn damage(kernel: &mut FakeKernel, kind: u8) {
    match kind {
        0 => drop(kernel.rules.pop_first()),
        1 => drop(kernel.rules.pop_last()),
        2 => kernel.rules.clear(),
        3 => kernel.routes.retain(|key, _| key.table == MAIN_TABLE),
        _ => {
            let action = RuleAction::Lookup {
                table: 77,
                without_default: false,
            };
            kernel.rules.insert(Rule {
                is_ipv6: true,
                priority: FIRST + 1,
                action,
            });
        }
    }
}

fn any_settings() -> impl Strategy<Value = Desired> {
    let tables = prop_oneof![Just(MAIN_TABLE), Just(100), Just(200)];
    (tables, prop_oneof![Just(FIRST), Just(FIRST + 1), Just(7)]).prop_map(|(table, priority)| {
        let mut model = with_table(table);
        model.settings.rule_priority = priority;
        compute(&model)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn from_any_table_to_any_other_with_any_call_failing(
        before in any_settings(),
        after in any_settings(),
        damaged in proptest::collection::vec(0_u8..5, 0..3),
        kind in 0_usize..3,
    ) {
        let mut dataplane = Dataplane::new(kernel());
        settle(&mut dataplane, &before);
        let mut start = dataplane.kernel;
        if damaged.is_empty() {
            start.never_without = learned();
        }
        for kind in damaged {
            damage(&mut start, kind);
        }
        start.calls = 0;
        let mut undisturbed = Dataplane::new(start.clone());
        settle(&mut undisturbed, &after);
        for call in 0..undisturbed.kernel.calls {
            let fault = [Fault::Refused, Fault::LostBefore, Fault::LostAfter][kind];
            let mut dataplane = Dataplane::new(FakeKernel {
                fault: Some((call, fault)),
                ..start.clone()
            });
            settle(&mut dataplane, &after);
            let at = format!("call {call} {fault:?}: {:#?}", dataplane.kernel);
            prop_assert!(is_as_desired(&dataplane.kernel, &after), "{}", at);
            dataplane.note(KernelChange::Everything);
            prop_assert_eq!(settle(&mut dataplane, &after), vec![], "{}", at);
        }
    }
}
