//! Peers: one line each, or everything about one.

use std::fmt;

use calidris_bgp::family::AfiSafi;
use calidris_bgp::status::{EndedBy, LastError, NegotiatedStatus, PeerStatus, SpeakerStatus};

use super::{age, words, write_fact};
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
                peer.address.to_string(),
                peer.remote_as.to_string(),
                peer.state.name().to_owned(),
                age(peer.since).to_string(),
                sum(peer, |family| family.received),
                sum(peer, |family| family.accepted),
                sum(peer, |family| family.announced),
                peer.last_error
                    .as_ref()
                    .map_or_else(|| "-".to_owned(), |error| error.text.clone()),
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
            format_args!("{}, AS {} ({})", peer.address, peer.remote_as, words(&peer.kind)),
        )?;
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
        write_fact(
            f,
            "received",
            format_args!(
                "{} messages, {} of them UPDATE, {} bytes",
                count.messages_in, count.updates_in, count.bytes_in
            ),
        )?;
        write_fact(
            f,
            "sent",
            format_args!(
                "{} messages, {} of them UPDATE, {} bytes",
                count.messages_out, count.updates_out, count.bytes_out
            ),
        )?;
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
        write_families(f, peer)
    }
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
        (session.extended_message, "extended messages"),
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
    let all: Vec<String> = families
        .chain(flags)
        .chain(add_path.into_iter().flatten())
        .chain(restart)
        .collect();
    write_fact(f, "negotiated", all.join(", "))
}

fn write_last_error(f: &mut fmt::Formatter<'_>, error: &LastError) -> fmt::Result {
    let by = match error.by {
        EndedBy::Us => "we ended it",
        EndedBy::Peer => "the peer ended it",
        EndedBy::Transport => "the transport failed",
    };
    write_fact(
        f,
        "last error",
        format_args!("{} ago, {by}: {}", age(error.age), error.text),
    )
}

fn write_families(f: &mut fmt::Formatter<'_>, peer: &PeerStatus) -> fmt::Result {
    let yes = |done: bool| if done { "yes" } else { "no" }.to_owned();
    let families = peer.families.iter().map(|family| {
        vec![
            family.family.to_string(),
            family.received.to_string(),
            family.accepted.to_string(),
            family.stale.to_string(),
            family.announced.to_string(),
            yes(family.end_of_rib_received),
            yes(family.end_of_rib_sent),
        ]
    });
    let columns = [
        "FAMILY",
        "RECEIVED",
        "ACCEPTED",
        "STALE",
        "ANNOUNCED",
        "END-OF-RIB IN",
        "END-OF-RIB OUT",
    ];
    write_table(f, &columns, families.collect())
}
