//! Block algebra against a model: a map of owners and a queue of free addresses.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

const CIDR: &str = "10.0.0.16/29";

#[derive(Clone, Debug)]
enum Operation {
    /// So many from the front, for this owner.
    Automatic(usize, u8),
    /// These ordinals, for this owner.
    Exactly(Vec<usize>, u8),
    /// These ordinals back.
    Release(Vec<usize>),
    /// Everything of an owner back.
    ReleaseOwner(u8),
}

fn operation() -> impl Strategy<Value = Operation> {
    // Ordinals up to 9 in a block of 8: some are outside.
    let ordinals = || prop::collection::vec(0usize..10, 1..4);
    prop_oneof![
        (1usize..4, 0u8..4).prop_map(|(count, owner)| Operation::Automatic(count, owner)),
        (ordinals(), 0u8..4).prop_map(|(ordinals, owner)| Operation::Exactly(ordinals, owner)),
        ordinals().prop_map(Operation::Release),
        (0u8..4).prop_map(Operation::ReleaseOwner),
    ]
}

/// What a block is, without its encoding.
#[derive(Clone, Debug, PartialEq)]
struct Model {
    /// Ordinal to owner and the number of changes before.
    owners: BTreeMap<usize, (u8, u64)>,
    free: VecDeque<usize>,
    changes: u64,
}

impl Model {
    fn assign(&self, ordinals: &[usize], owner: u8) -> Option<Self> {
        let mut next = self.clone();
        for ordinal in ordinals {
            let place = next.free.iter().position(|free| free == ordinal)?;
            next.free.remove(place);
            next.owners.insert(*ordinal, (owner, self.changes));
        }
        next.changes += 1;
        Some(next)
    }

    fn release(&self, ordinals: &[usize]) -> Self {
        let mut next = self.clone();
        for ordinal in ordinals {
            if next.owners.remove(ordinal).is_some() {
                next.free.push_back(*ordinal);
            }
        }
        next.changes += u64::from(next.owners != self.owners);
        next
    }
}

fn owner(owner: u8) -> AllocationAttribute {
    let secondary = BTreeMap::from([("node".to_owned(), "n".to_owned())]);
    AllocationAttribute {
        handle_id: Some(format!("h{owner}")),
        secondary,
        extra: Map::new(),
    }
}

fn address(ordinal: usize) -> IpAddr {
    address_at(CIDR.parse().unwrap(), ordinal)
}

fn assert_same(block: &AllocationBlock, model: &Model, claimed_at: u64) {
    let allocations: BTreeMap<usize, (String, u64)> = block
        .allocations()
        .map(|allocation| {
            let ordinal = ordinal_of(block.cidr(), allocation.address).unwrap();
            (
                ordinal,
                (
                    allocation.attribute.handle_id.unwrap(),
                    allocation.sequence_number - claimed_at,
                ),
            )
        })
        .collect();
    let expected: BTreeMap<usize, (String, u64)> = model
        .owners
        .iter()
        .map(|(&ordinal, &(owner, change))| (ordinal, (format!("h{owner}"), change)))
        .collect();
    assert_eq!(allocations, expected);
    assert_eq!(
        block.free().collect::<Vec<_>>(),
        model.free.iter().map(|&o| address(o)).collect::<Vec<_>>()
    );
    assert_eq!(block.sequence_number() - claimed_at, model.changes);
    // No entry of `attributes` without a user, and none twice.
    let users: BTreeSet<&str> = expected.values().map(|(handle, _)| handle.as_str()).collect();
    assert_eq!(block.attributes.len(), users.len());
    // What is written can be read.
    assert_eq!(AllocationBlock::parse("k", &block.to_json()).as_ref(), Ok(block));
}

