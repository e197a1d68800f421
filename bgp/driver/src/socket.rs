//! Socket options of BGP connections that `socket2` does not have: TCP-MD5 keys, the least TTL of received packets, the TTL a connection began
//! with; and the hop limit of received ICMPv6 messages. The only unsafe code of the driver.
#![expect(unsafe_code, reason = "setsockopt with options that no safe wrapper covers")]

use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd};

use calidris_bgp::PeerConfig;
use calidris_bgp::config::Distance;
use calidris_bgp::family::Prefix;
use calidris_bgp::policy::PeerKind;
use socket2::{SockRef, Socket};

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
        }
    }

    /// Whether the other side is as near as it must be, by the TTL with which it opened a connection to us (RFC 5082): the least TTL is set on an accepted
    /// socket when its first packets have passed already.
    ///
    /// # Errors
    /// What it came with, and what was expected.
    pub(crate) fn check_distance(&self, accepted: &impl AsFd) -> Result<(), String> {
        match (self.min_ttl, syn_ttl(accepted)) {
            (Some(least), Some(ttl)) if ttl < least => Err(format!(
                "GTSM: the connection was opened with TTL {ttl}; expected at least {least}"
            )),
            _ => Ok(()),
        }
    }

    /// Makes a socket in use follow a changed configuration: TTL, least TTL, and another key (RFC 2385) where there was one.
    pub(crate) fn apply_live(&self, socket: &impl AsFd) -> io::Result<()> {
        self.apply_connecting(socket)
    }

    /// Prepares a socket that is to connect.
    pub(crate) fn apply_connecting(&self, socket: &impl AsFd) -> io::Result<()> {
        if let Some(key) = &self.md5_key {
            set_md5_key(socket, Prefix::host(self.peer), key)?;
        }
        self.apply_accepted(socket)
    }

    /// Prepares a socket that was accepted: the key came from the listening socket.
    pub(crate) fn apply_accepted(&self, socket: &impl AsFd) -> io::Result<()> {
        let options = SockRef::from(socket);
        options.set_tcp_nodelay(true)?;
        // No TCP_USER_TIMEOUT: it would end the session of a peer that is slow to read before its SendHoldTimer does (RFC 9687).
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

/// `TCP_MD5SIG_EXT` of `linux/tcp.h`: a key with a prefix length.
const TCP_MD5SIG_EXT: libc::c_int = 32;

/// `TCP_MD5SIG_FLAG_PREFIX` of `linux/tcp.h`.
const TCP_MD5SIG_FLAG_PREFIX: u8 = 1;

/// `TCP_SAVE_SYN` and `TCP_SAVED_SYN` of `linux/tcp.h`.
const TCP_SAVE_SYN: libc::c_int = 27;
const TCP_SAVED_SYN: libc::c_int = 28;

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

/// Demands of segments from `peers` that they are signed with `key`, and signs those to them; an empty key ends that. Of several keys for an address
/// that of the longest prefix counts.
pub(crate) fn set_md5_key(socket: &impl AsFd, peers: Prefix, key: &str) -> io::Result<()> {
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
        address: Storage::of(peers.address()),
        flags: TCP_MD5SIG_FLAG_PREFIX,
        prefix_len: peers.length(),
        key_len,
        ifindex: 0,
        key: octets,
    };
    set(socket, libc::IPPROTO_TCP, TCP_MD5SIG_EXT, &option)
}

/// Keeps, for connections that a listening socket accepts, the headers they were opened with; and answers with the greatest TTL, so that who demands
/// nearness of us (RFC 5082) takes the answer.
pub(crate) fn prepare_listener(socket: &Socket, address: IpAddr) -> io::Result<()> {
    match address {
        IpAddr::V4(_) => socket.set_ttl_v4(255)?,
        IpAddr::V6(_) => socket.set_unicast_hops_v6(255)?,
    }
    set_int(socket, libc::IPPROTO_TCP, TCP_SAVE_SYN, 1)
}

