//! What is looked at in every mode: what pods can do with each other, and what of it is on the wire.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use ipnetwork::IpNetwork;

use super::capture::{Capture, Packet, Seen};
use super::{Carriage, Mode, Overlay, OverlayNode, WITHIN, router};
use crate::eventually::eventually;
use crate::http::{self, ECHO_PORT};
use crate::netns::Namespace;
use crate::pod::Pod;

/// How long one answer may take on a slow machine. A stall of TCP would take much longer than the transfer.
const ANSWER_WITHIN: Duration = Duration::from_secs(15);
/// Octets of a transfer: hundreds of the largest segments.
const TRANSFER: usize = 1 << 20;
/// A port where nobody listens.
const CLOSED_PORT: u16 = 9;
/// Headers before the payload of an echo request and of UDP, by family.
const ECHO_HEADERS: [u32; 2] = [28, 48];

/// Looks at everything once.
pub(super) fn at(overlay: &Overlay, mode: Mode) -> anyhow::Result<()> {
    // Pods keep the MTU of the mode they were made in; more than this mode takes is looked at elsewhere.
    let mtu = pods_mtu(overlay)?.min(mode.pod_mtu());
    let mut captures = Vec::new();
    for node in &overlay.nodes {
        captures.push(Capture::start(
            &overlay.lab,
            node.name,
            &node.namespace,
            node.subnet,
        )?);
    }
    let mut without_way = Vec::new();
    for (from, to) in overlay.pairs() {
        for address in addresses(&overlay.pods[to])? {
            let carriage = overlay.way(mode, address.is_ipv6(), (from, to)).carriage;
            let (pod, node) = (&overlay.pods[from], &overlay.nodes[from]);
            let what = format!("from {} to {} {address}", pod.name, overlay.pods[to].name);
            if carriage == Carriage::Nothing {
                without_way.push((what, &pod.namespace, address));
                continue;
            }
            let own = source(pod, address)?;
            reaches(pod, own, (&overlay.pods[to], address), mtu).with_context(|| what.clone())?;
            // A node reaches pods of others too, and they answer it.
            answers(&node.namespace, address).with_context(|| format!("from {} to {address}", node.name))?;
        }
    }
    there_is_no_way(&without_way)?;
    let mut seen = Vec::new();
    for (capture, node) in captures.into_iter().zip(&overlay.nodes) {
        seen.push(capture.stop(router::addresses(node.subnet)?[0].parse::<IpNetwork>()?.ip())?);
    }
    for (number, seen) in seen.iter().enumerate() {
        on_the_wire(overlay, mode, number, seen)?;
    }
    overlay
        .nodes
        .iter()
        .try_for_each(|node| is_settled(overlay, node))
}

/// None of these answers. All are asked at the same time, since each is waited for.
fn there_is_no_way(all: &[(String, &Namespace, IpAddr)]) -> anyhow::Result<()> {
    std::thread::scope(|scope| {
        let asked: Vec<_> = all
            .iter()
            .map(|(what, from, address)| (what, scope.spawn(|| answers(from, *address))))
            .collect();
        for (what, asked) in asked {
            let Ok(answer) = asked.join() else {
                bail!("{what}: asking panicked");
            };
            ensure!(answer.is_err(), "{what}: there should be no way");
        }
        Ok(())
    })
}

/// There is nothing that the agent would change (`calidris plan` prints nothing).
fn is_settled(overlay: &Overlay, node: &OverlayNode) -> anyhow::Result<()> {
    let config = overlay.lab.folder(node.name)?.join("calidris.toml");
    eventually(&format!("{} has nothing to change", node.name), WITHIN, || {
        let mut command = Command::new(&overlay.binaries.agent);
        let planned = node
            .namespace
            .run(command.arg("plan").arg("--config").arg(&config))?;
        ensure!(planned.is_empty(), "{planned}");
        Ok(())
    })
}

