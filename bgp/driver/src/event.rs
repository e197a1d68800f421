//! What the small tasks around the sockets tell the task that owns the speaker, through one bounded channel.

use std::net::{Ipv6Addr, SocketAddr};

use calidris_bgp::session::ConnId;
use tokio::net::TcpStream;

/// What the small tasks tell the owner.
#[derive(Debug)]
pub(crate) enum Event {
    /// Somebody connected to a listening socket.
    Accepted(TcpStream, SocketAddr),
    /// An attempt to connect is over.
    Connected(ConnId, std::io::Result<TcpStream>),
    /// Bytes from a peer.
    Data(ConnId, Vec<u8>),
    /// So many bytes went out.
    Written(ConnId, usize),
    /// The connection is gone.
    Lost(ConnId, String),
    /// What was found behind an interface.
    Neighbor(String, Found),
}

/// What there is behind an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// There is no such interface.
    Nothing,
    /// The interface is there, with this number.
    Interface(u32),
    /// And a router with this link-local address.
    Router(u32, Ipv6Addr),
}