proptest! {
    #[test]
    fn a_block_behaves_as_its_model(operations in prop::collection::vec(operation(), 1..40)) {
        let now = UnixNanos(1_795_224_668_781_042_601);
        let claimed_at = 1_795_224_668_781_042_601;
        let mut block = AllocationBlock::claim(CIDR.parse().unwrap(), "n", now);
        let mut model = Model { owners: BTreeMap::new(), free: (0..8).collect(), changes: 0 };
        for operation in operations {
            match operation {
                Operation::Automatic(count, who) => {
                    let addresses: Vec<IpAddr> = block.free().take(count).collect();
                    let ordinals: Vec<usize> = model.free.iter().take(count).copied().collect();
                    if !addresses.is_empty() {
                        block = block.assign(&addresses, &owner(who)).unwrap();
                        model = model.assign(&ordinals, who).unwrap();
                    }
                }
                Operation::Exactly(ordinals, who) => {
                    let addresses: Vec<IpAddr> = ordinals.iter().map(|&ordinal| address(ordinal)).collect();
                    let result = block.assign(&addresses, &owner(who));
                    // All or nothing, and the model agrees which.
                    match model.assign(&ordinals, who) {
                        Some(next) => {
                            block = result.unwrap();
                            model = next;
                        }
                        None => prop_assert!(result.is_err(), "{ordinals:?} assigned in {model:?}"),
                    }
                }
                Operation::Release(ordinals) => {
                    let addresses: Vec<IpAddr> = ordinals.iter().map(|&ordinal| address(ordinal)).collect();
                    block = block.release(&addresses);
                    model = model.release(&ordinals);
                }
                Operation::ReleaseOwner(who) => {
                    let handle = format!("h{who}");
                    let addresses: Vec<IpAddr> = block.allocations_of(&handle).map(|a| a.address).collect();
                    let ordinals: Vec<usize> =
                        model.owners.iter().filter(|(_, o)| o.0 == who).map(|(&ordinal, _)| ordinal).collect();
                    block = block.release(&addresses);
                    model = model.release(&ordinals);
                }
            }
            assert_same(&block, &model, claimed_at);
        }
    }

    #[test]
    fn hostile_values_are_refused_or_read_but_never_panic(text in hostile_block()) {
        if let Ok(block) = AllocationBlock::parse("k", text.as_bytes()) {
            // What passed the check can be worked with.
            let addresses: Vec<IpAddr> = block.free().collect();
            if let Ok(full) = block.assign(&addresses, &owner(0)) {
                prop_assert!(full.free().next().is_none());
            }
            let all: Vec<IpAddr> = block.allocations().map(|allocation| allocation.address).collect();
            prop_assert!(block.release(&all).is_empty());
        }
    }
}

/// Blocks of the right shape with wrong numbers in them.
fn hostile_block() -> impl Strategy<Value = String> {
    let number = prop_oneof![0u64..6, Just(u64::MAX), Just(4096)];
    let entry = prop_oneof![
        Just("null".to_owned()),
        number.clone().prop_map(|n| n.to_string())
    ];
    let cidr = prop_oneof![
        Just("10.0.0.0/30"),
        Just("10.0.0.1/30"),
        Just("0.0.0.0/0"),
        Just("::/0"),
        Just("ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffc/126"),
        Just("255.255.255.252/30"),
        Just("x"),
    ];
    let entries = prop::collection::vec(entry, 3..6);
    let queue = prop::collection::vec(number.clone(), 0..6);
    (cidr, entries, queue, 0usize..4, number).prop_map(|(cidr, entries, queue, attributes, sequence)| {
        let attributes = vec![r#"{"handle_id":null,"secondary":null}"#; attributes].join(",");
        let queue: Vec<String> = queue.iter().map(u64::to_string).collect();
        format!(
            r#"{{"cidr":"{cidr}","affinity":null,"allocations":[{}],"unallocated":[{}],"attributes":[{attributes}],"sequenceNumber":{sequence},"sequenceNumberForAllocation":{{"0":{sequence},"x":1}}}}"#,
            entries.join(","),
            queue.join(",")
        )
    })
}

#[test]
fn an_inconsistent_block_says_what_is_wrong_with_it() {
    let table = [
        (
            r#"[0,null]"#,
            "[1]",
            "an allocation refers to attribute 0, but there are 0",
        ),
        ("[null,null]", "[0,0]", "ordinal 0 is twice in unallocated"),
        ("[null,null]", "[2]", "unallocated names ordinal 2 of 2"),
        (
            "[null]",
            "[0]",
            "allocations has 1 entries, expected 2 for 10.0.0.0/31",
        ),
    ];
    for (allocations, unallocated, expected) in table {
        let text = format!(
            r#"{{"cidr":"10.0.0.0/31","affinity":null,"allocations":{allocations},"unallocated":{unallocated},"attributes":null}}"#
        );
        let error = AllocationBlock::parse("/the/key", text.as_bytes()).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("/the/key: not a valid allocation block: {expected}")
        );
    }
}

#[test]
fn addresses_of_one_owner_share_an_entry_and_a_resting_address_is_not_given() {
    let block = AllocationBlock::claim(CIDR.parse().unwrap(), "n", UnixNanos(7));
    let block = block
        .assign(&[address(0)], &owner(1))
        .unwrap()
        .assign(&[address(5)], &owner(1))
        .unwrap();
    assert_eq!(block.attributes, [Entry::new(&owner(1))]);
    // Neither allocated nor free, as another program may leave it.
    let mut resting = block.release(&[address(5)]);
    resting.unallocated.retain(|&ordinal| ordinal != 5);
    let error = resting.assign(&[address(5)], &owner(2)).unwrap_err();
    assert_eq!(error, BlockError::SetAside { address: address(5) });
}