/// The MTU of the pods.
fn pods_mtu(overlay: &Overlay) -> anyhow::Result<u32> {
    let mut all = BTreeSet::new();
    for pod in &overlay.pods {
        let link = pod.namespace.ip("link show eth0")?;
        let mut words = link.split_ascii_whitespace().skip_while(|word| *word != "mtu");
        let mtu = words.nth(1).with_context(|| format!("no MTU in {link}"))?;
        all.insert(mtu.parse()?);
    }
    let mtu = all.pop_first().context("there are pods")?;
    ensure!(all.is_empty(), "pods of different MTU: {mtu} and {all:?}");
    Ok(mtu)
}

/// TCP in large segments, UDP as large as fits, echo requests as large as fits, errors of ICMP; with no address translated.
fn reaches(from: &Pod, own: IpAddr, (to, address): (&Pod, IpAddr), mtu: u32) -> anyhow::Result<()> {
    transfers(&from.namespace, own, &to.namespace, address)?;
    let fits = mtu.saturating_sub(ECHO_HEADERS[usize::from(address.is_ipv6())]);
    echoes(&from.namespace, address, usize::try_from(fits)?)?;
    ping(&from.namespace, address, fits).context("the largest packet, not to be fragmented")?;
    is_refused(&from.namespace, address)
}

/// Whether the echo service answers once.
pub(super) fn answers(from: &Namespace, address: IpAddr) -> anyhow::Result<()> {
    let asked = from.enter(|| http::ask(address, Duration::from_secs(1)))?;
    asked.map(drop)
}

/// The addresses of a pod, as the plugin said them.
pub(super) fn addresses(pod: &Pod) -> anyhow::Result<Vec<IpAddr>> {
    let ips = pod.added.result["ips"]
        .as_array()
        .context("the result has no addresses")?;
    let parse = |ip: &serde_json::Value| -> anyhow::Result<IpAddr> {
        let text = ip["address"].as_str().context("no address")?;
        Ok(text.parse::<IpNetwork>()?.ip())
    };
    ips.iter().map(parse).collect()
}

/// The address that a pod has in the family of another.
fn source(pod: &Pod, other: IpAddr) -> anyhow::Result<IpAddr> {
    let own = addresses(pod)?
        .into_iter()
        .find(|own| own.is_ipv6() == other.is_ipv6());
    own.with_context(|| format!("{} has no address of the family of {other}", pod.name))
}

/// A mebibyte by TCP, that the server counts; it sees the client's own address.
fn transfers(from: &Namespace, own: IpAddr, to: &Namespace, address: IpAddr) -> anyhow::Result<()> {
    let listener = to.enter(|| TcpListener::bind(SocketAddr::new(address, 0)))??;
    let server = SocketAddr::new(address, listener.local_addr()?.port());
    let counted = std::thread::spawn(move || -> anyhow::Result<(IpAddr, usize)> {
        let (mut stream, client) = listener.accept()?;
        stream.set_read_timeout(Some(ANSWER_WITHIN))?;
        let mut buffer = vec![0; 1 << 16];
        let mut count = 0;
        while count < TRANSFER {
            match stream.read(&mut buffer)? {
                0 => break,
                length => count += length,
            }
        }
        stream.write_all(&[1])?;
        Ok((client.ip(), count))
    });
    let sent = from.enter(|| -> anyhow::Result<()> {
        let mut stream = TcpStream::connect_timeout(&server, ANSWER_WITHIN)?;
        stream.set_write_timeout(Some(ANSWER_WITHIN))?;
        stream.set_read_timeout(Some(ANSWER_WITHIN))?;
        stream.write_all(&vec![7; TRANSFER])?;
        stream.read_exact(&mut [0])?;
        Ok(())
    })?;
    sent.context("TCP stalls")?;
    let Ok(counted) = counted.join() else {
        bail!("the server panicked");
    };
    let (client, count) = counted.context("TCP stalls")?;
    ensure!(count == TRANSFER, "{count} of {TRANSFER} octets came by TCP");
    ensure!(
        client == own,
        "the server sees {client} instead of {own}: somebody translates addresses"
    );
    Ok(())
}

