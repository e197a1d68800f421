//! Routers behind interfaces, found by what they announce (RFC 4861): a task for each interface that has an unnumbered peer.
//!
//! It asks (router solicitation), listens, and announces this node in its turn, so that peers which look for us find us: a router advertisement
//! with lifetime 0, which makes nobody use us as default router. Only messages with hop limit 255 count: they come from this link.
//!
//! An interface that is not there, or is there again under another number, is looked for once a second. A flood of announcements costs at most
//! [`BURST`] of them a second.

use std::collections::BTreeMap;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::time::Duration;
use std::{fmt, io};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Interval, MissedTickBehavior, interval};
use tracing::{debug, warn};

use crate::event::{Event, Found};
use crate::socket::{ROUTER_ADVERTISEMENT, ROUTER_SOLICITATION, prepare_icmpv6, receive_icmpv6};

/// How often an interface is looked at.
const TICK: Duration = Duration::from_secs(1);
/// Announcements go out at the first ticks, and then at every tenth.
const EAGER: u32 = 3;
const RARE: u32 = 10;
/// Messages taken in one tick.
const BURST: u32 = 64;

/// ff02::1 and ff02::2.
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);

/// The interfaces looked at, and what was last found.
#[derive(Default)]
pub(crate) struct Neighbors {
    tasks: BTreeMap<String, (JoinHandle<()>, Found)>,
}

impl fmt::Debug for Neighbors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.tasks.keys()).finish()
    }
}

impl Neighbors {
    /// Looks behind exactly these interfaces from now on.
    pub(crate) fn look_behind<'a>(
        &mut self,
        interfaces: impl Iterator<Item = &'a str>,
        events: &mpsc::Sender<Event>,
    ) {
        let mut before = std::mem::take(&mut self.tasks);
        for interface in interfaces {
            let task = before.remove(interface).unwrap_or_else(|| {
                let task = tokio::spawn(look(interface.to_owned(), events.clone()));
                (task, Found::Nothing)
            });
            self.tasks.insert(interface.to_owned(), task);
        }
        for (task, _) in before.into_values() {
            task.abort();
        }
    }

    /// Remembers what was found.
    pub(crate) fn note(&mut self, interface: &str, found: Found) {
        if let Some((_, last)) = self.tasks.get_mut(interface) {
            *last = found;
        }
    }

    /// What was last found, for peers that are new.
    pub(crate) fn known(&self) -> Vec<(String, Found)> {
        let known = self.tasks.iter();
        known.map(|(name, (_, found))| (name.clone(), *found)).collect()
    }
}

impl Drop for Neighbors {
    fn drop(&mut self) {
        for (task, _) in self.tasks.values() {
            task.abort();
        }
    }
}

async fn look(interface: String, events: mpsc::Sender<Event>) {
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last = None;
    let mut complained = false;
    loop {
        ticks.tick().await;
        let found = number_of(&interface).map_or(Found::Nothing, Found::Interface);
        let mut link = Link {
            interface: &interface,
            events: &events,
            last: &mut last,
        };
        if link.tell(found).await.is_err() {
            return;
        }
        let Found::Interface(index) = found else {
            continue;
        };
        match link.listen(index, &mut ticks).await {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return,
            Err(error) if complained => debug!(interface, %error, "cannot look for routers"),
            Err(error) => {
                complained = true;
                warn!(interface, %error, "cannot look for routers behind an interface; trying again");
            }
        }
    }
}

fn number_of(interface: &str) -> Option<u32> {
    use rustix::net::{AddressFamily, SocketType, netdevice, socket};
    let any_socket = socket(AddressFamily::INET, SocketType::DGRAM, None).ok()?;
    netdevice::name_to_index(any_socket, interface).ok()
}

/// An interface while it is looked at.
struct Link<'a> {
    interface: &'a str,
    events: &'a mpsc::Sender<Event>,
    last: &'a mut Option<Found>,
}

impl Link<'_> {
    /// Tells the owner what is new; fails when there is no owner any more.
    async fn tell(&mut self, found: Found) -> io::Result<()> {
        // The number alone says less than the router that was found with it.
        let known = match (*self.last, found) {
            (Some(Found::Router(before, _)), Found::Interface(now)) => before == now,
            (last, found) => last == Some(found),
        };
        if known {
            return Ok(());
        }
        *self.last = Some(found);
        let event = Event::Neighbor(self.interface.to_owned(), found);
        let told = self.events.send(event).await;
        told.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    /// Asks, listens and announces until the interface has changed.
    async fn listen(&mut self, index: u32, ticks: &mut Interval) -> io::Result<()> {
        #[expect(
            deprecated,
            reason = "a Socket keeps its descriptor as long as it lives; what replaces this is unsafe"
        )]
        let socket = AsyncFd::new(open(self.interface)?)?;
        let announce = |to: Ipv6Addr| send(socket.get_ref(), &advertisement(), to, index);
        let (mut tick, mut taken) = (0_u32, 0_u32);
        loop {
            tokio::select! {
                _ = ticks.tick() => {
                    if number_of(self.interface) != Some(index) {
                        return Ok(());
                    }
                    taken = 0;
                    tick = tick.wrapping_add(1);
                    if tick <= EAGER || tick % RARE == 0 {
                        let asked = send(socket.get_ref(), &solicitation(), ALL_ROUTERS, index);
                        // Without an address yet, or while the link is down, nothing can be said.
                        if let Err(error) = asked.and_then(|()| announce(ALL_NODES)) {
                            debug!(interface = self.interface, %error, "cannot announce this router");
                        }
                    }
                }
                ready = socket.readable(), if taken < BURST => {
                    let mut ready = ready?;
                    taken = taken.saturating_add(1);
                    let Ok(message) = ready.try_io(|socket| receive_icmpv6(socket.get_ref())) else {
                        continue;
                    };
                    let message = message?;
                    let genuine = message.hop_limit == Some(255) && message.kind.1 == 0;
                    match message.kind.0 {
                        // RFC 4861 §6.1.2.
                        ROUTER_ADVERTISEMENT
                            if genuine && message.length >= 16 && message.from.is_unicast_link_local() =>
                        {
                            self.tell(Found::Router(index, message.from)).await?;
                        }
                        ROUTER_SOLICITATION if genuine => {
                            if let Err(error) = announce(ALL_NODES) {
                                debug!(interface = self.interface, %error, "cannot answer a solicitation");
                            }
                        }
                        _ => {}
                    }
                }
            }
        }
    }
}

fn open(interface: &str) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))?;
    socket.set_nonblocking(true)?;
    socket.bind_device(Some(interface.as_bytes()))?;
    prepare_icmpv6(&socket)?;
    socket.set_multicast_hops_v6(255)?;
    // What we say to all is not for us.
    socket.set_multicast_loop_v6(false)?;
    socket.join_multicast_v6(&ALL_ROUTERS, number_of(interface).unwrap_or(0))?;
    Ok(socket)
}

fn send(socket: &Socket, message: &[u8], to: Ipv6Addr, scope_id: u32) -> io::Result<()> {
    let to = SocketAddrV6::new(to, 0, 0, scope_id);
    socket.send_to(message, &to.into()).map(drop)
}

/// RFC 4861 §4.1; the kernel fills in the checksum.
fn solicitation() -> [u8; 8] {
    [ROUTER_SOLICITATION, 0, 0, 0, 0, 0, 0, 0]
}

/// RFC 4861 §4.2, with everything unspecified and lifetime 0.
fn advertisement() -> [u8; 16] {
    let mut message = [0; 16];
    message[0] = ROUTER_ADVERTISEMENT;
    message
}
