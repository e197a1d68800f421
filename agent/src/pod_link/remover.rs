//! Who removes pods' links, for all who ask at a time: those asked for while some are going are the next to go, together.
//!
//! Invariants: a link is looked at before it is removed, and one of another attachment under its name stays; who asks waits
//! while [`WAITING`] others do; a link that cannot be removed leaves the others alone.

use std::io;

use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

use super::removal::Deleter;
use super::{PodLinkError, host_end};
use crate::model::EndpointId;

/// Requests that may wait.
const WAITING: usize = 256;
/// Links removed together at most: the kernel's lock of the network configuration is held meanwhile, 0.3 ms for each.
const TOGETHER: usize = 32;

/// Removes links of the network namespace that it was started in.
#[derive(Debug, Clone)]
pub struct Remover {
    requests: mpsc::Sender<Wanted>,
}

#[derive(Debug)]
struct Wanted {
    host_interface: String,
    id: EndpointId,
    removed: oneshot::Sender<Result<bool, PodLinkError>>,
}

impl Remover {
    /// Starts its thread, which ends with the last clone of this. Blocking threads of `runtime` wait for the kernel.
    ///
    /// # Errors
    /// When there is no netlink socket or no thread to be had.
    pub fn start(runtime: Handle) -> Result<Self, PodLinkError> {
        let mut deleter = Deleter::open(runtime)?;
        let (requests, mut wanted) = mpsc::channel(WAITING);
        std::thread::Builder::new()
            .name("link-remover".to_owned())
            .spawn(move || {
                let mut together = Vec::new();
                while wanted.blocking_recv_many(&mut together, TOGETHER) > 0 {
                    remove(&mut deleter, together.drain(..));
                }
            })
            .map_err(PodLinkError::Remover)?;
        Ok(Self { requests })
    }

    /// Removes the pair of the attachment `id` by its host end. Returns whether there was one. A link of that name that
    /// belongs to another attachment, a newer container of the same pod, stays.
    ///
    /// # Errors
    /// When the link of that name is not ours, or the kernel refuses.
    pub async fn remove(&self, host_interface: &str, id: &EndpointId) -> Result<bool, PodLinkError> {
        let gone = || PodLinkError::Remover(io::Error::other("its thread has panicked"));
        let (removed, answer) = oneshot::channel();
        let wanted = Wanted {
            host_interface: host_interface.to_owned(),
            id: id.clone(),
            removed,
        };
        self.requests.send(wanted).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

fn remove(deleter: &mut Deleter, wanted: impl Iterator<Item = Wanted>) {
    let (mut indexes, mut waiting) = (Vec::new(), Vec::new());
    for Wanted {
        host_interface,
        id,
        removed,
    } in wanted
    {
        // Who gave up waiting is not there to be told; that is their business.
        match host_end::removable(deleter.host(), &host_interface, Some(&id)) {
            Ok(Some(index)) => {
                indexes.push(index);
                waiting.push(removed);
            }
            Ok(None) => drop(removed.send(Ok(false))),
            Err(error) => drop(removed.send(Err(error))),
        }
    }
    for (result, removed) in deleter.delete(&indexes).into_iter().zip(waiting) {
        drop(removed.send(result.map_err(PodLinkError::from)));
    }
}
