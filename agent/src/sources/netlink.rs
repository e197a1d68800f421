//! The kernel's notifications (rtnetlink(7)): links, addresses, neighbours, rules and nexthop objects of ours, and routes: ours, and those of
//! others that BGP's next hops may lie behind.
//!
//! They only say *that* something changed; the dataplane reads back what. Of links with our prefix, which come and go all the
//! time, and of neighbours on them they say what. When notifications were lost, everything is read back. Notifications of our own writes carry the
//! port of the socket that wrote and are passed over.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::Duration;

use netlink_packet_core::{NLM_F_REPLACE, NetlinkBuffer, NlasIterator};
use netlink_sys::protocols::NETLINK_ROUTE;
use tokio::sync::{mpsc, watch};
use tracing::debug;

use crate::desired::{MAIN_TABLE, NeighborKey, ROUTE_PRIORITY, RoutePath};
use crate::inbox::Message;
use crate::kernel::{
    KernelChange, KernelNews, LinkNews, ObservedNeighbor, message, neighbors, nexthop, rule,
};
use crate::ours::{LINK_PREFIX, NEXTHOP_IDS, ROUTE_PROTOCOLS, TUNNELS};
use crate::sources::notifications::{Heard, Notifications};
use crate::sources::{interface_name, underlay};

/// `RTMGRP_LINK`, `RTMGRP_NEIGH`, `RTMGRP_IPV4_IFADDR`, `RTMGRP_IPV4_ROUTE`, `RTMGRP_IPV4_RULE`, `RTMGRP_IPV6_IFADDR`,
/// `RTMGRP_IPV6_ROUTE`, `RTNLGRP_IPV6_RULE` (number 19),
/// `RTNLGRP_IPV4_NETCONF` and `RTNLGRP_IPV6_NETCONF` (numbers 24 and 25), and `RTNLGRP_NEXTHOP` (number 32, which a kernel
/// without it passes over) of the kernel's `linux/rtnetlink.h`.
const GROUPS: u32 = 0x1 | 0x4 | 0x10 | 0x40 | 0x80 | 0x100 | 0x400 | 1 << 18 | 1 << 23 | 1 << 24 | 1 << 31;
/// Room for notifications not read yet, in bytes. The kernel doubles it.
const RECEIVE_BUFFER: usize = 4 << 20;
/// How long notifications are gathered after the first one.
const GATHERING: Duration = Duration::from_millis(20);

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_NEWNEIGH: u16 = 28;
const RTM_DELNEIGH: u16 = 29;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_NEWRULE: u16 = 32;
const RTM_DELRULE: u16 = 33;
const RTM_NEWNEXTHOP: u16 = 104;
const RTM_DELNEXTHOP: u16 = 105;
const RTM_NEWNETCONF: u16 = 80;
const AF_INET: u8 = 2;
/// linux/netconf.h
const NETCONFA_IFINDEX: u16 = 1;
const NETCONFA_IFINDEX_ALL: i32 = -1;
const NETCONF_HEADER_BYTES: usize = 4;
/// Offset of `rtm_protocol` in `struct rtmsg`.
const RTM_PROTOCOL: usize = 5;

/// A socket that hears the notifications of the process's network namespace.
pub struct Monitor {
    notifications: Notifications,
}

/// What is ours, as far as messages are told apart by it.
#[derive(Debug, Clone, Copy)]
pub struct Own {
    /// The netlink port whose writes need not be told; 0: there is none.
    pub port: u32,
    /// The table that has routes of ours besides the main one.
    pub remote_route_table: u32,
}

/// What changed, in a burst.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Changes {
    links: bool,
    /// The last that was said of each link with our prefix.
    workload_links: BTreeMap<String, LinkNews>,
    /// Links that were last said to be down.
    down: BTreeMap<String, u32>,
    /// Links that were said to be down and then up.
    bounced: BTreeSet<String>,
    sysctls: bool,
    /// Indexes of links with our prefix, also of those that are gone.
    indexes_of_workloads: BTreeSet<u32>,
    /// Indexes of links that got or lost an address.
    addresses: BTreeSet<u32>,
    neighbors: bool,
    /// The last that was said of each neighbour on a link with our prefix.
    workload_neighbors: BTreeMap<NeighborKey, Option<ObservedNeighbor>>,
    /// Routes of ours, or nexthop objects that they may refer to.
    routes: bool,
    foreign_routes: bool,
    rules: bool,
    lost: bool,
}

