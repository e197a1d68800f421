//! A burst: many pods added on one node, and how long until each of them answers another node.
//!
//! The other node sends ICMP echo requests to every pod whose ADD has returned, every few milliseconds until it answers.
//! Pods need no server for that. The answers pass the agents' routes, the BGP sessions and the router.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, ensure};
use socket2::{Domain, Protocol, Socket, Type};

use super::{in_parallel, sorted};
use crate::cni::{Attachment, Runtime};
use crate::eventually::{Stopwatch, pace};
use crate::netns::Namespace;
use crate::pod::first_address;

/// Time between two requests to the same pod.
const EVERY: Duration = Duration::from_millis(5);
/// How long the last pod may take to answer.
const WITHIN: Duration = Duration::from_secs(60);
/// Marks our echo requests.
const IDENTIFIER: [u8; 2] = [0xca, 0x11];
const ECHO_REQUEST: u8 = 8;
const ECHO_REPLY: u8 = 0;

/// What a burst showed.
pub(super) struct Burst {
    /// From the first ADD to the last pod's answer, in seconds.
    pub(super) all_reachable: f64,
    /// From a pod's ADD having returned to its answer, in milliseconds, ascending.
    pub(super) after_add: Vec<f64>,
}

/// Pods that have not answered yet, with the time since their ADD returned; and those that have, with how long it took.
#[derive(Default)]
struct Ledger {
    waiting: BTreeMap<Ipv4Addr, Stopwatch>,
    answered: Vec<Duration>,
}

/// Adds the pods, `parallel` at a time, and waits until all answer `asker`.
///
/// # Errors
/// When an ADD fails, or a pod does not answer in time.
pub(super) fn run(
    runtime: &Runtime,
    attachments: &[Attachment],
    parallel: usize,
    asker: &Namespace,
) -> anyhow::Result<Burst> {
    let ledger = Mutex::new(Ledger::default());
    let over = AtomicBool::new(false);
    let socket = asker.enter(open)??;
    let watch = Stopwatch::start();
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| ask(&socket, &ledger, &over));
        let added = in_parallel(&runtime.namespace, attachments, parallel, |attachment| {
            let added = runtime.add(attachment)?;
            let IpAddr::V4(address) = first_address(&added.result)?.ip() else {
                anyhow::bail!("not an IPv4 address: {}", added.result);
            };
            lock(&ledger).waiting.insert(address, Stopwatch::start());
            Ok(())
        });
        let all = added.and_then(|_| {
            let since = Stopwatch::start();
            while lock(&ledger).answered.len() < attachments.len() {
                let missing = attachments.len() - lock(&ledger).answered.len();
                ensure!(since.elapsed() < WITHIN, "{missing} pods do not answer");
                ensure!(!asking.is_finished(), "the asker has ended");
                pace(Duration::from_millis(1));
            }
            Ok(watch.elapsed())
        });
        over.store(true, Ordering::Relaxed);
        let asked = asking.join().map_err(|_| anyhow::anyhow!("the asker panicked"))?;
        let all = all?;
        asked?;
        Ok(Burst {
            all_reachable: all.as_secs_f64(),
            after_add: sorted(std::mem::take(&mut lock(&ledger).answered).into_iter()),
        })
    })
}

fn open() -> anyhow::Result<Socket> {
    let socket =
        Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4)).context("open an ICMP socket")?;
    socket.set_recv_buffer_size(4 << 20)?;
    socket.set_read_timeout(Some(EVERY))?;
    Ok(socket)
}

fn ask(socket: &Socket, ledger: &Mutex<Ledger>, over: &AtomicBool) -> anyhow::Result<()> {
    let request = echo_request();
    while !over.load(Ordering::Relaxed) {
        let waiting: Vec<Ipv4Addr> = lock(ledger).waiting.keys().copied().collect();
        for address in waiting {
            let to = SocketAddr::V4(SocketAddrV4::new(address, 0));
            // Without a route yet there is nothing to send; the next round tries again.
            let _ = socket.send_to(&request, &to.into());
        }
        let round = Stopwatch::start();
        while round.elapsed() < EVERY {
            let mut packet = [0; 256];
            let Ok(length) = (&mut &*socket).read(&mut packet) else {
                break;
            };
            if let Some(from) = packet.get(..length).and_then(who_replies) {
                let mut ledger = lock(ledger);
                if let Some(since) = ledger.waiting.remove(&from) {
                    let took = since.elapsed();
                    ledger.answered.push(took);
                }
            }
        }
    }
    Ok(())
}

/// An ICMP echo request (RFC 792) with our identifier and its checksum.
fn echo_request() -> [u8; 8] {
    let [high, low] = IDENTIFIER;
    let sum = u32::from(u16::from_be_bytes([ECHO_REQUEST, 0])) + u32::from(u16::from_be_bytes(IDENTIFIER));
    let folded = (sum & 0xffff) + (sum >> 16);
    let [_, _, check_high, check_low] = (!folded).to_be_bytes();
    [ECHO_REQUEST, 0, check_high, check_low, high, low, 0, 0]
}

/// Who sent this IPv4 packet, if it is an answer to one of our requests.
fn who_replies(packet: &[u8]) -> Option<Ipv4Addr> {
    let header = usize::from(packet.first()? & 0x0f) * 4;
    let source: [u8; 4] = packet.get(12..16)?.try_into().ok()?;
    let icmp = packet.get(header..)?;
    let is_ours = icmp.first() == Some(&ECHO_REPLY) && icmp.get(4..6) == Some(&IDENTIFIER[..]);
    is_ours.then(|| Ipv4Addr::from(source))
}

fn lock(ledger: &Mutex<Ledger>) -> std::sync::MutexGuard<'_, Ledger> {
    ledger.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_is_told_from_anything_else() {
        let request = echo_request();
        let sum: u32 = request
            .chunks(2)
            .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
            .sum();
        assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff, "the checksum is right");
        let mut packet = vec![0x45; 1];
        packet.resize(12, 0);
        packet.extend([10, 0, 0, 9, 10, 0, 0, 1]);
        packet.extend(request);
        assert_eq!(who_replies(&packet), None, "a request");
        packet[20] = ECHO_REPLY;
        assert_eq!(who_replies(&packet), Some(Ipv4Addr::new(10, 0, 0, 9)));
        packet[25] ^= 1;
        assert_eq!(who_replies(&packet), None, "somebody else's");
        assert_eq!(who_replies(&[0x4f; 30]), None);
    }
}