/// The TTL with which an accepted connection was opened; `None` when the kernel did not keep it (under a flood of them).
fn syn_ttl(socket: &impl AsFd) -> Option<u8> {
    let mut headers = [0_u8; 128];
    let mut length = libc::socklen_t::try_from(headers.len()).ok()?;
    // SAFETY: the descriptor is borrowed for the call; at most `length` octets of `headers` are written, and `length` is valid for writing.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            TCP_SAVED_SYN,
            headers.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    let headers = headers.get(..usize::try_from(length).ok()?)?;
    match headers.first().filter(|_| result == 0)? >> 4 {
        4 => headers.get(8).copied(),
        6 => headers.get(7).copied(),
        _ => None,
    }
}

/// A received ICMPv6 message: its type and code, who sent it, and the hop limit it came with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Icmpv6 {
    pub(crate) kind: (u8, u8),
    pub(crate) length: usize,
    pub(crate) from: Ipv6Addr,
    pub(crate) hop_limit: Option<i32>,
}

/// Has the kernel tell the hop limit of what comes, and lets only router solicitations and advertisements through.
pub(crate) fn prepare_icmpv6(socket: &Socket) -> io::Result<()> {
    // `struct icmp6_filter`: a bit that is set blocks the type.
    let mut filter = [u32::MAX; 8];
    for kind in [ROUTER_SOLICITATION, ROUTER_ADVERTISEMENT] {
        if let Some(word) = filter.get_mut(usize::from(kind) / 32) {
            *word &= !(1 << (kind % 32));
        }
    }
    set(socket, libc::IPPROTO_ICMPV6, ICMP6_FILTER, &filter)?;
    set_int(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVHOPLIMIT, 1)
}

/// RFC 4861 §4.1.
pub(crate) const ROUTER_SOLICITATION: u8 = 133;
/// RFC 4861 §4.2.
pub(crate) const ROUTER_ADVERTISEMENT: u8 = 134;
/// `ICMPV6_FILTER` of `linux/icmpv6.h`.
const ICMP6_FILTER: libc::c_int = 1;

/// Takes one message off an ICMPv6 socket that does not block.
pub(crate) fn receive_icmpv6(socket: &impl AsFd) -> io::Result<Icmpv6> {
    let mut message = [0_u8; 256];
    let mut control = [0_u64; 16];
    // SAFETY: both are plain C structures for which all zeroes is a value.
    let (mut sender, mut header): (libc::sockaddr_in6, libc::msghdr) =
        unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
    let mut part = libc::iovec {
        iov_base: message.as_mut_ptr().cast(),
        iov_len: message.len(),
    };
    header.msg_name = (&raw mut sender).cast();
    header.msg_namelen = libc::socklen_t::try_from(size_of::<libc::sockaddr_in6>()).unwrap_or(0);
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = size_of_val(&control);
    // SAFETY: every pointer in `header` is to a buffer of the length beside it that lives until the call returns.
    let length = unsafe { libc::recvmsg(socket.as_fd().as_raw_fd(), &raw mut header, 0) };
    let Ok(length) = usize::try_from(length) else {
        return Err(io::Error::last_os_error());
    };
    let mut hop_limit = None;
    // SAFETY: the kernel filled `control` up to `msg_controllen`; the macros stay inside of it, and the value of this kind is an int.
    unsafe {
        let mut next = libc::CMSG_FIRSTHDR(&raw const header);
        while !next.is_null() {
            if (*next).cmsg_level == libc::IPPROTO_IPV6 && (*next).cmsg_type == libc::IPV6_HOPLIMIT {
                hop_limit = Some(libc::CMSG_DATA(next).cast::<libc::c_int>().read_unaligned());
            }
            next = libc::CMSG_NXTHDR(&raw const header, next);
        }
    }
    Ok(Icmpv6 {
        kind: (message[0], message[1]),
        length,
        from: sender.sin6_addr.s6_addr.into(),
        hop_limit,
    })
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
