//! What the agent would change on this node right now, without changing it: `calidris plan`.
//!
//! Where an agent runs, it is asked: it knows what BGP learned. Where none runs, the datastore is read once and the answer
//! leaves out what only BGP, and where pools need it the other nodes, could say: such routes are neither changed nor deleted
//! in it.
//!
//! Invariant: nothing is written, neither to the kernel nor to the datastore.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use calidris_ipam::Ipam;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};

use crate::apply::{Dataplane, Failure, Op};
use crate::config::{Config, Environment};
use crate::datastore::store::AnyStore;
use crate::desired;
use crate::input::{Input, KernelChange};
use crate::kernel::{Kernel, Linux};
use crate::model::{Cluster, InSync, Model};
use crate::report::DatastoreReport;
use crate::sources;
use crate::turn::{INBOX, Message};
use crate::wiring::first_model;

/// How long the datastore may take to deliver its picture, beyond the time for connecting and asking once.
const SNAPSHOT_MARGIN: Duration = Duration::from_secs(5);

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
                if model.observe(links, addresses) {
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

/// Reads the datastore once and says what an agent that starts now would change.
///
/// # Errors
/// The datastore does not answer in time, or the kernel cannot be asked.
pub async fn without_agent(config: &Config) -> anyhow::Result<PlanReport> {
    let mut kernel = Linux::open()?;
    let mut model = first_model(config, &mut kernel).await?;
    let limit = config.datastore.connect_timeout + config.datastore.request_timeout + SNAPSHOT_MARGIN;
    let (inbox, mut messages) = mpsc::channel(INBOX);
    let (state, told) = watch::channel(DatastoreReport::default());
    let store = AnyStore::open_for_operator(&config.datastore, &Environment::of_process())?;
    let source = tokio::spawn(sources::datastore::run(
        Arc::new(Ipam::new(store)),
        model.node_name.clone(),
        inbox,
        state,
    ));
    let read = tokio::time::timeout(limit, async {
        while let Some(message) = messages.recv().await {
            if let Message::Input(input) = message {
                let is_whole = matches!(input, Input::DatastoreSnapshot(_));
                model.absorb(input);
                if is_whole {
                    return true;
                }
            }
        }
        false
    })
    .await;
    source.abort();
    if !read.unwrap_or(false) {
        let why = told.borrow().error.clone();
        anyhow::bail!(
            "the datastore did not answer within {limit:?}{}",
            why.map(|why| format!(": {why}")).unwrap_or_default()
        );
    }
    // Without a speaker nobody ever learns a route: those that are there are stale.
    model.in_sync.bgp = config.bgp.is_none();
    if desired::compute(&model).tunnel_pools.is_empty() && !config.dataplane.direct_routes {
        // Nothing of the other nodes is needed.
        model.absorb(Input::Cluster(Cluster::default()));
    }
    let mut dataplane = Dataplane::new(kernel);
    Ok(PlanReport::of(&mut dataplane, &mut model, AnsweredBy::Datastore))
}