impl Monitor {
    /// Opens the socket: from now on nothing is missed. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn open() -> io::Result<Self> {
        let notifications = Notifications::open(NETLINK_ROUTE, GROUPS, RECEIVE_BUFFER)?;
        Ok(Self { notifications })
    }

    /// Tells the node until its thread is gone. Changes of routes and addresses of others are counted in `foreign_changes`.
    ///
    /// # Errors
    /// When the socket fails for good.
    pub async fn run(
        mut self,
        own: Own,
        inbox: mpsc::Sender<Message>,
        foreign_changes: watch::Sender<u64>,
    ) -> io::Result<()> {
        loop {
            let mut changes = Changes::default();
            let take = |datagram: &[u8]| changes.read(datagram, own);
            let heard = self.notifications.burst(GATHERING, take).await?;
            changes.lost = heard == Heard::Part;
            if changes.foreign_routes || changes.concern_addresses_of_the_node() || changes.lost {
                foreign_changes.send_modify(|count| *count = count.wrapping_add(1));
            }
            for news in changes.into_news() {
                debug!(?news, "the kernel changed");
                if inbox.send(Message::Kernel(news)).await.is_err() {
                    return Ok(());
                }
            }
        }
    }
}

impl Own {
    fn has_routes_in(self, table: u32) -> bool {
        table == MAIN_TABLE || table == self.remote_route_table
    }
}

impl Changes {
    fn read(&mut self, datagram: &[u8], own: Own) {
        let mut rest = datagram;
        while let Ok(message) = NetlinkBuffer::new_checked(rest) {
            let is_own = message.port_number() == own.port && own.port != 0;
            match message.message_type() {
                kind @ (RTM_NEWLINK | RTM_DELLINK) if !is_own => self.take_link(kind, message.payload()),
                kind @ (RTM_NEWADDR | RTM_DELADDR) if !is_own => {
                    self.addresses.extend(index_of(message.payload()));
                    // With its last address of IPv4 a link loses its routes, without a word.
                    self.routes |= kind == RTM_DELADDR && message.payload().first() == Some(&AF_INET);
                }
                kind @ (RTM_NEWNEIGH | RTM_DELNEIGH) if !is_own => {
                    self.take_neighbor(kind, message.payload());
                }
                kind @ (RTM_NEWROUTE | RTM_DELROUTE) if !is_own => {
                    let protocol = message.payload().get(RTM_PROTOCOL).copied().unwrap_or_default();
                    if ROUTE_PROTOCOLS.contains(&protocol) {
                        self.routes = true;
                    } else {
                        self.read_foreign_route((kind, message.flags()), message.payload(), own);
                    }
                }
                RTM_NEWRULE | RTM_DELRULE if !is_own => {
                    self.rules |= matches!(rule::parse(message.payload()), Ok(Some(_)));
                }
                RTM_NEWNEXTHOP | RTM_DELNEXTHOP if !is_own => {
                    self.routes |= nexthop::parse(message.payload(), &mut |_| String::new())
                        .is_ok_and(|found| NEXTHOP_IDS.contains(&found.id));
                }
                RTM_NEWNETCONF if !is_own => self.sysctls |= is_of_all_interfaces(message.payload()),
                _ => {}
            }
            // Messages are aligned to four bytes. A length of nothing would go round for ever.
            let length = usize::try_from(message.length()).unwrap_or(usize::MAX).max(1);
            rest = length
                .checked_next_multiple_of(4)
                .and_then(|next| rest.get(next..))
                .unwrap_or_default();
        }
    }

    fn read_foreign_route(&mut self, (kind, flags): (u16, u16), payload: &[u8], own: Own) {
        let Ok(Some(route)) = message::parse_route(payload, &mut |_| String::new()) else {
            return;
        };
        self.foreign_routes |= underlay::concerns(&route.key, route.protocol);
        // It may have taken the place of one of ours: the kernel does not say that the replaced one is gone. Or it was as good as one of
        // ours, which is needed now.
        let may_have_replaced = flags & NLM_F_REPLACE != 0;
        let may_have_stood_in = kind == RTM_DELROUTE
            && route.key.priority == ROUTE_PRIORITY
            && !matches!(route.path, Some(RoutePath::Via { .. }));
        self.routes |= (may_have_replaced || may_have_stood_in) && own.has_routes_in(route.key.table);
    }

