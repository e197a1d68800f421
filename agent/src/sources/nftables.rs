//! The kernel's notifications of nftables: somebody else has changed a table of ours.
//!
//! The kernel sends a message for each object that a transaction changed, then one that names the new generation; all of
//! them carry the netlink port that the transaction came from. Only transactions that touch a table of our name count, and
//! only those from other ports than ours: other programs change their own tables all the time. What is lost counts as a change.
//! See the kernel's linux/netfilter/nf_tables.h and nfnetlink.h.

use std::io;
use std::time::Duration;

use netlink_packet_core::{NetlinkBuffer, NlasIterator};
use netlink_sys::protocols::NETLINK_NETFILTER;
use tokio::sync::mpsc;
use tracing::debug;

use crate::inbox::Message;
use crate::kernel::{KernelChange, KernelNews, OwnPorts};
use crate::ours::NFT_TABLE;
use crate::sources::notifications::{Heard, Notifications};

/// `NFNLGRP_NFTABLES` is group 7.
const GROUPS: u32 = 1 << 6;
/// Room for notifications not read yet, in bytes. The kernel doubles it.
const RECEIVE_BUFFER: usize = 2 << 20;
/// How long notifications are gathered after the first one.
const GATHERING: Duration = Duration::from_millis(50);

const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFT_MSG_NEWGEN: u16 = 15;
/// The name of the table in messages about tables, chains, rules, sets, elements, objects and flowtables alike.
const NFTA_TABLE: u16 = 1;
/// `struct nfgenmsg`.
const GENERIC_HEADER_BYTES: usize = 4;
/// `NLA_TYPE_MASK`.
const TYPE_MASK: u16 = 0x3fff;

/// A socket that hears of changes of nftables in the process's network namespace.
pub struct Monitor {
    notifications: Notifications,
}

/// What was heard so far.
#[derive(Debug, Default, PartialEq, Eq)]
struct Changes {
    /// The transaction whose messages are coming in touches a table of ours.
    touches_ours: bool,
    /// A whole one of somebody else did, or may have.
    is_changed: bool,
}

impl Monitor {
    /// Opens the socket: from now on nothing is missed. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// When the kernel has no nftables.
    pub fn open() -> io::Result<Self> {
        let notifications = Notifications::open(NETLINK_NETFILTER, GROUPS, RECEIVE_BUFFER)?;
        Ok(Self { notifications })
    }

    /// Tells the node until its thread is gone. Changes from ports in `own` need not be told.
    ///
    /// # Errors
    /// When the socket fails for good.
    pub async fn run(mut self, own: OwnPorts, inbox: mpsc::Sender<Message>) -> io::Result<()> {
        // A transaction may begin in one burst and end in the next.
        let mut changes = Changes::default();
        loop {
            let take = |datagram: &[u8]| changes.read(datagram, &own);
            let heard = self.notifications.burst(GATHERING, take).await?;
            if std::mem::take(&mut changes.is_changed) || heard == Heard::Part {
                debug!("somebody changed our nftables tables");
                let change = Message::Kernel(KernelNews::Changed(KernelChange::Nft));
                if inbox.send(change).await.is_err() {
                    return Ok(());
                }
            }
        }
    }
}

impl Changes {
    fn read(&mut self, datagram: &[u8], own: &OwnPorts) {
        let mut rest = datagram;
        while let Ok(message) = NetlinkBuffer::new_checked(rest) {
            let (subsystem, kind) = (message.message_type() >> 8, message.message_type() & 0xff);
            if subsystem == NFNL_SUBSYS_NFTABLES {
                let attributes = message.payload().get(GENERIC_HEADER_BYTES..).unwrap_or_default();
                if kind == NFT_MSG_NEWGEN {
                    let is_others = !own.contains(message.port_number());
                    self.is_changed |= std::mem::take(&mut self.touches_ours) && is_others;
                } else {
                    self.touches_ours |= concerns_ours(attributes);
                }
            }
            // Messages are aligned to four bytes. A length of nothing would go round for ever.
            let length = usize::try_from(message.length()).unwrap_or(usize::MAX).max(1);
            rest = length
                .checked_next_multiple_of(4)
                .and_then(|next| rest.get(next..))
                .unwrap_or_default();
        }
    }
}

fn concerns_ours(attributes: &[u8]) -> bool {
    NlasIterator::new(attributes)
        .map_while(Result::ok)
        .any(|attribute| {
            attribute.kind() & TYPE_MASK == NFTA_TABLE
                && attribute.value().strip_suffix(&[0]) == Some(NFT_TABLE.as_bytes())
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, port: u32, attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut body = vec![1, 0, 0, 0];
        for (kind, value) in attributes {
            body.extend(u16::try_from(4 + value.len()).unwrap().to_ne_bytes());
            body.extend(kind.to_ne_bytes());
            body.extend(*value);
            body.resize(body.len().next_multiple_of(4), 0);
        }
        let mut bytes = Vec::new();
        bytes.extend(u32::try_from(16 + body.len()).unwrap().to_ne_bytes());
        bytes.extend((NFNL_SUBSYS_NFTABLES << 8 | kind).to_ne_bytes());
        bytes.extend([0; 6]);
        bytes.extend(port.to_ne_bytes());
        bytes.extend(body);
        bytes
    }

    fn new_rule(table: &[u8]) -> Vec<u8> {
        message(6, 5, &[(NFTA_TABLE, table), (2, b"chain\0")])
    }

    fn generation(port: u32) -> Vec<u8> {
        message(NFT_MSG_NEWGEN, port, &[(1, &[0, 0, 0, 9])])
    }

    fn heard(messages: &[Vec<u8>]) -> bool {
        let own = OwnPorts::default();
        own.add(77);
        let mut changes = Changes::default();
        changes.read(&messages.concat(), &own);
        changes.is_changed
    }

    #[test]
    fn only_whole_changes_of_our_tables_by_others_count() {
        let (ours, other) = (new_rule(b"calidris\0"), new_rule(b"calidris2\0"));
        assert!(heard(&[ours.clone(), generation(5)]));
        assert!(heard(&[
            other.clone(),
            ours.clone(),
            generation(5),
            other.clone(),
            generation(6)
        ]));
        assert!(!heard(&[ours.clone(), generation(77)]), "our own doing");
        assert!(!heard(&[other, generation(5)]), "somebody else's table");
        assert!(
            !heard(&[ours.clone(), generation(77), generation(5)]),
            "the next one is another one"
        );
        assert!(!heard(&[ours]), "not done yet");
        for garbage in [vec![], vec![0; 16], vec![0xff; 64], generation(5)[..20].to_vec()] {
            assert!(!heard(&[garbage]));
        }
    }
}
