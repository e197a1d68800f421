//! Proxy neighbours against a kernel in memory: from anything to anything with any call failing, and what others have stays.

use proptest::collection::{btree_map, btree_set};
use proptest::prelude::*;

use super::tests::{IN_SYNC, is_as_desired, kernel, settle};
use super::*;
use crate::clock;
use crate::desired::{Part, Scope};
use crate::kernel::Maker;
use crate::kernel::fake::{FakeKernel, Fault};

fn proxy(number: u8) -> ProxyNeighbor {
    let text = match number {
        0..4 => format!("192.0.2.{number}"),
        _ => format!("2001:db8::{number}"),
    };
    ProxyNeighbor {
        address: text.parse().unwrap(),
        interface: ["up0", "cali2"][usize::from(number % 2)].to_owned(),
    }
}

fn desired(numbers: &[u8]) -> Desired {
    Desired {
        proxy_neighbors: numbers.iter().map(|number| proxy(*number)).collect(),
        ..Desired::default()
    }
}

fn lines(ops: &[Op]) -> Vec<String> {
    let ops = ops.iter().filter(|op| matches!(op, Op::ProxyNeighbor(_)));
    ops.map(ToString::to_string).collect()
}

#[test]
fn they_are_made_and_deleted_and_a_second_start_writes_nothing() {
    let mut dataplane = Dataplane::new(kernel());
    let created = [
        "proxy neighbor: create 192.0.2.2 dev up0",
        "proxy neighbor: create 2001:db8::4 dev up0",
    ];
    assert_eq!(lines(&settle(&mut dataplane, &desired(&[2, 4]))), created);
    let mut second = Dataplane::new(dataplane.kernel);
    assert_eq!(settle(&mut second, &desired(&[2, 4])), []);
    let not_in_sync = InSync {
        datastore: false,
        ..IN_SYNC
    };
    let early = second.apply(&desired(&[4]), not_in_sync, clock::now());
    assert_eq!(lines(&early.ops), [""; 0]);
    assert_eq!(
        lines(&settle(&mut second, &desired(&[4]))),
        ["proxy neighbor: delete 192.0.2.2 dev up0"]
    );
}

#[test]
fn what_somebody_else_has_already_is_enough_and_stays() {
    let mut start = kernel();
    start.proxy_neighbors = [(proxy(2), Maker::Another), (proxy(6), Maker::Another)].into();
    let theirs = start.proxy_neighbors.clone();
    let mut dataplane = Dataplane::new(start);
    assert_eq!(lines(&settle(&mut dataplane, &desired(&[2]))), [""; 0]);
    assert_eq!(lines(&settle(&mut dataplane, &desired(&[]))), [""; 0]);
    assert_eq!(dataplane.kernel.proxy_neighbors, theirs);
    // It goes: ours takes its place, once that is seen.
    dataplane.kernel.proxy_neighbors.remove(&proxy(2));
    dataplane.note(KernelChange::Everything);
    assert_eq!(lines(&settle(&mut dataplane, &desired(&[2]))).len(), 1);
}

#[test]
fn what_the_kernel_takes_with_a_link_that_was_down_or_lost_its_addresses_is_made_again() {
    let mut dataplane = Dataplane::new(kernel());
    settle(&mut dataplane, &desired(&[2, 4]));
    for how in 0..2 {
        dataplane.kernel.proxy_neighbors.clear();
        if how == 0 {
            dataplane.note_bounced(&["up0".to_owned()].into(), |_| false);
        } else {
            dataplane.note(KernelChange::Addresses);
        }
        assert_eq!(lines(&settle(&mut dataplane, &desired(&[2, 4]))).len(), 2);
    }
}

#[test]
fn those_of_a_pod_that_comes_or_goes_follow_without_a_look_at_the_others() {
    let mut start = kernel();
    start.proxy_neighbors = [(proxy(6), Maker::Another)].into();
    let mut dataplane = Dataplane::new(start);
    settle(&mut dataplane, &desired(&[2, 4]));
    let calls = dataplane.kernel.calls;
    let part = Part {
        scope: Scope {
            addresses: [2, 6, 0].map(|number| proxy(number).address).into(),
            ..Scope::default()
        },
        proxy_neighbors: [proxy(0)].into(),
        ..Part::default()
    };
    let report = dataplane.apply_part(&part, IN_SYNC).unwrap();
    assert_eq!(
        lines(&report.ops),
        [
            "proxy neighbor: delete 192.0.2.2 dev up0",
            "proxy neighbor: create 192.0.2.0 dev up0"
        ]
    );
    assert_eq!(dataplane.kernel.calls, calls + 2);
    assert!(is_as_desired(&dataplane.kernel, &desired(&[0, 4])));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn from_anything_to_anything_with_any_call_failing(
        there in btree_map(0_u8..8, any::<bool>(), 0..6),
        wanted in btree_set(0_u8..8, 0..6),
        kind in 0_usize..3,
    ) {
        let after = Desired {
            proxy_neighbors: wanted.iter().map(|number| proxy(*number)).collect(),
            ..Desired::default()
        };
        let mut start = kernel();
        let maker = |is_ours| if is_ours { Maker::Us } else { Maker::Another };
        let there = there.into_iter();
        start.proxy_neighbors = there.map(|(number, is_ours)| (proxy(number), maker(is_ours))).collect();
        let theirs = |kernel: &FakeKernel| {
            let mut found = kernel.proxy_neighbors.clone();
            found.retain(|_, maker| *maker == Maker::Another);
            found
        };
        let mut undisturbed = Dataplane::new(start.clone());
        settle(&mut undisturbed, &after);
        for call in 0..undisturbed.kernel.calls {
            let fault = [Fault::Refused, Fault::LostBefore, Fault::LostAfter][kind];
            let mut dataplane = Dataplane::new(FakeKernel {
                fault: Some((call, fault)),
                ..start.clone()
            });
            settle(&mut dataplane, &after);
            let at = format!("call {call} {fault:?}: {:#?}", dataplane.kernel.proxy_neighbors);
            prop_assert!(is_as_desired(&dataplane.kernel, &after), "{}", at);
            prop_assert_eq!(theirs(&dataplane.kernel), theirs(&start));
            prop_assert_eq!(dataplane.kernel.writes, undisturbed.kernel.writes, "{}", at);
            dataplane.note(KernelChange::Everything);
            prop_assert_eq!(settle(&mut dataplane, &after), vec![], "{}", at);
        }
    }
}
