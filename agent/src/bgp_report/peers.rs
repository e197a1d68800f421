//! Peers: one line each, or everything about one.

use std::fmt;

use calidris_bgp::family::AfiSafi;
use calidris_bgp::status::{
    ConnectionStatus, Counters, EndedBy, LastError, NegotiatedStatus, PeerStatus, SpeakerStatus,
};

use super::{age, or_dash, words, write_fact};
use crate::report::table::write_table;

/// All peers of a speaker, a line each.
#[derive(Debug)]
pub struct PeerTable<'a>(pub &'a SpeakerStatus);

impl fmt::Display for PeerTable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let speaker = self.0;
        let sync = if speaker.in_sync {
            "in sync"
        } else {
            "waiting for peers' routes"
        };
        writeln!(
            f,
            "AS {}, router ID {}, {} prefixes with {} distinct attribute sets, {sync}",
            speaker.local_as, speaker.router_id, speaker.prefixes, speaker.attribute_sets
        )?;
        let sum = |peer: &PeerStatus, count: fn(&calidris_bgp::status::FamilyStatus) -> usize| {
            peer.families.iter().map(count).sum::<usize>().to_string()
        };
        let peers = speaker.peers.iter().map(|peer| {
            vec![
                peer.name.clone(),
                place(peer),
                peer.remote_as.to_string(),
                peer.state.name().to_owned(),
                age(peer.since).to_string(),
                sum(peer, |family| family.received),
                sum(peer, |family| family.accepted),
                sum(peer, |family| family.announced),
                trouble(peer),
            ]
        });
        let columns = [
            "PEER",
            "ADDRESS",
            "AS",
            "STATE",
            "SINCE",
            "RECEIVED",
            "ACCEPTED",
            "ANNOUNCED",
            "LAST ERROR",
        ];
        write_table(f, &columns, peers.collect())
    }
}

/// Everything about one peer.
#[derive(Debug)]
pub struct PeerDetails<'a>(pub &'a PeerStatus);

impl fmt::Display for PeerDetails<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let peer = self.0;
        write_fact(f, "peer", &peer.name)?;
        write_fact(
            f,
            "address",
            format_args!("{}, AS {} ({})", place(peer), peer.remote_as, words(&peer.kind)),
        )?;
        write_fact(f, "we are", format_args!("AS {}", peer.local_as))?;
        write_fact(f, "connection", connection(&peer.connection))?;
        if let Some(range) = &peer.range {
            write_fact(f, "made by range", range)?;
        }
        if let Some(why) = &peer.held_down {
            write_fact(f, "HELD DOWN", why)?;
        }
        write_fact(
            f,
            "state",
            format_args!(
                "{} for {} (so far Established {} times)",
                peer.state.name(),
                age(peer.since),
                peer.established_count
            ),
        )?;
        write_fact(f, "import", &peer.import)?;
        write_fact(f, "export", &peer.export)?;
        let limits = [(peer.prefix_limit_in, "taken"), (peer.prefix_limit_out, "told")];
        let limits = limits
            .iter()
            .filter_map(|(limit, what)| Some(format!("{} {what}", (*limit)?)))
            .collect::<Vec<_>>();
        if !limits.is_empty() {
            write_fact(f, "prefix limits", limits.join(", "))?;
        }
        if let Some((ours, theirs)) = peer.transport {
            write_fact(f, "transport", format_args!("{ours} to {theirs}"))?;
        }
        if let Some(session) = &peer.negotiated {
            write_session(f, session)?;
        }
        let timers: Vec<String> = peer
            .timers
            .iter()
            .map(|(timer, left)| format!("{} in {:.1}s", words(timer), left.as_secs_f64()))
            .collect();
        if !timers.is_empty() {
            write_fact(f, "timers", timers.join(", "))?;
        }
        let count = &peer.counters;
        if count.treated_as_withdraw + count.attributes_discarded > 0 {
            write_fact(
                f,
                "MALFORMED",
                format_args!(
                    "{} UPDATEs treated as withdrawal, {} attributes discarded (RFC 7606)",
                    count.treated_as_withdraw, count.attributes_discarded
                ),
            )?;
        }
        if let Some(error) = &peer.last_error {
            write_last_error(f, error)?;
        }
        write_messages(f, &peer.counters)?;
        write_families(f, peer)
    }
}

