//! The difference between what should be and what is, as a list of operations with no choices left.
//!
//! Pure. Walks the union of desired and observed keys, both in order side by side, and makes an operation when it is asked for the next
//! one: of a full table nothing is held but what follows. The order is constant: what is created or replaced comes first,
//! in ascending order of keys (for routes: the covering prefix before the more specific one), what is deleted comes
//! last, in descending order, so that nothing is taken away before its replacement is there.

use std::collections::BTreeMap;
use std::fmt;

/// One concrete operation on the object `key`. `V` is a desired value, `O` an observed one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change<K, V, O = V> {
    /// The object is missing.
    Create {
        /// Which object.
        key: K,
        /// What it should be.
        value: V,
    },
    /// The object is there and differs.
    Replace {
        /// Which object.
        key: K,
        /// What it is.
        from: O,
        /// What it should be.
        to: V,
    },
    /// The object is there and nobody wants it.
    Delete {
        /// Which object.
        key: K,
        /// What it is.
        from: O,
    },
}

impl<K, V, O> Change<K, V, O> {
    /// The object concerned.
    pub fn key(&self) -> &K {
        match self {
            Self::Create { key, .. } | Self::Replace { key, .. } | Self::Delete { key, .. } => key,
        }
    }
}

impl<K: fmt::Display, V: fmt::Display, O: fmt::Display> fmt::Display for Change<K, V, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Create { key, value } => write!(f, "create {key} {value}"),
            Self::Replace { key, from, to } => write!(f, "replace {key} {from} with {to}"),
            Self::Delete { key, from } => write!(f, "delete {key} {from}"),
        }
    }
}

/// What has to be done to `observed` so that it becomes `desired`. `same` decides whether an object needs no change.
pub fn delta<'a, K, V, O>(
    desired: &'a BTreeMap<K, V>,
    observed: &'a BTreeMap<K, O>,
    same: impl Fn(&V, &O) -> bool + 'a,
) -> impl Iterator<Item = Change<K, V, O>> + 'a
where
    K: Ord + Clone,
    V: Clone,
    O: Clone,
{
    let mut there = observed.iter().peekable();
    let makes = desired.iter().filter_map(move |(key, value)| {
        while there.next_if(|(other, _)| *other < key).is_some() {}
        match there.next_if(|(other, _)| *other == key) {
            None => Some(Change::Create {
                key: key.clone(),
                value: value.clone(),
            }),
            Some((_, from)) if !same(value, from) => Some(Change::Replace {
                key: key.clone(),
                from: from.clone(),
                to: value.clone(),
            }),
            Some(_) => None,
        }
    });
    let mut wanted = desired.keys().rev().peekable();
    let deletions = observed.iter().rev().filter_map(move |(key, from)| {
        while wanted.next_if(|other| *other > key).is_some() {}
        let is_wanted = wanted.next_if(|other| *other == key).is_some();
        (!is_wanted).then(|| Change::Delete {
            key: key.clone(),
            from: from.clone(),
        })
    });
    makes.chain(deletions)
}

#[cfg(test)]
mod tests {
    use proptest::collection::btree_map;
    use proptest::prelude::*;

    use super::*;

    fn carry_out(observed: &mut BTreeMap<u8, u8>, changes: Vec<Change<u8, u8>>) {
        for change in changes {
            match change {
                Change::Create { key, value } => assert_eq!(observed.insert(key, value), None),
                Change::Replace { key, from, to } => assert_eq!(observed.insert(key, to), Some(from)),
                Change::Delete { key, from } => assert_eq!(observed.remove(&key), Some(from)),
            }
        }
    }

    proptest! {
        #[test]
        fn carrying_out_the_changes_makes_observed_equal_desired(
            desired in btree_map(0_u8..16, 0_u8..3, 0..12),
            mut observed in btree_map(0_u8..16, 0_u8..3, 0..12),
        ) {
            let changes: Vec<_> = delta(&desired, &observed, |a, b| a == b).collect();
            carry_out(&mut observed, changes);
            prop_assert_eq!(&desired, &observed);
            prop_assert_eq!(delta(&desired, &observed, |a, b| a == b).next(), None);
        }

        #[test]
        fn every_key_is_touched_at_most_once_and_deletes_come_last_in_reverse(
            desired in btree_map(0_u8..16, 0_u8..3, 0..12),
            observed in btree_map(0_u8..16, 0_u8..3, 0..12),
        ) {
            let changes: Vec<_> = delta(&desired, &observed, |a, b| a == b).collect();
            let (deletes, makes): (Vec<_>, Vec<_>) =
                changes.iter().partition(|c| matches!(c, Change::Delete { .. }));
            let in_order: Vec<_> = makes.iter().chain(&deletes).map(|c| *c.key()).collect();
            prop_assert_eq!(&in_order, &changes.iter().map(|c| *c.key()).collect::<Vec<_>>());
            prop_assert!(makes.is_sorted_by(|a, b| a.key() < b.key()));
            prop_assert!(deletes.is_sorted_by(|a, b| a.key() > b.key()));
        }
    }

    #[test]
    fn changes_print_as_one_line() {
        let desired = BTreeMap::from([("a", 1), ("b", 2)]);
        let observed = BTreeMap::from([("b", 3), ("c", 4)]);
        let changes = delta(&desired, &observed, |a, b| a == b);
        let lines: Vec<_> = changes.map(|change| change.to_string()).collect();
        assert_eq!(lines, ["create a 1", "replace b 3 with 2", "delete c 4"]);
    }
}
