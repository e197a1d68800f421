//! The difference between what should be and what is, as a list of operations with no choices left.
//!
//! Pure. Walks the union of desired and observed keys. The order is constant: what is created or replaced comes first,
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
pub fn delta<K, V, O>(
    desired: &BTreeMap<K, V>,
    observed: &BTreeMap<K, O>,
    same: impl Fn(&V, &O) -> bool,
) -> Vec<Change<K, V, O>>
where
    K: Ord + Clone,
    V: Clone,
    O: Clone,
{
    let mut changes = Vec::new();
    for (key, value) in desired {
        match observed.get(key) {
            None => changes.push(Change::Create {
                key: key.clone(),
                value: value.clone(),
            }),
            Some(from) if !same(value, from) => {
                changes.push(Change::Replace {
                    key: key.clone(),
                    from: from.clone(),
                    to: value.clone(),
                });
            }
            Some(_) => {}
        }
    }
    for (key, from) in observed.iter().rev() {
        if !desired.contains_key(key) {
            changes.push(Change::Delete {
                key: key.clone(),
                from: from.clone(),
            });
        }
    }
    changes
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
            let changes = delta(&desired, &observed, |a, b| a == b);
            carry_out(&mut observed, changes);
            prop_assert_eq!(&desired, &observed);
            prop_assert!(delta(&desired, &observed, |a, b| a == b).is_empty());
        }

        #[test]
        fn every_key_is_touched_at_most_once_and_deletes_come_last_in_reverse(
            desired in btree_map(0_u8..16, 0_u8..3, 0..12),
            observed in btree_map(0_u8..16, 0_u8..3, 0..12),
        ) {
            let changes = delta(&desired, &observed, |a, b| a == b);
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
        let lines: Vec<_> = delta(&desired, &observed, |a, b| a == b)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(lines, ["create a 1", "replace b 3 with 2", "delete c 4"]);
    }
}
