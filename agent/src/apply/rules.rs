//! Rules of routing policy: those of ours as last seen. They are few, and are changed one by one.
//!
//! Invariants: after every single change there is no table that is looked up before the ways to what is here, unless it was so before;
//! and the last rule to a table stays for as long as a route of ours is in it. What cannot be done for that reason yet is tried again.

use std::collections::BTreeMap;

use super::Op;
use crate::delta::{Change, delta};
use crate::desired::{Desired, MAIN_TABLE, Rule, are_safe};
use crate::kernel::{Kernel, KernelError, RuleChange};
use crate::model::InSync;

pub(super) struct Rules {
    known: BTreeMap<Rule, ()>,
    dirty: bool,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            known: BTreeMap::new(),
            dirty: true,
        }
    }
}

impl Rules {
    pub(super) fn mark_dirty(&mut self) {
        self.dirty = true;
    }

    pub(super) fn is_dirty(&self) -> bool {
        self.dirty
    }

    pub(super) fn difference(
        &mut self,
        kernel: &mut impl Kernel,
        desired: &Desired,
        in_sync: InSync,
    ) -> Result<Vec<Op>, KernelError> {
        if self.dirty {
            let rules = kernel.rules()?;
            self.known = rules.into_iter().map(|rule| (rule, ())).collect();
            self.dirty = false;
        }
        let wanted: BTreeMap<Rule, ()> = desired.rules.iter().map(|rule| (rule.clone(), ())).collect();
        let InSync {
            datastore,
            bgp,
            cluster,
        } = in_sync;
        // Until all is known, routes that nobody asks for yet may be in the table of a rule.
        let may_go = datastore && bgp && cluster;
        let changes = delta(&wanted, &self.known, |(), ()| true)
            .filter(|change| may_go || !matches!(change, Change::Delete { .. }));
        Ok(changes.map(Op::Rule).collect())
    }

    /// Whether the kernel looks up a table for packets of a family.
    pub(super) fn lead_to(&self, is_ipv6: bool, table: u32) -> bool {
        lead_to(&self.known, is_ipv6, table)
    }

    /// `has_routes` says of a family and a table whether routes of ours are in it.
    pub(super) fn carry_out(
        &mut self,
        kernel: &mut impl Kernel,
        change: &RuleChange,
        has_routes: impl Fn(bool, u32) -> bool,
    ) -> Result<(), KernelError> {
        if let Some(reason) = self.what_holds(change, has_routes) {
            return Err(KernelError::Held { reason });
        }
        let mut result = kernel.change_rule(change);
        if let (Change::Delete { .. }, Err(error)) = (change, &result)
            && error.errno() == Some(libc::ENOENT)
        {
            // Gone already.
            result = Ok(());
        }
        match (change, &result) {
            (Change::Create { key, .. } | Change::Replace { key, .. }, Ok(())) => {
                self.known.insert(key.clone(), ());
            }
            (Change::Delete { key, .. }, Ok(())) => {
                self.known.remove(key);
                // The kernel takes the first that has all that the request says, and may have more.
                self.dirty = true;
            }
            (_, Err(error)) => self.dirty |= error.leaves_doubt(),
        }
        result
    }

    /// Why a change must wait.
    fn what_holds(&self, change: &RuleChange, has_routes: impl Fn(bool, u32) -> bool) -> Option<String> {
        let concerned = change.key();
        let mut after = self.known.clone();
        if matches!(change, Change::Delete { .. }) {
            after.remove(concerned);
        } else {
            after.insert(concerned.clone(), ());
        }
        if !are_safe(after.keys()) && are_safe(self.known.keys()) {
            return Some("a table must not be looked up before the main one".to_owned());
        }
        let (is_ipv6, table) = (concerned.is_ipv6, concerned.table()?);
        (!lead_to(&after, is_ipv6, table) && has_routes(is_ipv6, table))
            .then(|| format!("routes are left in table {table}"))
    }
}

/// The kernel itself looks up the main table.
fn lead_to(rules: &BTreeMap<Rule, ()>, is_ipv6: bool, table: u32) -> bool {
    let mut rules = rules.keys().filter(|rule| rule.is_ipv6 == is_ipv6);
    table == MAIN_TABLE || rules.any(|rule| rule.table() == Some(table))
}
