//! What the agent would change on this node right now, without changing it: `calidris plan`.
//!
//! Where an agent runs, it is asked: it knows what BGP learned. Where none runs, `offline_plan.rs` reads the datastore.
//!
//! Invariant: nothing is written, neither to the kernel nor to the datastore.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::apply::{Dataplane, Failure, Op};
use crate::desired;
use crate::kernel::{Kernel, KernelChange, node_interfaces};
use crate::model::{InSync, Model};

/// What would be changed. The JSON document of `calidris plan -o json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanReport {
    /// The node's name in the datastore.
    pub node: String,
    /// Who answered.
    pub answered_by: AnsweredBy,
    /// The operations, in the order in which they would be carried out.
    pub operations: Vec<PlannedOperation>,
    /// Kinds of objects that could not be read back, and why: nothing is said about them.
    pub unread: Vec<String>,
    /// Sources that are not in sync: what follows from them is only created, never changed or deleted.
    pub waiting_for: Vec<String>,
}

/// Who says what would be changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnsweredBy {
    /// The agent that runs on this node.
    Agent,
    /// The datastore alone: no agent runs.
    Datastore,
}

/// One operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedOperation {
    /// What it is about, for example `route 10.65.0.2/32 metric 1024`.
    pub object: String,
    /// The operation in words, as the agent's log and status have it.
    pub operation: String,
}

impl PlanReport {
    /// Asks `dataplane` what it would do for `model`. Everything is read back.
    pub fn of<K: Kernel>(dataplane: &mut Dataplane<K>, model: &mut Model, answered_by: AnsweredBy) -> Self {
        dataplane.note(KernelChange::Everything);
        let mut unread = Vec::new();
        match dataplane.observed() {
            Ok((links, addresses)) => {
                if model.observe(links.keys(), node_interfaces(links, addresses)) {
                    model.detect();
                }
            }
            Err(error) => unread.push(format!("links and addresses: {error}")),
        }
        let (ops, failures) = dataplane.plan(&desired::compute(model), model.in_sync);
        unread.extend(failures.iter().map(Failure::to_string));
        Self {
            node: model.node_name.clone(),
            answered_by,
            operations: ops.iter().map(PlannedOperation::from).collect(),
            unread,
            waiting_for: waiting_for(model.in_sync),
        }
    }

    /// Whether the node is as it should be, as far as that can be said.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.operations.is_empty()
    }
}

impl From<&Op> for PlannedOperation {
    fn from(op: &Op) -> Self {
        Self {
            object: op.subject().to_string(),
            operation: op.to_string(),
        }
    }
}

/// One line an operation; nothing for a settled node.
impl fmt::Display for PlanReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.operations
            .iter()
            .try_for_each(|planned| writeln!(f, "{}", planned.operation))
    }
}

fn waiting_for(in_sync: InSync) -> Vec<String> {
    let sources = [
        (in_sync.datastore, "datastore"),
        (in_sync.cluster, "cluster"),
        (in_sync.bgp, "bgp"),
    ];
    sources
        .into_iter()
        .filter(|(is_in_sync, _)| !is_in_sync)
        .map(|(_, source)| source.to_owned())
        .collect()
}
