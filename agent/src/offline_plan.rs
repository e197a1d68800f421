//! What an agent that starts now would change: `calidris plan` where none runs.
//!
//! The datastore is read once, and the answer leaves out what only BGP, and where pools need it the other nodes, could say:
//! such routes are neither changed nor deleted in it.
//!
//! Invariant: nothing is written, neither to the kernel nor to the datastore.

use std::sync::Arc;
use std::time::Duration;

use calidris_ipam::Ipam;
use tokio::sync::{mpsc, watch};

use crate::apply::Dataplane;
use crate::config::{Config, Environment};
use crate::datastore::store::AnyStore;
use crate::inbox::{INBOX, Message};
use crate::kernel::Linux;
use crate::model::{Cluster, Input};
use crate::plan::{AnsweredBy, PlanReport};
use crate::report::DatastoreReport;
use crate::sources;
use crate::wiring::first_model;

/// How long the datastore may take to deliver its picture, beyond the time for connecting and asking once.
const SNAPSHOT_MARGIN: Duration = Duration::from_secs(5);

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
    if !model.needs_cluster() {
        model.absorb(Input::Cluster(Some(Cluster::default())));
    }
    let mut dataplane = Dataplane::new(kernel);
    Ok(PlanReport::of(&mut dataplane, &mut model, AnsweredBy::Datastore))
}
