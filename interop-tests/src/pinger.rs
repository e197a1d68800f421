//! A steady stream of numbered datagrams to a pod, and which of them came back: whether an event cost packets.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, anyhow, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::eventually::Stopwatch;
use crate::http::ECHO_PORT;
use crate::netns::Namespace;
use crate::pod::Pod;

/// Time between two datagrams, unless another is asked for.
const INTERVAL: Duration = Duration::from_millis(10);
/// How long answers to the last datagrams are waited for: long, since a busy machine answers late. Without a loss, no time.
const LAST_ANSWERS: Duration = Duration::from_secs(5);

/// A running stream.
#[derive(Debug)]
pub struct Pinger {
    path: String,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<anyhow::Result<Pings>>,
}

/// What became of the datagrams.
#[derive(Clone, Debug, Default)]
pub struct Pings {
    /// How many were sent.
    pub sent: u64,
    /// Those that were not answered: when they were sent, since the start.
    pub lost: Vec<Duration>,
}

/// Starts a stream from every pod to every other.
///
/// # Errors
/// When a socket cannot be opened.
pub fn between_all(pods: &[Pod]) -> anyhow::Result<Vec<Pinger>> {
    let mut pingers = Vec::new();
    for from in pods {
        for to in pods.iter().filter(|to| to.name != from.name) {
            pingers.push(Pinger::start(&from.namespace, to.address)?);
        }
    }
    Ok(pingers)
}

/// Stops all streams; fails when any datagram of any was lost, or none was sent.
///
/// # Errors
/// See above.
pub fn expect_no_loss(pingers: Vec<Pinger>) -> anyhow::Result<()> {
    for (path, pings) in stop_all(pingers)? {
        ensure!(pings.sent > 0, "{path}: nothing was sent");
        let (lost, sent) = (pings.lost.len(), pings.sent);
        ensure!(
            lost == 0,
            "{path}: {lost} of {sent} lost, sent at {:?} and later",
            pings.lost.first()
        );
    }
    Ok(())
}

/// Stops all streams and returns the count of each, by its path. The last answers to all are waited for together.
///
/// # Errors
/// When a socket failed.
pub fn stop_all(pingers: Vec<Pinger>) -> anyhow::Result<Vec<(String, Pings)>> {
    for pinger in &pingers {
        pinger.stop.store(true, Ordering::Relaxed);
    }
    let counted = pingers
        .into_iter()
        .map(|pinger| Ok((pinger.path.clone(), pinger.stop()?)));
    counted.collect()
}

impl Pinger {
    /// Starts to send from a namespace to the echo service at `address`.
    ///
    /// # Errors
    /// When the socket cannot be opened.
    pub fn start(from: &Namespace, address: IpAddr) -> anyhow::Result<Self> {
        Self::start_every(INTERVAL, from, address)
    }

    /// As [`Pinger::start`], with another time between two datagrams.
    ///
    /// # Errors
    /// When the socket cannot be opened.
    pub fn start_every(interval: Duration, from: &Namespace, address: IpAddr) -> anyhow::Result<Self> {
        let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = from
            .enter(|| UdpSocket::bind(any))?
            .context("bind a UDP socket")?;
        socket.set_nonblocking(true)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let target = SocketAddr::new(address, ECHO_PORT);
        let thread = std::thread::spawn(move || send_and_count(&socket, target, interval, &stopped));
        let path = format!("{} to {address}", from.name());
        Ok(Self { path, stop, thread })
    }

    /// From where to where, for messages.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Stops sending, waits a little for the last answers, and returns the count.
    ///
    /// # Errors
    /// When the socket failed.
    pub fn stop(self) -> anyhow::Result<Pings> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the pinger panicked"))?
    }
}

fn send_and_count(
    socket: &UdpSocket,
    target: SocketAddr,
    interval: Duration,
    stop: &AtomicBool,
) -> anyhow::Result<Pings> {
    let watch = Stopwatch::start();
    let mut waiting = BTreeMap::new();
    let mut sent: u64 = 0;
    while !stop.load(Ordering::Relaxed) {
        // One that the kernel refuses to send (no route) is a lost one.
        let _ = socket.send_to(&sent.to_be_bytes(), target);
        waiting.insert(sent, watch.elapsed());
        sent = sent.saturating_add(1);
        // What was not sent in time on a busy machine is not made up for: all of a burst would share one fate.
        let next = watch.elapsed() + interval;
        receive_until(socket, &mut waiting, &watch, next)?;
    }
    let end = watch.elapsed() + LAST_ANSWERS;
    while !waiting.is_empty() && receive_one(socket, &mut waiting, &watch, end)? {}
    Ok(Pings {
        sent,
        lost: waiting.into_values().collect(),
    })
}

/// Takes answers until the watch shows `until`.
fn receive_until(
    socket: &UdpSocket,
    waiting: &mut BTreeMap<u64, Duration>,
    watch: &Stopwatch,
    until: Duration,
) -> anyhow::Result<()> {
    while receive_one(socket, waiting, watch, until)? {}
    Ok(())
}

/// Waits for one answer; `false` when the watch shows `until`.
fn receive_one(
    socket: &UdpSocket,
    waiting: &mut BTreeMap<u64, Duration>,
    watch: &Stopwatch,
    until: Duration,
) -> anyhow::Result<bool> {
    let left = until.checked_sub(watch.elapsed()).filter(|left| !left.is_zero());
    let Some(left) = left else {
        return Ok(false);
    };
    // Not by the socket's own timeout, which the kernel counts in its ticks of some milliseconds.
    let left = Timespec::try_from(left)?;
    poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&left))?;
    let mut buffer = [0; 8];
    if let Ok((8, _)) = socket.recv_from(&mut buffer) {
        waiting.remove(&u64::from_be_bytes(buffer));
    }
    Ok(true)
}