/// A datagram of that many octets comes back whole. One may be lost while neighbours are found.
fn echoes(from: &Namespace, address: IpAddr, octets: usize) -> anyhow::Result<()> {
    let any: SocketAddr = if address.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" }.parse()?;
    let socket = from.enter(|| UdpSocket::bind(any))??;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    let (datagram, mut buffer) = (vec![3; octets], vec![0; 4096]);
    eventually(
        &format!("{octets} octets of UDP come back"),
        ANSWER_WITHIN,
        || {
            socket.send_to(&datagram, SocketAddr::new(address, ECHO_PORT))?;
            let (length, _) = socket.recv_from(&mut buffer)?;
            ensure!(length == octets, "{length} of {octets} octets came back");
            Ok(())
        },
    )
}

fn ping(from: &Namespace, address: IpAddr, octets: u32) -> anyhow::Result<String> {
    let mut command = Command::new("ping");
    command.args(["-n", "-c", "1", "-W", "5", "-M", "do", "-s"]);
    command.arg(octets.to_string()).arg(address.to_string());
    from.run(&mut command)
}

/// "Port unreachable" comes back from the other pod.
fn is_refused(from: &Namespace, address: IpAddr) -> anyhow::Result<()> {
    let any: SocketAddr = if address.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" }.parse()?;
    let socket = from.enter(|| -> std::io::Result<UdpSocket> {
        let socket = UdpSocket::bind(any)?;
        socket.connect(SocketAddr::new(address, CLOSED_PORT))?;
        Ok(socket)
    })??;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    eventually("port unreachable comes back", ANSWER_WITHIN, || {
        // The error of the datagram before may be told here already.
        let result = socket.send(&[1]).and_then(|_| socket.recv(&mut [0]));
        match result {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
            other => bail!("{other:?}"),
        }
    })
}

/// The uplinks' MTU becomes smaller, and what it was again. Tunnels follow, and pods made after it; pods that are there keep theirs
/// (their other end is not ours to change), are told by ICMP, and TCP follows.
pub(super) fn tunnels_and_new_pods_follow_the_uplinks(overlay: &Overlay, mode: Mode) -> anyhow::Result<()> {
    const LESS: u32 = 100;
    for less in [LESS, 0] {
        for node in &overlay.nodes {
            let mtu = 1500 - less;
            node.namespace
                .ip(&format!("link set {} mtu {mtu}", node.subnet))?;
        }
        for (node, tunnel) in overlay
            .nodes
            .iter()
            .flat_map(|node| mode.tunnels().iter().map(move |tunnel| (node, tunnel)))
        {
            let around = match *tunnel {
                "tunl0" => 20,
                "vxlan.calico" => 50,
                _ => 70,
            };
            let wanted = format!(" mtu {} ", 1500 - less - around);
            eventually(&format!("{tunnel} of {} has{wanted}", node.name), WITHIN, || {
                let link = node.namespace.ip(&format!("link show {tunnel}"))?;
                ensure!(link.contains(&wanted), "{link}");
                Ok(())
            })?;
        }
        let (from, to) = (&overlay.pods[0], &overlay.pods[2]);
        for address in addresses(to)? {
            if overlay.way(mode, address.is_ipv6(), (0, 2)).carriage != Carriage::Nothing {
                transfers(&from.namespace, source(from, address)?, &to.namespace, address)?;
            }
        }
        let node = &overlay.nodes[0];
        let late = Pod::start(
            &overlay.lab,
            &overlay.binaries,
            (node.name, &node.runtime),
            &format!("late{less}"),
        )?;
        let link = late.namespace.ip("link show eth0")?;
        let wanted = format!(" mtu {} ", mode.pod_mtu() - less);
        ensure!(link.contains(&wanted), "a new pod has not{wanted}: {link}");
    }
    Ok(())
}

