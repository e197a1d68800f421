//! Listening sockets: opened together, each with a task that accepts, and the TCP-MD5 keys of the peers on all of them.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use calidris_bgp::family::Prefix;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::{error, warn};

use crate::StartError;
use crate::event::Event;
use crate::socket::{prepare_listener, set_md5_key};

/// Connections the kernel keeps for us until they are accepted.
const BACKLOG: i32 = 128;

/// How long accepting rests after an error such as too many open files, which would otherwise repeat at once.
const REST: Duration = Duration::from_millis(200);

/// One failure of so many in a row is told: one in ten seconds.
const REPORTED: u32 = 50;

/// The listening sockets and the keys set on them.
#[derive(Debug)]
pub(crate) struct Listeners {
    sockets: Vec<(SocketAddr, Arc<TcpListener>)>,
    keys: BTreeMap<Prefix, String>,
}

impl Listeners {
    /// Opens a socket for each address, or none.
    pub(crate) fn open(addresses: &[SocketAddr]) -> Result<Self, StartError> {
        let open = |address: &SocketAddr| match listen(*address) {
            Ok(listener) => Ok((*address, Arc::new(listener))),
            Err(source) => Err(StartError::Listen {
                address: *address,
                source,
            }),
        };
        Ok(Self {
            sockets: addresses.iter().map(open).collect::<Result<_, _>>()?,
            keys: BTreeMap::new(),
        })
    }

    /// Starts a task for each socket that passes on what it accepts.
    pub(crate) fn accept(&self, events: &mpsc::Sender<Event>) -> Vec<JoinHandle<()>> {
        let sockets = self.sockets.iter();
        sockets
            .map(|(_, listener)| tokio::spawn(accept(Arc::clone(listener), events.clone())))
            .collect()
    }

    /// Makes the keys exactly `wanted`. A key that cannot be set keeps its peers from connecting: the error says why.
    pub(crate) fn set_keys(&mut self, wanted: BTreeMap<Prefix, String>) {
        if wanted == self.keys {
            return;
        }
        for peers in self.keys.keys().filter(|peers| !wanted.contains_key(*peers)) {
            self.set_key(*peers, "");
        }
        for (peers, key) in wanted
            .iter()
            .filter(|(peers, key)| self.keys.get(*peers) != Some(*key))
        {
            self.set_key(*peers, key);
        }
        self.keys = wanted;
    }

    fn set_key(&self, peers: Prefix, key: &str) {
        for (address, listener) in self
            .sockets
            .iter()
            .filter(|(address, _)| address.is_ipv4() == peers.address().is_ipv4())
        {
            if let Err(error) = set_md5_key(listener.as_ref(), peers, key) {
                error!(%peers, %address, %error, "cannot set the TCP-MD5 key of peers");
            }
        }
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        // IPv4 has a socket of its own.
        socket.set_only_v6(true)?;
    }
    prepare_listener(&socket, address.ip())?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

async fn accept(listener: Arc<TcpListener>, events: mpsc::Sender<Event>) {
    let mut failures = 0_u32;
    loop {
        match listener.accept().await {
            Ok((stream, remote)) => {
                if events.send(Event::Accepted(stream, remote)).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                if failures.is_multiple_of(REPORTED) {
                    warn!(%error, "cannot accept connections");
                }
                failures = failures.wrapping_add(1);
                tokio::time::sleep(REST).await;
            }
        }
    }
}
