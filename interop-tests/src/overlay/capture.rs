//! What goes over a node's uplink, as tcpdump writes it (pcap, link type Ethernet), sorted by what carries pods' packets.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use ipnetwork::IpNetwork;

use super::{Carriage, POOLS};
use crate::eventually::eventually;
use crate::lab::Lab;
use crate::netns::Namespace;
use crate::process::Process;

const VXLAN_PORT: u16 = 4789;
const READY_WITHIN: Duration = Duration::from_secs(20);
/// Where the last datagram of a capture goes.
const LAST_PORT: u16 = 4242;
const IP_IN_IP: u8 = 4;
const UDP: u8 = 17;

/// A running capture.
#[derive(Debug)]
pub(super) struct Capture {
    process: Process,
    file: PathBuf,
    namespace: Namespace,
}

/// How often packets of one kind were seen, of all that have to do with pods.
pub(super) type Seen = BTreeMap<Packet, usize>;

/// What a packet was.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Packet {
    /// What carried it.
    pub(super) carriage: Carriage,
    /// Its source on the wire.
    pub(super) from: IpAddr,
    /// Its destination on the wire.
    pub(super) to: IpAddr,
    /// Whether it is a part of a larger one.
    pub(super) is_fragment: bool,
    /// Whether the packet that is carried is of IPv6.
    pub(super) is_ipv6: bool,
}

impl Capture {
    /// Starts to capture; returns when tcpdump has begun.
    pub(super) fn start(
        lab: &Lab,
        member: &str,
        namespace: &Namespace,
        interface: &str,
    ) -> anyhow::Result<Self> {
        let file = lab.folder(member)?.join("uplink.pcap");
        let mut command = Command::new("tcpdump");
        // -Z root: it would give up its rights, and could then not write to the lab's folder.
        command
            .args(["-n", "-U", "-s", "128", "-Z", "root", "-i", interface, "-w"])
            .arg(&file)
            .args(["ip", "or", "ip6"]);
        let mut process = lab.start(member, "tcpdump", namespace, &mut command)?;
        eventually(
            &format!("tcpdump listens on {interface} of {member}"),
            READY_WITHIN,
            || {
                process.check_alive()?;
                let said = std::fs::read_to_string(process.log())?;
                ensure!(said.contains("listening on"), "{said:?}");
                Ok(())
            },
        )?;
        Ok(Self {
            process,
            file,
            namespace: namespace.clone(),
        })
    }

    /// Stops when everything up to now is in the file, and says what was seen. `beyond` is an address behind the uplink, for
    /// a datagram that goes after everything else.
    pub(super) fn stop(self, beyond: IpAddr) -> anyhow::Result<Seen> {
        let socket = self.namespace.enter(|| UdpSocket::bind("0.0.0.0:0"))??;
        eventually("tcpdump has written everything", READY_WITHIN, || {
            socket.send_to(&[], (beyond, LAST_PORT))?;
            let bytes = std::fs::read(&self.file).with_context(|| format!("read {}", self.file.display()))?;
            let is_last = |packet: &[u8]| {
                Header::read(packet).is_some_and(|header| {
                    header.protocol == UDP && port_of(header.payload) == Some(LAST_PORT)
                })
            };
            ensure!(
                packets(&bytes)?.into_iter().any(is_last),
                "{} octets",
                bytes.len()
            );
            Ok(())
        })?;
        self.process.terminate()?;
        let bytes = std::fs::read(&self.file)?;
        std::fs::remove_file(&self.file)?;
        let mut seen = Seen::new();
        for packet in packets(&bytes)?.into_iter().filter_map(parse) {
            *seen.entry(packet).or_default() += 1;
        }
        Ok(seen)
    }
}

/// The packets of a pcap file of this machine's byte order, as far as it is written.
fn packets(bytes: &[u8]) -> anyhow::Result<Vec<&[u8]>> {
    ensure!(
        bytes.get(..4) == Some(&0xa1b2_c3d4_u32.to_ne_bytes()),
        "no pcap file of this machine: {:?}",
        bytes.get(..4)
    );
    let mut rest = bytes.get(24..).unwrap_or_default();
    let mut packets = Vec::new();
    while let Some(header) = rest.first_chunk::<16>() {
        // Time, then the octets that are there, then those that there were.
        let [.., c0, c1, c2, c3, _, _, _, _] = *header;
        let end = usize::try_from(u32::from_ne_bytes([c0, c1, c2, c3]))?.saturating_add(16);
        let Some(frame) = rest.get(16..end) else {
            break;
        };
        packets.push(frame.get(14..).unwrap_or_default());
        rest = rest.get(end..).unwrap_or_default();
    }
    Ok(packets)
}