/// Pods that were given a larger MTU than the mode has now are told so by ICMP, and TCP follows.
pub(super) fn larger_packets_are_refused(overlay: &Overlay, mode: Mode) -> anyhow::Result<()> {
    let (from, to) = (0, 2);
    for address in addresses(&overlay.pods[to])? {
        let tunnel = match overlay.way(mode, address.is_ipv6(), (from, to)).carriage {
            Carriage::Vxlan => 1500 - if address.is_ipv6() { 70 } else { 50 },
            Carriage::Ipip => 1480,
            Carriage::Plain | Carriage::Nothing => continue,
        };
        let (pod, node) = (&overlay.pods[from], &overlay.nodes[from]);
        let host_end = pod.added.result["interfaces"][0]["name"]
            .as_str()
            .context("no host end")?;
        let own = source(pod, address)?;
        node.namespace.ip(&format!("link set {host_end} mtu 1500"))?;
        pod.namespace.ip("link set eth0 mtu 1500")?;
        let fits = 1500 - ECHO_HEADERS[usize::from(address.is_ipv6())];
        let what = format!("{} is told the MTU {tunnel} to {address}", pod.name);
        eventually(&what, WITHIN, || {
            let said = match ping(&pod.namespace, address, fits) {
                Ok(said) => bail!("the packet passed: {said}"),
                Err(said) => format!("{said:#}"),
            };
            // By the node, of either family, or by the pod's own kernel, which was told before.
            let mut words = ["mtu=", "mtu = ", "mtu: "].into_iter();
            ensure!(
                words.any(|word| said.contains(&format!("{word}{tunnel}"))),
                "{said}"
            );
            Ok(())
        })?;
        transfers(&pod.namespace, own, &overlay.pods[to].namespace, address)?;
    }
    Ok(())
}

/// On the uplink of a node there is what the mode says, between the addresses that it says, whole; and nothing else.
fn on_the_wire(overlay: &Overlay, mode: Mode, number: usize, seen: &Seen) -> anyhow::Result<()> {
    let node = &overlay.nodes[number];
    for (other, peer) in overlay
        .nodes
        .iter()
        .enumerate()
        .filter(|(other, _)| *other != number)
    {
        for is_ipv6 in [false, true] {
            let carriage = overlay.way(mode, is_ipv6, (number, other)).carriage;
            if matches!(carriage, Carriage::Vxlan | Carriage::Ipip) {
                let at = usize::from(is_ipv6);
                let packet = Packet {
                    carriage,
                    from: node.addresses[at].ip(),
                    to: peer.addresses[at].ip(),
                    is_fragment: false,
                    is_ipv6,
                };
                ensure!(
                    seen.get(&packet).is_some_and(|count| *count >= TRANSFER / 70_000),
                    "{}: too little of {packet:?} among {seen:#?}",
                    node.name
                );
            }
        }
    }
    for packet in seen.keys() {
        ensure!(!packet.is_fragment, "{}: a fragment: {packet:?}", node.name);
        ensure!(
            is_allowed(overlay, mode, packet)?,
            "{}: {packet:?} has no business on the wire in {mode:?}",
            node.name
        );
    }
    Ok(())
}

/// Whether a packet is what the mode says for the two nodes that it goes between.
fn is_allowed(overlay: &Overlay, mode: Mode, packet: &Packet) -> anyhow::Result<bool> {
    let mut places = Vec::new();
    for address in [packet.from, packet.to] {
        let mut place = None;
        for (number, node) in overlay.nodes.iter().enumerate() {
            let is_here = node.addresses.iter().any(|own| own.ip() == address)
                || addresses(&overlay.pods[number])?.contains(&address);
            place = if is_here { Some(number) } else { place };
        }
        places.push(place);
    }
    // Of pods without a way only the attempt is seen, on its way to the router: by their node's default route.
    Ok(match places.as_slice() {
        [Some(from), Some(to)] => {
            let allowed = overlay.way(mode, packet.is_ipv6, (*from, *to)).carriage;
            allowed == packet.carriage || (allowed == Carriage::Nothing && packet.carriage == Carriage::Plain)
        }
        _ => packet.carriage == Carriage::Plain,
    })
}