    /// Of neighbours on tunnels it says that there was something, of those of workloads what; of the many others nothing.
    fn take_neighbor(&mut self, kind: u16, payload: &[u8]) {
        let Ok(Some(seen)) = neighbors::parse(payload) else {
            return;
        };
        match interface_name(seen.index) {
            Some(name) if TUNNELS.contains(&name.as_str()) => self.neighbors = true,
            Some(interface) if interface.starts_with(LINK_PREFIX) => {
                let key = NeighborKey {
                    interface,
                    subject: seen.subject,
                };
                let found = seen.found.filter(|_| kind == RTM_NEWNEIGH);
                self.workload_neighbors.insert(key, found);
            }
            _ => {}
        }
    }

    fn take_link(&mut self, kind: u16, payload: &[u8]) {
        // Of another family a message speaks of the link's place in a bridge.
        let is_of_link = payload.first() == Some(&0);
        let parsed = message::parse_link(payload);
        if let (Ok((name, link)), true) = (&parsed, is_of_link && kind == RTM_NEWLINK) {
            if went_down(payload) {
                self.down.insert(name.clone(), link.index);
            } else if link.up && self.down.remove(name) == Some(link.index) {
                self.bounced.insert(name.clone());
            }
        }
        match parsed {
            Ok((name, link)) if is_of_link && name.starts_with(LINK_PREFIX) => {
                self.indexes_of_workloads.insert(link.index);
                let news = if kind == RTM_DELLINK {
                    LinkNews::Gone(link.index)
                } else {
                    LinkNews::Seen(link)
                };
                self.workload_links.insert(name, news);
            }
            _ => self.links = true,
        }
    }

    /// Whether an address is not a workload's. One of a link that is gone, and was not told of in this burst, counts.
    fn concern_addresses_of_the_node(&self) -> bool {
        let mut others = self.addresses.difference(&self.indexes_of_workloads);
        others.any(|index| interface_name(*index).is_none_or(|name| !name.starts_with(LINK_PREFIX)))
    }

    fn into_news(self) -> Vec<KernelNews> {
        if self.lost {
            return vec![KernelNews::Changed(KernelChange::Everything)];
        }
        let kinds = [
            (self.links, KernelChange::Links),
            (self.sysctls, KernelChange::Sysctls),
            (self.concern_addresses_of_the_node(), KernelChange::Addresses),
            (self.neighbors, KernelChange::Neighbors),
            (self.routes, KernelChange::Routes),
            (self.rules, KernelChange::Rules),
        ];
        let of_kinds = kinds
            .into_iter()
            .filter(|(is_changed, _)| *is_changed)
            .map(|(_, change)| KernelNews::Changed(change));
        // Where all links are read back anyway, nothing need be said of some.
        let of_links = (!self.links && !self.workload_links.is_empty())
            .then_some(KernelNews::WorkloadLinks(self.workload_links));
        let of_neighbors = (!self.workload_neighbors.is_empty())
            .then_some(KernelNews::WorkloadNeighbors(self.workload_neighbors));
        let of_bounced = (!self.bounced.is_empty()).then_some(KernelNews::Bounced(self.bounced));
        let all = of_links
            .into_iter()
            .chain(of_bounced)
            .chain(of_kinds)
            .chain(of_neighbors);
        all.collect()
    }
}

/// Whether the link of a message (`struct ifinfomsg`) was set down, which `ifi_change` says; of a new link everything has changed.
fn went_down(payload: &[u8]) -> bool {
    const IFF_UP: u32 = 1;
    let field = |at: usize| {
        let bytes = payload.get(at..at + 4)?.try_into().ok()?;
        Some(u32::from_ne_bytes(bytes))
    };
    let (Some(flags), Some(change)) = (field(8), field(12)) else {
        return false;
    };
    flags & IFF_UP == 0 && change & IFF_UP != 0 && change != u32::MAX
}

