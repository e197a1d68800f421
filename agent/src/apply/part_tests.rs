//! Pods that come and go one by one: the kernel ends up as if everything had been looked at each time, also with any call
//! failing.

use super::tests::{IN_SYNC, is_as_desired, kernel, model, settle};
use super::*;
use crate::desired::{NeighborSubject, NeighborTarget, compute, part};
use crate::kernel::fake::{FakeKernel, Fault};
use crate::model::{Affected, EndpointId, Input, Model};

/// How often the whole was looked at.
#[derive(Debug, Default, PartialEq, Eq)]
struct Looks {
    part: usize,
    whole: usize,
}

fn id(number: u8) -> EndpointId {
    EndpointId {
        network: "n".into(),
        container_id: format!("c{number}"),
        ifname: "eth0".into(),
    }
}

fn mac(number: u8) -> [u8; 6] {
    [2, 0, 0, 0, 1, number]
}

fn attached(number: u8, interface: &str, addresses: &[&str]) -> Input {
    Input::Attached {
        id: id(number),
        endpoint: Endpoint {
            host_interface: interface.into(),
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
            mac: Some(mac(number)),
            ..Endpoint::default()
        },
        claimed_blocks: BTreeSet::new(),
    }
}

/// A pod comes, one goes, one changes its addresses, one takes the place of another.
fn story() -> [Input; 4] {
    [
        attached(4, "cali4", &["10.65.0.4", "fd00:10:65::4"]),
        Input::Detached(id(2)),
        attached(3, "cali3", &["10.65.0.2"]),
        attached(5, "cali4", &["10.65.0.5"]),
    ]
}

/// As the node's thread does it.
fn take_in(dataplane: &mut Dataplane<FakeKernel>, model: &mut Model, input: Input, looks: &mut Looks) {
    let Affected::Workloads(touched) = model.absorb(input) else {
        panic!("something else is affected");
    };
    let part = part(model, &touched).unwrap();
    let is_settled = dataplane.is_settled(IN_SYNC);
    if is_settled && dataplane.apply_part(&part, IN_SYNC).is_some() {
        looks.part += 1;
    } else {
        looks.whole += 1;
        settle(dataplane, &compute(model));
    }
}

fn start() -> (FakeKernel, Model) {
    let (mut kernel, mut model) = (kernel(), model());
    kernel.add_link("cali4");
    model.links.insert("cali4".into());
    let mut dataplane = Dataplane::new(kernel);
    settle(&mut dataplane, &compute(&model));
    (dataplane.kernel, model)
}

fn tell(dataplane: &mut Dataplane<FakeKernel>, mut model: Model) -> (Model, Looks) {
    let mut looks = Looks::default();
    for input in story() {
        take_in(dataplane, &mut model, input, &mut looks);
    }
    (model, looks)
}

/// One that knows the kernel as it is.
fn knowing(kernel: FakeKernel, model: &Model) -> Dataplane<FakeKernel> {
    let mut dataplane = Dataplane::new(kernel);
    assert_eq!(settle(&mut dataplane, &compute(model)), []);
    dataplane
}

#[test]
fn parts_do_what_the_whole_would_do_and_read_nothing_back() {
    let (kernel, model) = start();
    let mut by_parts = knowing(kernel.clone(), &model);
    let before = by_parts.kernel.calls;
    let (end, looks) = tell(&mut by_parts, model.clone());
    assert_eq!(looks, Looks { part: 4, whole: 0 });
    assert!(is_as_desired(&by_parts.kernel, &compute(&end)));

    let mut as_whole = knowing(kernel, &model);
    let mut model = model;
    for input in story() {
        model.absorb(input);
        settle(&mut as_whole, &compute(&model));
    }
    let state = |kernel: &FakeKernel| {
        (
            kernel.routes.clone(),
            kernel.sysctls.clone(),
            kernel.nft.clone(),
            kernel.links.clone(),
            kernel.forgotten.clone(),
        )
    };
    assert_eq!(state(&by_parts.kernel), state(&as_whole.kernel));
    assert_eq!(by_parts.kernel.writes, as_whole.kernel.writes);
    assert_eq!(by_parts.kernel.calls - before, as_whole.kernel.calls - before);
    by_parts.note(KernelChange::Everything);
    assert_eq!(settle(&mut by_parts, &compute(&end)), []);
}

/// What the kernel learnt of an address by asking.
fn learnt(interface: &str, address: &str, mac: [u8; 6]) -> (NeighborKey, ObservedNeighbor) {
    let key = NeighborKey {
        interface: interface.to_owned(),
        subject: NeighborSubject::Address(address.parse().unwrap()),
    };
    let found = ObservedNeighbor {
        target: NeighborTarget::Mac(mac),
        is_permanent: false,
        is_marked: false,
    };
    (key, found)
}

