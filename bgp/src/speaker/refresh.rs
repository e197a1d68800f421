//! Routes sent again on request, in both directions (RFC 2918), with begin and end marked where both sides can (RFC 7313).
//!
//! *We are asked*: Begin-of-Refresh, everything in the Adj-RIB-Out, End-of-Refresh. Not before our End-of-RIB went out (§4.1 forbids the marks
//! then): the routes alone are sent again.
//!
//! *The peer begins*: its routes become stale, stay in use, and those not sent again until its End-of-Refresh are removed, or when
//! the stale timer ends. Before its End-of-RIB, in a graceful restart, a beginning is ignored (§4.2).

use std::time::Duration;

use super::{Speaker, each_family};
use crate::family::Family;
use crate::family::{AfiSafi, Ipv4Unicast, Ipv6Unicast};
use crate::rib::{SourceId, Tables};
use crate::session::{Body, Negotiated, Timer};
use crate::time::Time;
use crate::wire::refresh::{RefreshSubtype, RouteRefresh};

/// How long a refresh of the peer may take, where graceful restart does not say.
const STALE_TIME: Duration = Duration::from_secs(360);

impl Speaker {
    /// Asks a peer to send all its routes of a family again (RFC 2918). `false` when there is no such session or it cannot.
    pub fn request_refresh(&mut self, peer: &str, family: AfiSafi) -> bool {
        let index = self.index_of(peer);
        let Some((index, entry)) = index.and_then(|index| Some((index, self.peers.get_mut(&index)?))) else {
            return false;
        };
        let able = |terms: &Negotiated| terms.route_refresh && terms.families.contains(&family);
        let Some(connection) = entry
            .peer
            .established_mut()
            .filter(|_| entry.session.as_ref().is_some_and(able))
        else {
            return false;
        };
        let mut message = Vec::new();
        RouteRefresh {
            family,
            subtype: RefreshSubtype::Request,
        }
        .encode(&mut message);
        connection.send_refresh(&message);
        self.agenda.touch(index);
        true
    }

    pub(super) fn handle_route_refresh(&mut self, index: u32, body: Body, now: Time) {
        let Some(entry) = self.peers.get_mut(&index) else {
            return;
        };
        let marks = entry
            .session
            .as_ref()
            .is_some_and(|terms| terms.enhanced_route_refresh);
        match RouteRefresh::decode(entry.peer.body(body)) {
            Ok(RouteRefresh { family, subtype }) => match subtype {
                RefreshSubtype::Request => self.answer_refresh(index, family),
                RefreshSubtype::BeginOfRefresh if marks => self.begin_refresh(index, family, now),
                RefreshSubtype::EndOfRefresh if marks => self.end_refresh(index, family),
                // RFC 2918 §4 and RFC 7313 §5: what was not negotiated, or is not known, is ignored.
                _ => {}
            },
            Err(error) => {
                if let Some(connection) = entry.peer.established_mut() {
                    connection.refuse(&error);
                }
            }
        }
    }

    fn answer_refresh(&mut self, index: u32, family: AfiSafi) {
        let Some(entry) = self.peers.get_mut(&index) else {
            return;
        };
        let marks = entry
            .session
            .as_ref()
            .is_some_and(|terms| terms.enhanced_route_refresh);
        let Some(progress) = entry.progress.get_mut(&family) else {
            return;
        };
        // Who asks again before the answer is complete gets one answer: questions cost a peer more than us.
        if marks && progress.end_of_rib_sent && !progress.answering {
            progress.answering = true;
            if let Some(connection) = entry.peer.established_mut() {
                connection.send_refresh(&mark(family, RefreshSubtype::BeginOfRefresh));
            }
        }
        each_family!(self, tables => tables.tell_again(index, family));
    }

    /// Says End-of-Refresh for the families of which everything was sent again.
    pub(super) fn finish_refreshes(&mut self, index: u32) {
        let Some(entry) = self.peers.get_mut(&index) else {
            return;
        };
        for (family, walking) in [
            (Ipv4Unicast::AFI_SAFI, self.ipv4.is_walking(index)),
            (Ipv6Unicast::AFI_SAFI, self.ipv6.is_walking(index)),
        ] {
            if let Some(progress) = entry.progress.get_mut(&family)
                && progress.answering
                && !walking
            {
                progress.answering = false;
                if let Some(connection) = entry.peer.established_mut() {
                    connection.send_refresh(&mark(family, RefreshSubtype::EndOfRefresh));
                }
            }
        }
    }

    fn begin_refresh(&mut self, index: u32, family: AfiSafi, now: Time) {
        let Some(entry) = self.peers.get_mut(&index) else {
            return;
        };
        let Some(progress) = entry
            .progress
            .get_mut(&family)
            .filter(|progress| progress.end_of_rib_received)
        else {
            return;
        };
        progress.refreshing = true;
        let restart = entry.peer.config().graceful_restart.as_ref();
        let stale_time = restart.map_or(STALE_TIME, |restart| restart.stale_time);
        entry.timers.set(Timer::Stale, now + stale_time);
        let source = SourceId::peer(index);
        each_family!(self, tables => tables.loc_rib.mark_for_refresh(family, source));
    }

    fn end_refresh(&mut self, index: u32, family: AfiSafi) {
        let Some(entry) = self.peers.get_mut(&index) else {
            return;
        };
        let Some(progress) = entry.progress.get_mut(&family) else {
            return;
        };
        if !std::mem::take(&mut progress.refreshing) {
            return;
        }
        if !entry.progress.values().any(|progress| progress.refreshing) && entry.is_synced() {
            entry.timers.stop(Timer::Stale);
        }
        let mut tables = Tables {
            attrs: &mut self.attrs,
            sources: &self.sources,
            decision: &self.config.decision,
        };
        let source = SourceId::peer(index);
        match family {
            AfiSafi::IPV4_UNICAST => self.ipv4.loc_rib.sweep_stale(source, &mut tables),
            AfiSafi::IPV6_UNICAST => self.ipv6.loc_rib.sweep_stale(source, &mut tables),
            _ => {}
        }
    }
}

fn mark(family: AfiSafi, subtype: RefreshSubtype) -> Vec<u8> {
    let mut message = Vec::new();
    RouteRefresh { family, subtype }.encode(&mut message);
    message
}