/// How the connection is made, as far as that is not the default.
fn connection(status: &ConnectionStatus) -> String {
    let on = |set: bool, text: &str| set.then(|| text.to_owned());
    let facts = [
        on(status.passive, "passive"),
        on(status.md5, "TCP-MD5"),
        status.gtsm_min_ttl.map(|ttl| format!("GTSM from TTL {ttl}")),
        status.multihop.map(|hops| format!("multihop {hops}")),
        Some(format!("hold time {}s proposed", status.hold_time)),
    ];
    facts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

fn write_messages(f: &mut fmt::Formatter<'_>, count: &Counters) -> fmt::Result {
    let rows = [
        ("OPEN", count.opens_in, count.opens_out),
        ("UPDATE", count.updates_in, count.updates_out),
        ("KEEPALIVE", count.keepalives_in, count.keepalives_out),
        ("NOTIFICATION", count.notifications_in, count.notifications_out),
        (
            "ROUTE-REFRESH",
            count.route_refreshes_in,
            count.route_refreshes_out,
        ),
        ("all", count.messages_in, count.messages_out),
        ("bytes", count.bytes_in, count.bytes_out),
    ];
    let rows =
        rows.map(|(name, received, sent)| vec![name.to_owned(), received.to_string(), sent.to_string()]);
    writeln!(f)?;
    write_table(f, &["MESSAGES", "IN", "OUT"], rows.to_vec())?;
    writeln!(f)
}

/// Where a peer is: an address, with the interface if that names it.
fn place(peer: &PeerStatus) -> String {
    match &peer.interface {
        Some(interface) if peer.address.is_unspecified() => format!("behind {interface}"),
        Some(interface) => format!("{}%{interface}", peer.address),
        None => peer.address.to_string(),
    }
}

/// Why there is no session, or why the last one ended.
fn trouble(peer: &PeerStatus) -> String {
    let error = peer.last_error.as_ref().map(|error| &error.text);
    let why = peer.held_down.as_ref().or(error);
    why.map_or_else(|| "-".to_owned(), Clone::clone)
}

fn write_session(f: &mut fmt::Formatter<'_>, session: &NegotiatedStatus) -> fmt::Result {
    write_fact(f, "router ID", session.router_id)?;
    let hold = match session.hold_time {
        0 => "never expires".to_owned(),
        seconds => format!("{seconds}s, keepalive {}s", session.keepalive),
    };
    write_fact(f, "hold time", hold)?;
    let families = session.families.iter().map(ToString::to_string);
    let flags = [
        (session.four_octet_as, "4-octet AS"),
        (session.route_refresh, "route refresh"),
        (session.enhanced_route_refresh, "enhanced route refresh"),
        (session.extended_message, "extended messages"),
        (session.extended_next_hop, "IPv6 next hops of IPv4 routes"),
    ];
    let flags = flags
        .iter()
        .filter(|(both, _)| *both)
        .map(|(_, name)| (*name).to_owned());
    let several = |families: &[AfiSafi], what: &str| {
        let names: Vec<String> = families.iter().map(ToString::to_string).collect();
        (!names.is_empty()).then(|| format!("several paths of {} {what}", names.join(" and ")))
    };
    let add_path = [
        several(&session.add_path_receive, "received"),
        several(&session.add_path_send, "sent"),
    ];
    let restart = session
        .graceful_restart
        .map(|seconds| format!("graceful restart (the peer asks for {seconds}s)"));
    let survives = session
        .notification_survived
        .then(|| "kept through NOTIFICATIONs".to_owned());
    let long_lived = session.long_lived_seconds.as_ref().map(|times| {
        let times = times
            .iter()
            .map(|(family, seconds)| format!(" {family} {seconds}s"));
        format!("long-lived graceful restart{}", times.collect::<String>())
    });
    let restart = restart.into_iter().chain(survives).chain(long_lived);
    let all: Vec<String> = families
        .chain(flags)
        .chain(add_path.into_iter().flatten())
        .chain(restart)
        .collect();
    write_fact(f, "negotiated", all.join(", "))?;
    write_fact(f, "we can", session.capabilities_sent.join(", "))?;
    write_fact(f, "the peer can", session.capabilities_received.join(", "))
}

fn write_last_error(f: &mut fmt::Formatter<'_>, error: &LastError) -> fmt::Result {
    let by = match error.by {
        EndedBy::Us => "we ended it",
        EndedBy::Peer => "the peer ended it",
        EndedBy::Transport => "the transport failed",
    };
    let code = error.notification.map_or_else(String::new, |(code, subcode)| {
        format!(" (NOTIFICATION {code}/{subcode})")
    });
    write_fact(
        f,
        "last error",
        format_args!("{} ago, {by}: {}{code}", age(error.age), error.text),
    )
}

fn write_families(f: &mut fmt::Formatter<'_>, peer: &PeerStatus) -> fmt::Result {
    let yes = |done: bool| if done { "yes" } else { "no" }.to_owned();
    let families = peer.families.iter().map(|family| {
        vec![
            family.family.to_string(),
            family.received.to_string(),
            family.accepted.to_string(),
            format!("{}/{}", family.filtered, family.rejected),
            family.unreachable.to_string(),
            family.best.to_string(),
            family.stale.to_string(),
            format!("{}/{}", family.announcements_in, family.withdrawals_in),
            family.beyond_limit.to_string(),
            family.announced.to_string(),
            or_dash(family.withheld),
            or_dash(family.own_next_hop),
            format!("{}/{}", family.announcements_out, family.withdrawals_out),
            family.update_group_size.to_string(),
            yes(family.end_of_rib_received),
            yes(family.end_of_rib_sent),
        ]
    });
    let columns = [
        "FAMILY",
        "RECEIVED",
        "ACCEPTED",
        "FILTERED/REJECTED",
        "UNREACHABLE",
        "BEST",
        "STALE",
        "UPDATES/WITHDRAWS IN",
        "BEYOND LIMIT",
        "ANNOUNCED",
        "WITHHELD",
        "NEXT HOP",
        "UPDATES/WITHDRAWS OUT",
        "GROUP OF",
        "END-OF-RIB IN",
        "END-OF-RIB OUT",
    ];
    write_table(f, &columns, families.collect())
}