#[test]
fn what_the_kernel_learnt_of_a_pod_stays_for_good_if_it_is_what_the_endpoint_says() {
    let (kernel, mut model) = start();
    let mut dataplane = knowing(kernel, &model);
    let addresses = ["10.65.0.4", "fd00:10:65::4"];
    take_in(
        &mut dataplane,
        &mut model,
        attached(4, "cali4", &addresses),
        &mut Looks::default(),
    );
    let endpoint = model.endpoints[&id(4)].clone();
    let mut hear = |(key, found): (NeighborKey, ObservedNeighbor)| {
        dataplane.kernel.neighbors.insert(key.clone(), found);
        let links = dataplane.note_neighbors(&[(key.clone(), Some(found))].into());
        assert_eq!(links, ["cali4".to_owned()].into());
        let part = part(&model, std::slice::from_ref(&endpoint)).unwrap();
        let report = dataplane.apply_part(&part, IN_SYNC).unwrap();
        assert!(report.failures.is_empty(), "{report:?}");
        dataplane.kernel.neighbors[&key].is_permanent
    };
    assert!(
        !hear(learnt("cali4", "10.65.0.4", mac(9))),
        "another plugin gave it another"
    );
    assert!(!hear(learnt("cali4", "10.65.0.9", mac(4))), "not its address");
    for address in addresses {
        assert!(hear(learnt("cali4", address, mac(4))), "{address}");
    }
    // Nothing more to do: neither now nor for one that has just started, nor is that a finding.
    dataplane.note(KernelChange::Everything);
    assert_eq!(settle(&mut dataplane, &compute(&model)), []);
    let mut second = knowing(dataplane.kernel, &model);

    // Another address, the same link.
    take_in(
        &mut second,
        &mut model,
        attached(4, "cali4", &["10.65.0.5"]),
        &mut Looks::default(),
    );
    let left: Vec<String> = second
        .kernel
        .neighbors
        .iter()
        .filter(|(_, found)| found.is_permanent)
        .map(|(key, _)| key.to_string())
        .collect();
    assert_eq!(left, [""; 0]);
}

#[test]
fn with_any_call_failing_a_pods_neighbours_get_there() {
    let (kernel, mut model) = start();
    let mut undisturbed = knowing(kernel, &model);
    let attached = attached(4, "cali4", &["10.65.0.4"]);
    take_in(&mut undisturbed, &mut model, attached, &mut Looks::default());
    let endpoint = model.endpoints[&id(4)].clone();
    let (key, found) = learnt("cali4", "10.65.0.4", mac(4));
    undisturbed.kernel.neighbors.insert(key.clone(), found);
    // One that an earlier agent left, of an address that the pod does not have.
    let (stale, stale_found) = learnt("cali4", "10.65.0.77", mac(4));
    let stale_found = ObservedNeighbor {
        is_permanent: true,
        is_marked: true,
        ..stale_found
    };
    undisturbed.kernel.neighbors.insert(stale.clone(), stale_found);
    for call in 0..20 {
        for fault in [Fault::Refused, Fault::LostBefore, Fault::LostAfter] {
            let mut dataplane = Dataplane::new(undisturbed.kernel.clone());
            dataplane.kernel.fault = Some((dataplane.kernel.calls + call, fault));
            settle(&mut dataplane, &compute(&model));
            assert!(
                !dataplane.kernel.neighbors.contains_key(&stale),
                "call {call} {fault:?}"
            );
            // The kernel says it again for as long as packets go there.
            for _ in 0..2 {
                dataplane.note_neighbors(&[(key.clone(), Some(dataplane.kernel.neighbors[&key]))].into());
                let part = part(&model, std::slice::from_ref(&endpoint)).unwrap();
                if dataplane.apply_part(&part, IN_SYNC).is_none() {
                    settle(&mut dataplane, &compute(&model));
                }
            }
            assert!(
                dataplane.kernel.neighbors[&key].is_permanent,
                "call {call} {fault:?}"
            );
        }
    }
}

#[test]
fn with_any_call_failing_in_any_way_parts_get_there_too() {
    let (kernel, model) = start();
    let mut undisturbed = knowing(kernel.clone(), &model);
    let before = undisturbed.kernel.calls;
    tell(&mut undisturbed, model.clone());
    let calls = undisturbed.kernel.calls;
    assert!(calls > before + 15, "{} calls only", calls - before);
    for call in before..calls {
        for fault in [Fault::Refused, Fault::LostBefore, Fault::LostAfter] {
            let mut dataplane = knowing(kernel.clone(), &model);
            dataplane.kernel.fault = Some((call, fault));
            let (end, _) = tell(&mut dataplane, model.clone());
            let desired = compute(&end);
            let at = format!("call {call} {fault:?}");
            assert!(
                is_as_desired(&dataplane.kernel, &desired),
                "{at}: {:#?}",
                dataplane.kernel.routes
            );
            dataplane.note(KernelChange::Everything);
            assert_eq!(settle(&mut dataplane, &desired), [], "{at}");
        }
    }
}
