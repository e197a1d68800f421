//! The peers: a feeder that writes and sinks that count. They know as much BGP as the start of a session takes.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use calidris_bgp::family::AfiSafi;
use calidris_bgp::wire::capability::{Capabilities, Capability};
use calidris_bgp::wire::frame::encode_keepalive;
use calidris_bgp::wire::open::Open;
use socket2::{Domain, Socket, Type};

use super::table::Table;
use crate::eventually::eventually;

/// Where the subject listens.
pub(super) const SUBJECT: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
/// The subject's AS.
pub(super) const SUBJECT_AS: u32 = 65_000;
/// Where the feeder connects from.
pub(super) const FEEDER: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 2);
/// The feeder's AS.
pub(super) const FEEDER_AS: u32 = 65_001;
/// Sinks at most.
pub(super) const MAX_SINKS: usize = 2000;
/// Sinks in one /24.
const SINKS_A_NET: usize = 250;

/// Longer than a run: nobody has to send KEEPALIVEs while it is measured.
pub(super) const HOLD_TIME: u16 = 1800;
/// How long a session may take to come up.
const UP_WITHIN: Duration = Duration::from_secs(60);

const HEADER: usize = 19;
const TYPE_OPEN: u8 = 1;
const TYPE_UPDATE: u8 = 2;
const TYPE_NOTIFICATION: u8 = 3;
const TYPE_KEEPALIVE: u8 = 4;

/// Where a sink connects from.
pub(super) fn sink_address(number: usize) -> Ipv4Addr {
    let octet = |number: usize| u8::try_from(number).unwrap_or(u8::MAX);
    Ipv4Addr::new(
        10,
        99,
        octet(1 + number / SINKS_A_NET),
        octet(1 + number % SINKS_A_NET),
    )
}

/// What the sinks are to the subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sinks {
    /// Peers in ASes of their own.
    External,
    /// Clients of the subject as route reflector.
    Clients,
}

/// A sink's AS.
pub(super) fn sink_as(number: usize, sinks: Sinks) -> u32 {
    match sinks {
        Sinks::External => 100_000 + u32::try_from(number).unwrap_or(0),
        Sinks::Clients => SUBJECT_AS,
    }
}

/// The peer that sends.
#[derive(Debug)]
pub(super) struct Feeder(TcpStream);

impl Feeder {
    /// Connects from within the current namespace.
    pub(super) fn connect() -> anyhow::Result<Self> {
        establish(FEEDER, FEEDER_AS).map(|(stream, _)| Self(stream))
    }

    /// Writes the whole table as fast as it is taken.
    pub(super) fn send(&mut self, table: &Table) -> anyhow::Result<()> {
        self.0.write_all(&table.messages).context("feed the table")
    }
}

/// A peer that counts.
#[derive(Debug)]
pub(super) struct Sink {
    stream: TcpStream,
    /// What came and is not looked at yet.
    pending: Vec<u8>,
}

impl Sink {
    /// Connects from within the current namespace.
    pub(super) fn connect(number: usize, sinks: Sinks) -> anyhow::Result<Self> {
        let (stream, pending) = establish(sink_address(number), sink_as(number, sinks))?;
        Ok(Self { stream, pending })
    }

    /// Reads until `total` prefixes were announced.
    pub(super) fn count_to(&mut self, total: usize, within: Duration) -> anyhow::Result<()> {
        self.stream.set_read_timeout(Some(within))?;
        let mut buffer = vec![0; 1 << 18];
        let mut seen = 0;
        loop {
            let (count, used) = count_prefixes(&self.pending)?;
            seen += count;
            self.pending.drain(..used);
            if seen >= total {
                ensure!(seen == total, "{seen} announcements of {total} prefixes");
                return Ok(());
            }
            let read = self
                .stream
                .read(&mut buffer)
                .with_context(|| format!("after {seen} prefixes"))?;
            ensure!(read > 0, "the subject closed the session after {seen} prefixes");
            self.pending.extend_from_slice(&buffer[..read]);
        }
    }
}

/// Announced IPv4 prefixes in the whole messages that `bytes` begin with, and how long those are.
pub(super) fn count_prefixes(bytes: &[u8]) -> anyhow::Result<(usize, usize)> {
    let (mut count, mut at) = (0, 0);
    while let Some((kind, body, length)) = message(&bytes[at..])? {
        at += length;
        match kind {
            TYPE_UPDATE => count += announced(body).context("an UPDATE that is none")?,
            TYPE_NOTIFICATION => bail!("the subject sent a NOTIFICATION: {body:?}"),
            _ => {}
        }
    }
    Ok((count, at))
}

/// The first message: type, body and whole length; `None` while it is not complete.
fn message(bytes: &[u8]) -> anyhow::Result<Option<(u8, &[u8], usize)>> {
    let Some(header) = bytes.get(..HEADER) else {
        return Ok(None);
    };
    let length = usize::from(u16::from_be_bytes([header[16], header[17]]));
    ensure!(length >= HEADER, "a message of {length} octets");
    Ok(bytes.get(HEADER..length).map(|body| (header[18], body, length)))
}

/// Prefixes in the NLRI field of an UPDATE (RFC 4271 §4.3).
fn announced(body: &[u8]) -> Option<usize> {
    let field = |at: usize| {
        Some(usize::from(u16::from_be_bytes([
            *body.get(at)?,
            *body.get(at + 1)?,
        ])))
    };
    let attributes_at = 2 + field(0)?;
    let mut at = attributes_at + 2 + field(attributes_at)?;
    let mut count = 0;
    while at < body.len() {
        at += 1 + usize::from(body.get(at)?.div_ceil(8));
        count += 1;
    }
    (at == body.len()).then_some(count)
}

/// A session from `address`, up on both sides, and what came behind the subject's first KEEPALIVE.
fn establish(address: Ipv4Addr, asn: u32) -> anyhow::Result<(TcpStream, Vec<u8>)> {
    eventually(&format!("a session from {address}"), UP_WITHIN, || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.bind(&SocketAddr::from((address, 0)).into())?;
        socket.connect_timeout(&SocketAddr::from((SUBJECT, 179)).into(), Duration::from_secs(5))?;
        let mut stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.set_nodelay(true)?;
        let capabilities = Capabilities::new(vec![
            Capability::Multiprotocol(AfiSafi::IPV4_UNICAST),
            Capability::FourOctetAs(asn),
        ]);
        let mut hello = Vec::new();
        Open::new(asn, HOLD_TIME, address, capabilities).encode(&mut hello)?;
        encode_keepalive(&mut hello);
        stream.write_all(&hello)?;
        let rest = read_hello(&mut stream)?;
        Ok((stream, rest))
    })
}

/// Reads OPEN and KEEPALIVE.
fn read_hello(stream: &mut TcpStream) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let mut at = 0;
        while let Some((kind, body, length)) = message(&bytes[at..])? {
            at += length;
            match kind {
                TYPE_KEEPALIVE => return Ok(bytes.split_off(at)),
                TYPE_OPEN => {}
                _ => bail!("message of type {kind} instead of OPEN and KEEPALIVE: {body:?}"),
            }
        }
        let read = stream.read(&mut buffer)?;
        ensure!(read > 0, "the subject closed the connection");
        bytes.extend_from_slice(&buffer[..read]);
    }
}
