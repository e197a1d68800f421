//! `sequenceNumberForAllocation`: the number of each allocation, by its ordinal.
//!
//! In JSON it is an object whose keys are the ordinals in decimal, sorted as text ("10" before "2"), as Go prints a map. A
//! block is copied with every change of it, so that the numbers are kept in one piece of memory, in that order.

use std::collections::BTreeMap;

use serde::ser::SerializeMap as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The number of each allocation.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct SequenceNumbers {
    /// Ordinal and number, in the order of the ordinals' text.
    of_ordinals: Vec<(u16, u64)>,
    /// Under keys that are no ordinals in decimal: not ours, and kept.
    others: BTreeMap<String, u64>,
}

impl SequenceNumbers {
    pub(super) fn of(&self, ordinal: usize) -> Option<u64> {
        let place = self.place(u16::try_from(ordinal).ok()?).ok()?;
        Some(self.of_ordinals.get(place)?.1)
    }

    /// Notes `number` for `ordinal`, which is below 4096, the size of the largest block.
    pub(super) fn insert(&mut self, ordinal: usize, number: u64) {
        let Ok(ordinal) = u16::try_from(ordinal) else {
            return;
        };
        match self.place(ordinal) {
            Ok(place) => {
                if let Some(entry) = self.of_ordinals.get_mut(place) {
                    entry.1 = number;
                }
            }
            Err(place) => self.of_ordinals.insert(place, (ordinal, number)),
        }
    }

    pub(super) fn remove(&mut self, ordinal: usize) {
        let place = u16::try_from(ordinal).map(|ordinal| self.place(ordinal));
        if let Ok(Ok(place)) = place {
            self.of_ordinals.remove(place);
        }
    }

    fn place(&self, ordinal: u16) -> Result<usize, usize> {
        let wanted = as_text(ordinal);
        self.of_ordinals
            .binary_search_by_key(&wanted, |&(ordinal, _)| as_text(ordinal))
    }
}

/// Sorts as the decimal digits of `ordinal` do as text: the digits moved to the left of five places, then how many they are.
fn as_text(ordinal: u16) -> (u32, u32) {
    let digits = ordinal.checked_ilog10().unwrap_or(0) + 1;
    (u32::from(ordinal) * 10u32.pow(5 - digits), digits)
}

impl Serialize for SequenceNumbers {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.of_ordinals.len() + self.others.len()))?;
        for (ordinal, number) in &self.of_ordinals {
            map.serialize_entry(ordinal, number)?;
        }
        for (key, number) in &self.others {
            map.serialize_entry(key, number)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for SequenceNumbers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut numbers = Self::default();
        for (key, number) in BTreeMap::<String, u64>::deserialize(deserializer)? {
            match key.parse::<u16>() {
                // In the order of their text already.
                Ok(ordinal) if ordinal.to_string() == key => numbers.of_ordinals.push((ordinal, number)),
                _ => {
                    numbers.others.insert(key, number);
                }
            }
        }
        Ok(numbers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_print_as_go_prints_a_map_of_texts() {
        let mut numbers = SequenceNumbers::default();
        let mut map = BTreeMap::new();
        // A step that has no factor with their number: every one of them, in no order.
        for step in 0..4096 {
            let ordinal = step * 1001 % 4096;
            numbers.insert(ordinal, 7);
            numbers.insert(ordinal, step as u64);
            map.insert(ordinal.to_string(), step as u64);
        }
        for ordinal in (0..4096).step_by(3) {
            numbers.remove(ordinal);
            map.remove(&ordinal.to_string());
        }
        let printed = serde_json::to_string(&numbers).unwrap();
        assert_eq!(printed, serde_json::to_string(&map).unwrap());
        assert_eq!(
            serde_json::from_str::<SequenceNumbers>(&printed).unwrap(),
            numbers
        );
        assert_eq!(
            [numbers.of(0), numbers.of(1001), numbers.of(65_536 + 1001)],
            [None, Some(1), None]
        );
    }

    #[test]
    fn keys_that_are_no_ordinals_are_kept() {
        let stored = r#"{"3":1,"007":2,"70000":3,"x":4}"#;
        let numbers: SequenceNumbers = serde_json::from_str(stored).unwrap();
        assert_eq!((numbers.of(3), numbers.of(7)), (Some(1), None));
        assert_eq!(
            serde_json::to_value(&numbers).unwrap(),
            serde_json::from_str::<serde_json::Value>(stored).unwrap()
        );
    }
}
