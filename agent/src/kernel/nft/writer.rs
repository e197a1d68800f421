//! Carries changes out, each time in one transaction: elements straight to the kernel, tables through the program `nft`.

use netlink_sys::protocols::NETLINK_NETFILTER;

use super::{NftChange, OwnPorts, elements, program};
use crate::kernel::KernelError;
use crate::kernel::netlink::NetlinkSocket;

/// What changes our tables, in the network namespace of the thread that uses it.
#[derive(Default)]
pub(in crate::kernel) struct Writer {
    /// Opened when it is first needed.
    socket: Option<NetlinkSocket>,
    own: OwnPorts,
}

impl Writer {
    /// The ports that changes come from.
    pub(in crate::kernel) fn own_ports(&self) -> OwnPorts {
        self.own.clone()
    }

    /// Carries out the changes in one transaction.
    pub(in crate::kernel) fn carry_out(&mut self, changes: &[NftChange]) -> Result<(), KernelError> {
        match elements::batch(changes) {
            Some(batch) => self.send(batch),
            None => program::carry_out(changes, &self.own),
        }
    }

    fn send(&mut self, batch: Vec<u8>) -> Result<(), KernelError> {
        let socket = match &mut self.socket {
            Some(socket) => socket,
            none => none.insert(NetlinkSocket::open_for(NETLINK_NETFILTER)?),
        };
        // Before the kernel tells of it.
        self.own.add(socket.port_id());
        socket.transaction(batch, "change elements of our nftables sets")
    }
}