/// What an IP packet is; `None` if it has nothing to do with pods.
fn parse(packet: &[u8]) -> Option<Packet> {
    let outer = Header::read(packet)?;
    let packet = |carriage, is_ipv6| Packet {
        carriage,
        from: outer.from,
        to: outer.to,
        is_fragment: outer.is_fragment,
        is_ipv6,
    };
    let payload = outer.payload;
    match outer.protocol {
        IP_IN_IP => Some(packet(Carriage::Ipip, false)),
        UDP if port_of(payload) == Some(VXLAN_PORT) => {
            // UDP, VXLAN and Ethernet headers; the last two bytes are the type of what is inside.
            let kind = payload.get(28..30)?;
            Some(packet(Carriage::Vxlan, kind == [0x86, 0xdd]))
        }
        _ if is_pods(outer.from) || is_pods(outer.to) => Some(packet(Carriage::Plain, outer.from.is_ipv6())),
        _ => None,
    }
}

/// What is read of an IP header.
struct Header<'a> {
    from: IpAddr,
    to: IpAddr,
    protocol: u8,
    is_fragment: bool,
    payload: &'a [u8],
}

impl<'a> Header<'a> {
    fn read(packet: &'a [u8]) -> Option<Self> {
        match packet.first()? >> 4 {
            4 => {
                let header: &[u8; 20] = packet.first_chunk()?;
                let address = |at: usize| -> Option<IpAddr> {
                    Some(IpAddr::V4(Ipv4Addr::from(*header.get(at..)?.first_chunk::<4>()?)))
                };
                Some(Self {
                    from: address(12)?,
                    to: address(16)?,
                    protocol: header[9],
                    // "More fragments", or an offset.
                    is_fragment: u16::from_be_bytes([header[6], header[7]]) & 0x3fff != 0,
                    payload: packet.get(usize::from(header[0] & 0xf) * 4..)?,
                })
            }
            6 => {
                let header: &[u8; 40] = packet.first_chunk()?;
                let address = |at: usize| -> Option<IpAddr> {
                    Some(IpAddr::V6(Ipv6Addr::from(
                        *header.get(at..)?.first_chunk::<16>()?,
                    )))
                };
                Some(Self {
                    from: address(8)?,
                    to: address(24)?,
                    protocol: header[6],
                    is_fragment: header[6] == 44,
                    payload: packet.get(40..)?,
                })
            }
            _ => None,
        }
    }
}

fn port_of(udp: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(*udp.get(2..)?.first_chunk()?))
}

fn is_pods(address: IpAddr) -> bool {
    POOLS
        .iter()
        .filter_map(|pool| pool.parse::<IpNetwork>().ok())
        .any(|pool| pool.contains(address))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(protocol: u8, to: [u8; 4], payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, protocol, 0, 0, 192, 0, 2, 11];
        packet.extend(to);
        packet.extend(payload);
        packet
    }

    #[test]
    fn packets_are_told_apart() {
        let carriage = |packet: &[u8]| parse(packet).map(|packet| packet.carriage);
        let to_node = [198, 51, 100, 13];
        assert_eq!(carriage(&v4(6, to_node, &[0; 20])), None);
        assert_eq!(carriage(&v4(6, [10, 244, 1, 2], &[0; 20])), Some(Carriage::Plain));
        assert_eq!(
            carriage(&v4(4, to_node, &v4(6, [10, 244, 1, 2], &[]))),
            Some(Carriage::Ipip)
        );
        let mut vxlan = vec![0; 30];
        vxlan[2..4].copy_from_slice(&4789_u16.to_be_bytes());
        assert_eq!(carriage(&v4(17, to_node, &vxlan)), Some(Carriage::Vxlan));
        let mut fragment = v4(4, to_node, &[0; 20]);
        fragment[6] = 0x20;
        assert!(parse(&fragment).unwrap().is_fragment);
        assert!(!parse(&v4(4, to_node, &[0; 20])).unwrap().is_fragment);
    }
}
