//! What the node's thread is told and asked by everything else, and its answers.
//!
//! Invariant: every question carries the channel of its answer, and a question whose asker has gone costs nothing more.

use tokio::sync::oneshot;

use crate::kernel::KernelNews;
use crate::model::{Endpoint, EndpointId, InSync, Input};
use crate::plan::PlanReport;
use crate::pod_link::HostEnd;
use crate::report::NodeStatus;

/// Messages that may wait for the node's thread.
pub const INBOX: usize = 1024;

/// What the node's thread is told or asked.
#[derive(Debug)]
pub enum Message {
    /// Something happened.
    Input(Input),
    /// The kernel reports a change.
    Kernel(KernelNews),
    /// Something happened, and somebody waits until the kernel has followed.
    Apply(Input, Applied),
    /// As `Apply`, for a pod whose link was made a moment ago: its host end need not be read back.
    ApplyMade(Input, Box<HostEnd>, Applied),
    /// Which endpoint is this?
    Find(EndpointId, oneshot::Sender<Found>),
    /// As `Find`, by an ADD; from here on the attachment is coming, unless it is known already or the datastore is not.
    Begin(EndpointId, oneshot::Sender<Found>),
    /// What of this endpoint, on the node's side, is not as it should be? Everything is read back for it.
    Inspect(EndpointId, oneshot::Sender<Vec<String>>),
    /// Can pods be attached?
    Readiness(oneshot::Sender<Readiness>),
    /// What would be changed now?
    Plan(oneshot::Sender<PlanReport>),
    /// How is it going?
    Status(oneshot::Sender<NodeStatus>),
}

/// Where to say that the kernel has followed, or why not.
pub type Applied = oneshot::Sender<Result<(), NotApplied>>;

/// Why the kernel has not followed: what fails, and the kernel's reason.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NotApplied(pub String);

/// Answer to [`Message::Find`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The endpoint, if there is one.
    pub endpoint: Option<(EndpointId, Endpoint)>,
    /// Which sources are in sync: before the datastore is, absence means nothing.
    pub in_sync: InSync,
}

/// Answer to [`Message::Readiness`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Readiness {
    /// Which sources are in sync.
    pub in_sync: InSync,
    /// How many IP pools there are.
    pub pools: usize,
    /// Whether the kernel does not follow in something.
    pub kernel_fails: bool,
}
