//! Live migration: a workload that comes from another node is not routed to before it runs here, and then preferred for a while
//! (Felix, `live_migration_monitor.go`, Calico v3.32).
//!
//! | | nothing | `Awaited` | `Live` | `Settling` |
//! |---|---|---|---|---|
//! | it is a target | `Awaited` | | | |
//! | it said that it is here (gratuitous ARP) | | `Live` | | |
//! | it is no target any more | | `Settling` | `Settling` | |
//! | the time for routes to settle is over | | | | nothing |
//! | it is a source, or is gone | | nothing | nothing | nothing |
//!
//! An agent that starts again does not know what it heard before; but the kernel still has the preferred routes that it made then.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::Model;

/// What a workload on this node is in a migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MigrationRole {
    /// It leaves. Its routes stay as they are until it is gone.
    Source,
    /// It arrives.
    Target,
}

/// How far the migration of a workload to this node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum MigrationPhase {
    /// It runs on the other node still: there is no route to it here.
    Awaited,
    /// It runs here: the routes to it here are preferred to those of the other node.
    Live,
    /// The migration is over, and the other nodes are hearing of it: the routes are still preferred.
    Settling,
}

/// The workloads that are migrating to this node, by host interface.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Migrations {
    /// What the datastore says of workloads here, also of those that are only coming.
    roles: BTreeMap<String, MigrationRole>,
    phases: BTreeMap<String, MigrationPhase>,
    /// Addresses that the kernel had preferred routes to when the agent started.
    preferred_before: BTreeSet<IpAddr>,
}

impl Migrations {
    /// Of an agent that starts where there are preferred routes to these addresses.
    #[must_use]
    pub fn after_restart(preferred_before: BTreeSet<IpAddr>) -> Self {
        Self {
            preferred_before,
            ..Self::default()
        }
    }

    /// How far the migration is of the workload with this host interface; `None`: it does not migrate.
    #[must_use]
    pub fn phase(&self, host_interface: &str) -> Option<MigrationPhase> {
        self.phases.get(host_interface).copied()
    }

    /// All phases, by host interface.
    #[must_use]
    pub fn phases(&self) -> &BTreeMap<String, MigrationPhase> {
        &self.phases
    }

    pub(super) fn forget(&mut self, host_interface: &str) {
        self.phases.remove(host_interface);
    }
}

impl Model {
    /// Takes in the roles of this node's workloads, by host interface, all of them. Whether a phase changed.
    pub(super) fn take_roles(&mut self, roles: BTreeMap<String, MigrationRole>) -> bool {
        let before = self.migrations.phases.clone();
        self.migrations.roles = roles;
        self.follow_roles();
        // What the kernel had is known to whom it concerned.
        self.migrations.preferred_before.clear();
        self.migrations.phases != before
    }

    /// Each workload's phase follows its role: after the roles or the workloads have changed.
    pub(super) fn follow_roles(&mut self) {
        if self.migrations.roles.is_empty() && self.migrations.phases.is_empty() {
            return;
        }
        let endpoints: BTreeMap<&str, &BTreeSet<IpAddr>> = self
            .endpoints
            .values()
            .map(|endpoint| (endpoint.host_interface.as_str(), &endpoint.addresses))
            .collect();
        let Migrations {
            roles,
            phases,
            preferred_before,
        } = &mut self.migrations;
        phases.retain(|interface, phase| {
            let role = roles.get(interface);
            if role.is_none() {
                *phase = MigrationPhase::Settling;
            }
            endpoints.contains_key(interface.as_str()) && role != Some(&MigrationRole::Source)
        });
        for (interface, _) in roles.iter().filter(|(_, role)| **role == MigrationRole::Target) {
            let Some(addresses) = endpoints.get(interface.as_str()) else {
                continue;
            };
            phases
                .entry(interface.clone())
                .or_insert(if preferred_before.is_disjoint(addresses) {
                    MigrationPhase::Awaited
                } else {
                    MigrationPhase::Live
                });
        }
    }

    /// The workload said that it runs here. Whether it was awaited.
    pub(super) fn migrated_here(&mut self, host_interface: &str) -> bool {
        match self.migrations.phases.get_mut(host_interface) {
            Some(phase @ MigrationPhase::Awaited) => {
                *phase = MigrationPhase::Live;
                true
            }
            _ => false,
        }
    }

    /// The time for routes to settle is over. Whether that changes anything.
    pub(super) fn migration_settled(&mut self, host_interface: &str) -> bool {
        let is_settling = self.migrations.phase(host_interface) == Some(MigrationPhase::Settling);
        if is_settling {
            self.migrations.forget(host_interface);
        }
        is_settling
    }
}
