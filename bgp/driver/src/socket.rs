//! Socket options of BGP connections that `socket2` does not have: TCP-MD5 keys and the least TTL of received packets. The only unsafe code of
//! the driver.
#![expect(unsafe_code, reason = "setsockopt with options that no safe wrapper covers")]

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use calidris_bgp::PeerConfig;
use calidris_bgp::config::Distance;
use calidris_bgp::policy::PeerKind;
use socket2::SockRef;

/// What the socket of a peer needs.
#[derive(Debug, Clone)]
pub(crate) struct SocketOptions {
    peer: IpAddr,
    /// TTL of the packets we send; the kernel's default when `None`.
    ttl: Option<u8>,
    /// TTL below which received packets are dropped (RFC 5082).
    min_ttl: Option<u8>,
    /// RFC 2385.
    md5_key: Option<String>,
    /// How long sent data may stay unacknowledged; the hold time.
    user_timeout: Option<Duration>,
}

impl SocketOptions {
    /// Of a peer of that kind.
    pub(crate) fn of(peer: &PeerConfig, kind: PeerKind) -> Self {
        let (ttl, min_ttl) = match (peer.transport.distance, kind) {
            (Distance::Auto, PeerKind::Ebgp) => (Some(1), None),
            (Distance::Auto, PeerKind::Ibgp) => (None, None),
            (Distance::Multihop(hops), _) => (Some(hops.max(1)), None),
            (Distance::Gtsm { hops }, _) => (Some(255), Some(255 - hops.clamp(1, 254) + 1)),
        };
        Self {
            peer: peer.address,
            ttl,
            min_ttl,
            md5_key: peer.transport.md5_password.clone(),
            user_timeout: (peer.hold_time > 0).then(|| Duration::from_secs(peer.hold_time.into())),
        }
    }

    /// Prepares a socket that is to connect.
    pub(crate) fn apply_connecting(&self, socket: &impl AsFd) -> io::Result<()> {
        if let Some(key) = &self.md5_key {
            set_md5_key(socket, self.peer, key)?;
        }
        self.apply_accepted(socket)
    }

    /// Prepares a socket that was accepted: the key came from the listening socket.
    pub(crate) fn apply_accepted(&self, socket: &impl AsFd) -> io::Result<()> {
        let options = SockRef::from(socket);
        options.set_tcp_nodelay(true)?;
        options.set_tcp_user_timeout(self.user_timeout)?;
        if let Some(ttl) = self.ttl {
            match self.peer {
                IpAddr::V4(_) => options.set_ttl_v4(ttl.into())?,
                IpAddr::V6(_) => options.set_unicast_hops_v6(ttl.into())?,
            }
        }
        match (self.min_ttl, self.peer) {
            (Some(least), IpAddr::V4(_)) => set_int(socket, libc::IPPROTO_IP, libc::IP_MINTTL, least.into()),
            (Some(least), IpAddr::V6(_)) => {
                set_int(socket, libc::IPPROTO_IPV6, IPV6_MINHOPCOUNT, least.into())
            }
            (None, _) => Ok(()),
        }
    }
}

/// `IPV6_MINHOPCOUNT` of `linux/in6.h`.
const IPV6_MINHOPCOUNT: libc::c_int = 73;

/// `TCP_MD5SIG_MAXKEYLEN` of `linux/tcp.h`.
const MAX_KEY: usize = 80;

/// `struct sockaddr_storage` with an address and port 0.
#[repr(C, align(8))]
struct Storage([u8; size_of::<libc::sockaddr_storage>()]);

impl Storage {
    fn of(address: IpAddr) -> Self {
        let family = if address.is_ipv4() {
            libc::AF_INET
        } else {
            libc::AF_INET6
        };
        // The family in the order of the machine, then the port; then the address, for IPv6 behind the flow label.
        let mut octets: Vec<u8> = libc::sa_family_t::try_from(family)
            .unwrap_or(0)
            .to_ne_bytes()
            .to_vec();
        octets.extend_from_slice(&[0; 2]);
        match address {
            IpAddr::V4(address) => octets.extend_from_slice(&address.octets()),
            IpAddr::V6(address) => {
                octets.extend_from_slice(&[0; 4]);
                octets.extend_from_slice(&address.octets());
            }
        }
        let mut storage = [0; size_of::<libc::sockaddr_storage>()];
        for (to, from) in storage.iter_mut().zip(octets) {
            *to = from;
        }
        Self(storage)
    }
}

/// `struct tcp_md5sig` of `linux/tcp.h`.
#[repr(C)]
struct TcpMd5Sig {
    address: Storage,
    flags: u8,
    prefix_len: u8,
    key_len: u16,
    ifindex: libc::c_int,
    key: [u8; MAX_KEY],
}

/// Demands of segments from `peer` that they are signed with `key`, and signs those to it; an empty key ends that.
pub(crate) fn set_md5_key(socket: &impl AsFd, peer: IpAddr, key: &str) -> io::Result<()> {
    let Some(key_len) = u16::try_from(key.len())
        .ok()
        .filter(|len| usize::from(*len) <= MAX_KEY)
    else {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "a TCP-MD5 key has at most 80 bytes",
        ));
    };
    let mut octets = [0; MAX_KEY];
    for (to, from) in octets.iter_mut().zip(key.bytes()) {
        *to = from;
    }
    let option = TcpMd5Sig {
        address: Storage::of(peer),
        flags: 0,
        prefix_len: 0,
        key_len,
        ifindex: 0,
        key: octets,
    };
    set(socket, libc::IPPROTO_TCP, libc::TCP_MD5SIG, &option)
}

fn set_int(socket: &impl AsFd, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    set(socket, level, name, &value)
}

fn set<T>(socket: &impl AsFd, level: libc::c_int, name: libc::c_int, value: &T) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of::<T>()).unwrap_or(0);
    // SAFETY: the descriptor is borrowed for the call, and `value` points to `length` readable octets of a plain C structure.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            name,
            std::ptr::from_ref(value).cast(),
            length,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
