//! Rules of routing policy: they lead to the table that routes to other nodes and what BGP learned have of their own, if the operator
//! wants that (`dataplane.remote_route_table`).
//!
//! Two rules a family, one after the other. The first looks up the main table without its default route, so that the way to a workload
//! here and to the node's own links comes before whatever a peer announced, were it a default route. The second looks up the other
//! table. The kernel's own rules follow, with the main table's default route.
//!
//! Invariant: there is never the second without the first ([`are_safe`]).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::desired::{MAIN_TABLE, Route, RouteKey};
use crate::model::Model;

/// A rule of ours: for all packets of a family.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// Whether it is one of IPv6.
    pub is_ipv6: bool,
    /// Its place: the lowest comes first. The kernel has the main table at 32766.
    pub priority: u32,
    /// What it does.
    pub action: RuleAction,
}

/// What a rule does.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum RuleAction {
    /// Looks up a table.
    Lookup {
        /// The table.
        table: u32,
        /// Whether the table's default route does not count.
        without_default: bool,
    },
    /// Something that we never want: the rule as the kernel tells it (`struct fib_rule_hdr` and attributes), to name it by.
    Other(Vec<u8>),
}

pub(super) fn rules(model: &Model, routes: &BTreeMap<RouteKey, Route>) -> BTreeSet<Rule> {
    let (table, priority) = (model.settings.remote_route_table, model.settings.rule_priority);
    if table == MAIN_TABLE {
        return BTreeSet::new();
    }
    let is_used = |is_ipv6: bool| {
        !is_ipv6
            || model.pools.values().any(|pool| pool.cidr.is_ipv6())
            || routes
                .keys()
                .any(|key| key.table == table && key.destination.is_ipv6())
    };
    let lookups = [(priority, MAIN_TABLE, true), (priority + 1, table, false)];
    [false, true]
        .into_iter()
        .filter(|is_ipv6| is_used(*is_ipv6))
        .flat_map(|is_ipv6| {
            lookups.map(|(priority, table, without_default)| Rule {
                is_ipv6,
                priority,
                action: RuleAction::Lookup {
                    table,
                    without_default,
                },
            })
        })
        .collect()
}

/// Whether no table is looked up before the ways to what is here.
#[must_use]
pub fn are_safe<'a>(rules: impl Iterator<Item = &'a Rule>) -> bool {
    let rules: Vec<&Rule> = rules.collect();
    let is_first = |rule: &Rule, of: &Rule| {
        let looks_up_main = RuleAction::Lookup {
            table: MAIN_TABLE,
            without_default: true,
        };
        rule.is_ipv6 == of.is_ipv6 && rule.priority < of.priority && rule.action == looks_up_main
    };
    rules.iter().all(|rule| {
        matches!(
            rule.action,
            RuleAction::Lookup {
                table: MAIN_TABLE,
                ..
            } | RuleAction::Other(_)
        ) || rules.iter().any(|first| is_first(first, rule))
    })
}

impl Rule {
    /// The table that it looks up.
    #[must_use]
    pub fn table(&self) -> Option<u32> {
        match self.action {
            RuleAction::Lookup { table, .. } => Some(table),
            RuleAction::Other(_) => None,
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = if self.is_ipv6 { "inet6" } else { "inet" };
        write!(f, "{family} priority {} ", self.priority)?;
        match &self.action {
            RuleAction::Lookup {
                table,
                without_default,
            } => {
                match *table {
                    MAIN_TABLE => f.write_str("lookup main")?,
                    table => write!(f, "lookup {table}")?,
                }
                f.write_str(if *without_default {
                    " suppress_prefixlength 0"
                } else {
                    ""
                })
            }
            RuleAction::Other(_) => f.write_str("of a kind not ours"),
        }
    }
}
