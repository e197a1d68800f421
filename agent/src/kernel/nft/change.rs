//! What is done to a table of ours: it is replaced as a whole, or elements of its sets are changed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write as _};

use super::{NftElement, NftFamily, NftTable, NftTables};
use crate::ours::NFT_TABLE;

/// Elements named in the description of a change, at most.
const SHOWN: usize = 8;

/// What is done to our table of one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NftChange {
    /// Which table.
    pub family: NftFamily,
    /// What is done to it.
    pub change: TableChange,
}

/// What is done to one table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TableChange {
    /// It is put in the place of whatever is there.
    Whole {
        /// What is there; `None` if nothing.
        from: Option<NftTable>,
        /// What should be there.
        to: NftTable,
    },
    /// Elements are taken out of sets and put into them.
    Elements(BTreeMap<String, ElementChange>),
}

/// What is done to one set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ElementChange {
    /// Elements that go.
    pub removed: BTreeSet<NftElement>,
    /// Elements that come.
    pub added: BTreeSet<NftElement>,
}

impl TableChange {
    /// What makes `known` the same as `wanted`; `None`: they are. Elements of interval sets are never changed one by one:
    /// kernels differ in what they think overlaps while a transaction runs.
    #[must_use]
    pub fn between(known: Option<&NftTable>, wanted: &NftTable) -> Option<Self> {
        let whole = || {
            Some(Self::Whole {
                from: known.cloned(),
                to: wanted.clone(),
            })
        };
        let Some(seen) = known.filter(|known| wanted.has_same_skeleton_as(known)) else {
            return whole();
        };
        let mut sets = BTreeMap::new();
        for (name, set) in &wanted.sets {
            let empty = BTreeSet::new();
            let before = seen.sets.get(name).map_or(&empty, |set| &set.elements);
            if *before == set.elements {
                continue;
            }
            if set.is_interval {
                return whole();
            }
            let change = ElementChange {
                removed: before.difference(&set.elements).cloned().collect(),
                added: set.elements.difference(before).cloned().collect(),
            };
            sets.insert(name.clone(), change);
        }
        (!sets.is_empty()).then_some(Self::Elements(sets))
    }
}

impl NftChange {
    /// Makes `tables` what they are after the change.
    pub fn carry_out(&self, tables: &mut NftTables) {
        match &self.change {
            TableChange::Whole { to, .. } => {
                tables.insert(self.family, to.clone());
            }
            TableChange::Elements(sets) => {
                let table = tables.entry(self.family).or_default();
                for (name, change) in sets {
                    let elements = &mut table.sets.entry(name.clone()).or_default().elements;
                    for element in &change.removed {
                        elements.remove(element);
                    }
                    elements.extend(change.added.iter().cloned());
                }
            }
        }
    }

    /// The script for `nft -f`, which makes it one transaction.
    pub(super) fn script(&self) -> String {
        let mut script = String::new();
        match &self.change {
            TableChange::Whole { to, .. } => write_table(&mut script, self.family, to),
            TableChange::Elements(sets) => {
                for (name, change) in sets {
                    self.write_elements(&mut script, "delete", name, &change.removed);
                }
                for (name, change) in sets {
                    self.write_elements(&mut script, "add", name, &change.added);
                }
            }
        }
        script
    }

    fn write_elements(&self, script: &mut String, verb: &str, set: &str, elements: &BTreeSet<NftElement>) {
        if !elements.is_empty() {
            let family = self.family;
            let _ = writeln!(
                script,
                "{verb} element {family} {NFT_TABLE} {set} {{ {} }}",
                list(elements)
            );
        }
    }
}

fn write_table(script: &mut String, family: NftFamily, table: &NftTable) {
    let _ = writeln!(
        script,
        "add table {family} {NFT_TABLE}\ndelete table {family} {NFT_TABLE}\ntable {family} {NFT_TABLE} {{"
    );
    for (name, set) in &table.sets {
        let (keyword, maps_to) = match &set.maps_to {
            Some(maps_to) => ("map", format!(" : {maps_to}")),
            None => ("set", String::new()),
        };
        let _ = writeln!(script, "  {keyword} {name} {{\n    type {}{maps_to}", set.kind);
        if set.is_interval {
            script.push_str("    flags interval\n");
        }
        if !set.elements.is_empty() {
            let _ = writeln!(script, "    elements = {{ {} }}", list(&set.elements));
        }
        script.push_str("  }\n");
    }
    for (name, chain) in &table.chains {
        let _ = writeln!(
            script,
            "  chain {name} {{\n    type {} hook {} priority {}; policy {};",
            chain.kind, chain.hook, chain.priority, chain.policy
        );
        for rule in &chain.rules {
            let _ = write!(script, "    {}", rule.text);
            if let Some(comment) = &rule.comment {
                let _ = write!(script, " comment \"{comment}\"");
            }
            script.push('\n');
        }
        script.push_str("  }\n");
    }
    script.push_str("}\n");
}

fn list<'a>(elements: impl IntoIterator<Item = &'a NftElement>) -> String {
    let mut text = String::new();
    for element in elements {
        let comma = if text.is_empty() { "" } else { ", " };
        let _ = write!(text, "{comma}{element}");
    }
    text
}

impl fmt::Display for NftChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = self.family;
        match &self.change {
            TableChange::Whole { from, to } => {
                let verb = if from.is_some() { "replace" } else { "create" };
                write!(f, "{verb} table {family} {NFT_TABLE}")?;
                for (name, set) in &to.sets {
                    let before = from.as_ref().and_then(|from| from.sets.get(name));
                    if before != Some(set) && !(before.is_none() && set.elements.is_empty()) {
                        write!(f, " {name}={{{}}}", shown(&set.elements))?;
                    }
                }
                Ok(())
            }
            TableChange::Elements(sets) => {
                write!(f, "change table {family} {NFT_TABLE}")?;
                for (name, ElementChange { removed, added }) in sets {
                    if !removed.is_empty() {
                        write!(f, " {name}-={{{}}}", shown(removed))?;
                    }
                    if !added.is_empty() {
                        write!(f, " {name}+={{{}}}", shown(added))?;
                    }
                }
                Ok(())
            }
        }
    }
}

fn shown(elements: &BTreeSet<NftElement>) -> String {
    let text = list(elements.iter().take(SHOWN));
    match elements.len().checked_sub(SHOWN) {
        Some(more) if more > 0 => format!("{text}, and {more} more"),
        _ => text,
    }
}
