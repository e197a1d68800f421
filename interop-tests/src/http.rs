//! A tiny HTTP/1.1 server and client: the server tells the client which address it came from.
//!
//! That is how a lab sees whether a packet kept its source address on the way. Beside it the server echoes UDP
//! datagrams, for [`crate::pinger`].

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};

/// The port of the HTTP server.
pub const HTTP_PORT: u16 = 80;
/// The port of the UDP echo service (RFC 862).
pub const ECHO_PORT: u16 = 7;

/// How long the server waits for a client to send its request.
const REQUEST_WITHIN: Duration = Duration::from_secs(1);
/// The longest request or answer that is read, bytes.
const LONGEST_MESSAGE: u64 = 16 * 1024;

/// What the server says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The address that the client has, as the server sees it.
    pub you: IpAddr,
    /// The address that the client asked.
    pub me: IpAddr,
    /// The server's name.
    pub host: String,
}

/// Serves for ever, on all addresses of the namespace, IPv6 and IPv4.
///
/// # Errors
/// When a port cannot be bound.
pub fn serve(name: &str) -> anyhow::Result<()> {
    let echo = on_all_addresses(ECHO_PORT, UdpSocket::bind)?;
    let listener = on_all_addresses(HTTP_PORT, TcpListener::bind)?;
    std::thread::spawn(move || echo_datagrams(&echo));
    for stream in listener.incoming() {
        // A client that went away or sends nonsense concerns nobody else.
        if let Ok(stream) = stream
            && let Err(error) = answer(&stream, name)
        {
            eprintln!("request: {error:#}");
        }
    }
    Ok(())
}

/// Asks the server at `address`. Connecting and each read may take `within`.
///
/// # Errors
/// When it does not answer, or not as it should.
pub fn ask(address: IpAddr, within: Duration) -> anyhow::Result<Answer> {
    ask_at(SocketAddr::new(address, HTTP_PORT), within)
}

/// As [`ask`], at another port.
///
/// # Errors
/// As [`ask`].
pub fn ask_at(host: SocketAddr, within: Duration) -> anyhow::Result<Answer> {
    let address = host.ip();
    let mut stream =
        TcpStream::connect_timeout(&host, within).with_context(|| format!("connect to {host}"))?;
    stream.set_read_timeout(Some(within))?;
    stream.set_write_timeout(Some(within))?;
    write!(
        stream,
        "GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    )?;
    let mut text = String::new();
    stream
        .take(LONGEST_MESSAGE)
        .read_to_string(&mut text)
        .with_context(|| format!("read from {address}"))?;
    let (head, body) = text
        .split_once("\r\n\r\n")
        .with_context(|| format!("no HTTP answer: {text:?}"))?;
    ensure!(head.starts_with("HTTP/1.1 200 "), "{address} answered {head:?}");
    serde_json::from_str(body).with_context(|| format!("{address} answered {body:?}"))
}

/// IPv6 sockets take IPv4 too; where the kernel has no IPv6, IPv4 alone must do.
fn on_all_addresses<T>(port: u16, bind: impl Fn(SocketAddr) -> std::io::Result<T>) -> anyhow::Result<T> {
    bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)))
        .or_else(|_| bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))))
        .with_context(|| format!("bind port {port}"))
}

fn answer(mut stream: &TcpStream, name: &str) -> anyhow::Result<()> {
    stream.set_read_timeout(Some(REQUEST_WITHIN))?;
    stream.set_write_timeout(Some(REQUEST_WITHIN))?;
    let you = stream.peer_addr()?.ip().to_canonical();
    let me = stream.local_addr()?.ip().to_canonical();
    read_request(stream)?;
    let body = serde_json::to_string(&Answer {
        you,
        me,
        host: name.to_owned(),
    })?;
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\
         Connection: close\r\n\r\n{body}"
    )?;
    Ok(())
}

/// Reads up to the empty line that ends the head of a request without a body.
fn read_request(stream: &TcpStream) -> anyhow::Result<()> {
    let mut lines = BufReader::new(stream.take(LONGEST_MESSAGE));
    let mut line = String::new();
    loop {
        line.clear();
        if lines.read_line(&mut line)? == 0 {
            bail!("the client closed before its request was complete");
        }
        if line.trim_end().is_empty() {
            return Ok(());
        }
    }
}

fn echo_datagrams(socket: &UdpSocket) {
    let mut buffer = [0; 2048];
    loop {
        // Errors here are those of single datagrams (an unreachable client); the next one may be fine.
        if let Ok((length, client)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(buffer.get(..length).unwrap_or_default(), client);
        }
    }
}
