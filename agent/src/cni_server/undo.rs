//! ADDs that failed, or whose answer nobody took, and that could not be undone at once because the datastore was away. What
//! they wrote may take effect there later: they are undone when it is back, since not every runtime then calls DEL.
//!
//! Invariants: an attachment is claimed before it is undone, and left alone if a later ADD succeeded; what waits is bounded. What
//! finds no room, and what waits when the agent ends, is left to DEL, and without one to `orphans.rs`: it is an attachment
//! without a link.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use calidris_cni::error::CniError;
use calidris_ipam::Store;
use tokio::sync::Notify;
use tracing::{debug, info, warn};

use super::CniServer;
use super::request::Subject;
use super::stages::Stages;

/// Attachments that may wait. More than a node has pods.
const MAX_WAITING: usize = 1024;
/// Time between two attempts while the datastore does not do it.
const RETRY: Duration = Duration::from_secs(1);

/// What is to be undone, in the order in which it failed.
#[derive(Debug, Default)]
pub(super) struct ToUndo {
    waiting: Mutex<VecDeque<Subject>>,
    added: Notify,
}

impl ToUndo {
    /// Whether there was room.
    fn add(&self, subject: Subject) -> bool {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let has_room = waiting.len() < MAX_WAITING;
        if has_room {
            waiting.push_back(subject);
            self.added.notify_one();
        }
        has_room
    }

    fn next(&self) -> Option<Subject> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.pop_front()
    }
}

impl<S: Store + 'static> CniServer<S> {
    /// Undoes a failed ADD now, or else when the datastore is back. The caller holds the locks.
    pub(super) async fn undo_attaching(&self, subject: &Subject) {
        let Err(error) = self.tear_down(subject, None, &mut Stages::default()).await else {
            return;
        };
        self.leave_to_undo(subject, &error);
    }

    /// Keeps in mind what could not be undone.
    pub(super) fn leave_to_undo(&self, subject: &Subject, error: &CniError) {
        let container = subject.id.container_id.as_str();
        if self.to_undo.add(subject.clone()) {
            info!(container, %error, "an ADD could not be undone; trying again when the datastore is there");
        } else {
            warn!(container, %error, "an ADD could not be undone; DEL will");
        }
    }

    /// Undoes what could not be undone at once, until the task is dropped.
    pub async fn undo_later(self: Arc<Self>) {
        let mut datastore = self.datastore.clone();
        loop {
            let Some(subject) = self.to_undo.next() else {
                self.to_undo.added.notified().await;
                continue;
            };
            loop {
                if datastore.wait_for(|state| state.connected).await.is_err() {
                    return;
                }
                let container = subject.id.container_id.as_str();
                match self.undo_unless_attached(&subject).await {
                    Ok(()) => {
                        info!(container, "what a failed ADD may have left is gone");
                        break;
                    }
                    Err(error) => debug!(container, %error, "cannot undo a failed ADD yet"),
                }
                tokio::time::sleep(RETRY).await;
            }
        }
    }

    async fn undo_unless_attached(&self, subject: &Subject) -> Result<(), CniError> {
        let mut stages = Stages::default();
        let claimed = self.claim(subject, &mut stages).await?;
        if claimed.found.endpoint.is_some() {
            return Ok(());
        }
        self.tear_down(subject, None, &mut stages).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::EndpointId;

    #[test]
    fn what_waits_is_bounded_and_in_order() {
        let to_undo = ToUndo::default();
        let subject = |number: usize| Subject {
            id: EndpointId {
                network: "net".to_owned(),
                container_id: number.to_string(),
                ifname: "eth0".to_owned(),
            },
            host_interface: format!("cali{number}"),
            handle_id: format!("net.{number}"),
            pod: None,
        };
        assert!((0..MAX_WAITING).all(|number| to_undo.add(subject(number))));
        assert!(!to_undo.add(subject(MAX_WAITING)));
        assert_eq!(to_undo.next(), Some(subject(0)));
        assert!(to_undo.add(subject(MAX_WAITING)));
        assert_eq!(to_undo.next(), Some(subject(1)));
    }
}