/// Whether the message (`struct netconfmsg`) is about a parameter of all interfaces. Those of one are the doing of whoever made it,
/// mostly of our own.
fn is_of_all_interfaces(payload: &[u8]) -> bool {
    let attributes = NlasIterator::new(payload.get(NETCONF_HEADER_BYTES..).unwrap_or_default());
    attributes.map_while(Result::ok).any(|attribute| {
        attribute.kind() == NETCONFA_IFINDEX && attribute.value() == NETCONFA_IFINDEX_ALL.to_ne_bytes()
    })
}

/// The index of the link at offset 4 of `struct ifaddrmsg`.
fn index_of(payload: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(payload.get(4..8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ours::{ROUTE_PROTOCOL_BGP, ROUTE_PROTOCOL_LOCAL};

    const OWN: Own = Own {
        port: 77,
        remote_route_table: 100,
    };

    /// A message of `kind` from `port`: header, `struct rtmsg` with `protocol`.
    fn message(kind: u16, port: u32, protocol: u8) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(28_u32.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 2]);
        bytes.extend([0; 4]);
        bytes.extend(port.to_ne_bytes());
        bytes.extend([2, 32, 0, 0, 254, protocol, 0, 1, 0, 0, 0, 0]);
        bytes
    }

    /// Of a nexthop object: header, `struct nhmsg`, NHA_ID.
    fn nexthop_message(id: u32, port: u32) -> Vec<u8> {
        let mut bytes = message(RTM_DELNEXTHOP, port, 0);
        bytes.splice(16.., [0; 8]);
        bytes.extend([8, 0, 1, 0]);
        bytes.extend(id.to_ne_bytes());
        bytes[..4].copy_from_slice(&32_u32.to_ne_bytes());
        bytes
    }

    fn of_routes() -> Changes {
        Changes {
            routes: true,
            ..Changes::default()
        }
    }

    /// A message about an address of the link with this index: header, `struct ifaddrmsg`.
    fn address_message(kind: u16, index: u32) -> Vec<u8> {
        let mut bytes = message(kind, 0, 0);
        bytes.truncate(16);
        bytes[0] = 24;
        bytes.extend([10, 64, 0, 0]);
        bytes.extend(index.to_ne_bytes());
        bytes
    }

    fn changes(messages: &[Vec<u8>]) -> Changes {
        let mut changes = Changes::default();
        changes.read(&messages.concat(), OWN);
        changes
    }

    #[test]
    fn only_what_may_be_ours_and_is_not_our_doing_counts() {
        let ours = ROUTE_PROTOCOL_LOCAL;
        let rows = [
            (
                vec![message(RTM_NEWLINK, 0, 0)],
                Changes {
                    links: true,
                    ..Changes::default()
                },
            ),
            (vec![message(RTM_DELROUTE, 0, ours)], of_routes()),
            (vec![message(RTM_DELROUTE, 5, ROUTE_PROTOCOL_BGP)], of_routes()),
            (vec![message(RTM_NEWROUTE, 77, ours)], Changes::default()),
            (
                vec![message(RTM_NEWROUTE, 5, 4)],
                Changes {
                    foreign_routes: true,
                    ..Changes::default()
                },
            ),
            (vec![nexthop_message(*NEXTHOP_IDS.start(), 0)], of_routes()),
            (
                vec![nexthop_message(*NEXTHOP_IDS.start(), 77)],
                Changes::default(),
            ),
            (vec![nexthop_message(7, 0)], Changes::default()),
            (vec![message(72, 0, 0)], Changes::default()),
            (
                vec![address_message(RTM_DELADDR, 9)],
                Changes {
                    addresses: BTreeSet::from([9]),
                    ..Changes::default()
                },
            ),
            (
                vec![
                    message(RTM_NEWROUTE, 5, 4),
                    message(RTM_DELLINK, 0, 0),
                    message(RTM_DELROUTE, 0, ours),
                ],
                Changes {
                    links: true,
                    routes: true,
                    foreign_routes: true,
                    ..Changes::default()
                },
            ),
        ];
        for (messages, expected) in rows {
            assert_eq!(changes(&messages), expected, "{messages:?}");
        }
    }

    /// A message of `kind` about the link `name`: header, `struct ifinfomsg`, IFLA_IFNAME.
    fn link_message(kind: u16, family: u8, index: u32, name: &[u8; 8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(44_u32.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.extend([family, 0, 1, 0]);
        bytes.extend(index.to_ne_bytes());
        bytes.extend(1_u32.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(12_u16.to_ne_bytes());
        bytes.extend(3_u16.to_ne_bytes());
        bytes.extend(name);
        bytes
    }

    #[test]
    fn of_links_with_our_prefix_the_last_that_was_said_counts() {
        let heard = changes(&[
            link_message(RTM_NEWLINK, 0, 5, b"cali1\0\0\0"),
            link_message(RTM_DELLINK, 0, 5, b"cali1\0\0\0"),
            link_message(RTM_NEWLINK, 0, 6, b"cali2\0\0\0"),
        ]);
        let inputs = heard.into_news();
        let [KernelNews::WorkloadLinks(news)] = inputs.as_slice() else {
            panic!("{inputs:?}");
        };
        assert_eq!(news["cali1"], LinkNews::Gone(5));
        assert!(matches!(&news["cali2"], LinkNews::Seen(link) if link.index == 6 && link.up));
        // An uplink, or a bridge's port: all links are read back, and nothing is said of one.
        for other in [
            link_message(RTM_NEWLINK, 0, 7, b"eth0\0\0\0\0"),
            link_message(RTM_DELLINK, 7, 6, b"cali2\0\0\0"),
        ] {
            let heard = changes(&[link_message(RTM_NEWLINK, 0, 6, b"cali2\0\0\0"), other]);
            assert_eq!(heard.into_news(), [KernelNews::Changed(KernelChange::Links)]);
        }
    }

    #[test]
    fn an_address_that_a_pods_link_takes_with_it_is_not_the_nodes() {
        const NONE_HAS_IT: u32 = 0x7fff_fff0;
        let address_goes = address_message(RTM_DELADDR, NONE_HAS_IT);
        let link_goes = |name| link_message(RTM_DELLINK, 0, NONE_HAS_IT, name);
        let addresses = [KernelNews::Changed(KernelChange::Addresses)];
        assert_eq!(
            changes(std::slice::from_ref(&address_goes)).into_news(),
            addresses
        );
        let heard = changes(&[address_goes.clone(), link_goes(b"cali1\0\0\0")]);
        assert!(!heard.concern_addresses_of_the_node());
        // Also when the name is another link's before the burst is over.
        let again = link_message(RTM_NEWLINK, 0, 6, b"cali1\0\0\0");
        let heard = changes(&[address_goes.clone(), link_goes(b"cali1\0\0\0"), again]);
        assert!(!heard.concern_addresses_of_the_node());
        assert!(changes(&[address_goes, link_goes(b"eth0\0\0\0\0")]).concern_addresses_of_the_node());
    }

    #[test]
    fn the_routes_of_a_link_may_go_with_an_address_of_ipv4() {
        let address = |kind: u16, family: u8| {
            let mut bytes = address_message(kind, 9);
            bytes[16] = family;
            bytes
        };
        assert!(changes(&[address(RTM_DELADDR, AF_INET)]).routes);
        assert!(!changes(&[address(RTM_NEWADDR, AF_INET)]).routes);
        assert!(!changes(&[address(RTM_DELADDR, 10)]).routes);
    }

    #[test]
    fn a_link_that_was_down_for_a_moment_is_named() {
        let of_link = |flags: u32, change: u32, index: u32| {
            let mut bytes = link_message(RTM_NEWLINK, 0, index, b"eth0\0\0\0\0");
            bytes[24..28].copy_from_slice(&flags.to_ne_bytes());
            bytes[28..32].copy_from_slice(&change.to_ne_bytes());
            bytes
        };
        let bounced = |messages: &[Vec<u8>]| changes(messages).bounced.into_iter().collect::<Vec<_>>();
        assert_eq!(bounced(&[of_link(0, 1, 5), of_link(1, 1, 5)]), ["eth0"]);
        assert_eq!(
            bounced(&[of_link(0, u32::MAX, 5), of_link(1, 1, 5)]),
            [""; 0],
            "it is new"
        );
        assert_eq!(bounced(&[of_link(0, 1, 5)]), [""; 0], "it is down");
        assert_eq!(
            bounced(&[of_link(0, 1, 5), of_link(1, 1, 6)]),
            [""; 0],
            "another one"
        );
    }

    #[test]
    fn a_parameter_of_all_interfaces_is_told() {
        let of_interface = |index: i32| {
            let mut bytes = Vec::new();
            bytes.extend(28_u32.to_ne_bytes());
            bytes.extend(RTM_NEWNETCONF.to_ne_bytes());
            bytes.extend([0; 10]);
            bytes.extend([2, 0, 0, 0]);
            bytes.extend(8_u16.to_ne_bytes());
            bytes.extend(NETCONFA_IFINDEX.to_ne_bytes());
            bytes.extend(index.to_ne_bytes());
            bytes
        };
        assert!(changes(&[of_interface(-1)]).sysctls);
        assert!(!changes(&[of_interface(3)]).sysctls);
    }

    #[test]
    fn a_foreign_route_that_takes_the_place_of_one_of_ours_counts() {
        let replacing = |table: u8, flags: u16| {
            let mut bytes = message(RTM_NEWROUTE, 5, 4);
            bytes[20] = table;
            bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
            bytes
        };
        assert!(changes(&[replacing(254, NLM_F_REPLACE)]).routes);
        assert!(changes(&[replacing(100, NLM_F_REPLACE)]).routes);
        assert!(!changes(&[replacing(255, NLM_F_REPLACE)]).routes);
        assert!(!changes(&[replacing(254, 0)]).routes);
    }

    #[test]
    fn a_foreign_route_that_goes_may_have_stood_in_for_one_of_ours() {
        // To a link, with this metric.
        let going = |kind: u16, table: u8, metric: u32| {
            let mut bytes = message(kind, 5, 3);
            bytes[20] = table;
            for (attribute, value) in [(6_u16, metric), (4, 7)] {
                bytes.extend(8_u16.to_ne_bytes());
                bytes.extend(attribute.to_ne_bytes());
                bytes.extend(value.to_ne_bytes());
            }
            bytes[..4].copy_from_slice(&44_u32.to_ne_bytes());
            bytes
        };
        assert!(changes(&[going(RTM_DELROUTE, 254, 1024)]).routes);
        assert!(changes(&[going(RTM_DELROUTE, 100, 1024)]).routes);
        for other in [
            going(RTM_NEWROUTE, 254, 1024),
            going(RTM_DELROUTE, 254, 256),
            going(RTM_DELROUTE, 255, 1024),
        ] {
            assert!(!changes(&[other]).routes);
        }
    }

    #[test]
    fn a_rule_of_ours_is_told() {
        // Header, `struct fib_rule_hdr`, FRA_PROTOCOL.
        let rule = |kind: u16, port: u32, protocol: u8| {
            let mut bytes = message(kind, port, 0);
            bytes.splice(16.., [2, 0, 0, 0, 254, 0, 0, 1, 0, 0, 0, 0]);
            bytes.extend([5, 0, 21, 0, protocol, 0, 0, 0]);
            bytes[..4].copy_from_slice(&36_u32.to_ne_bytes());
            bytes
        };
        let ours = ROUTE_PROTOCOL_LOCAL;
        assert!(changes(&[rule(RTM_DELRULE, 0, ours)]).rules);
        assert!(changes(&[rule(RTM_NEWRULE, 5, ours)]).rules);
        assert!(!changes(&[rule(RTM_DELRULE, 77, ours)]).rules);
        assert!(!changes(&[rule(RTM_DELRULE, 0, 4)]).rules);
    }

    #[test]
    fn garbage_is_passed_over() {
        for garbage in [
            vec![],
            vec![0; 16],
            vec![0xff; 64],
            message(RTM_NEWROUTE, 0, ROUTE_PROTOCOL_LOCAL)[..20].to_vec(),
        ] {
            assert_eq!(changes(&[garbage]), Changes::default());
        }
    }

    #[test]
    fn lost_notifications_mean_everything() {
        let lost = Changes {
            links: true,
            routes: true,
            lost: true,
            ..Changes::default()
        };
        assert_eq!(lost.into_news(), [KernelNews::Changed(KernelChange::Everything)]);
        assert_eq!(Changes::default().into_news(), []);
    }
}
