//! Limits on how many prefixes a peer may announce: telling the operator, ending the session (RFC 4486 §4).
//!
//! What is beyond the limit and to be discarded is never stored; see [`super::import`].

use super::{LogEvent, Speaker};
use crate::config::{BeyondLimit, Level};
use crate::family::{AfiSafi, Family, Ipv4Unicast, Ipv6Unicast};
use crate::rib::SourceId;
use crate::time::Time;
use crate::wire::notification::{CeaseError, Notification, NotificationCode};

impl Speaker {
    /// Compares what a peer has announced with its limit; `discarded` prefixes were just not stored.
    pub(super) fn check_prefix_limit(&mut self, index: u32, discarded: &[(AfiSafi, u64)], now: Time) {
        let source = SourceId::peer(index);
        for (family, held) in [
            (Ipv4Unicast::AFI_SAFI, self.ipv4.loc_rib.held(source)),
            (Ipv6Unicast::AFI_SAFI, self.ipv6.loc_rib.held(source)),
        ] {
            let just_now = discarded
                .iter()
                .filter(|(of, _)| *of == family)
                .map(|(_, count)| count)
                .sum();
            self.check_family_limit(index, (family, held), just_now, now);
        }
    }

    fn check_family_limit(
        &mut self,
        index: u32,
        (family, held): (AfiSafi, usize),
        discarded: u64,
        now: Time,
    ) {
        let Some(entry) = self.peers.get_mut(&index) else {
            return;
        };
        let Some(limit) = entry.peer.config().prefix_limit_in else {
            return;
        };
        let Some(progress) = entry.progress.get_mut(&family) else {
            return;
        };
        progress.discarded += discarded;
        let level = limit.level(held, discarded);
        let rises = level > progress.level;
        // Only far below the limit it may be reported anew.
        if rises || level == Level::Low {
            progress.level = level;
        }
        if level == Level::Beyond
            && let BeyondLimit::Stop { retry_after } = limit.beyond
        {
            // RFC 4486 §4: family and limit.
            let mut data = family.afi.to_be_bytes().to_vec();
            data.push(family.safi);
            data.extend_from_slice(&limit.max.to_be_bytes());
            let code = NotificationCode::Cease(CeaseError::MaximumNumberOfPrefixesReached);
            let detail = format!("{held} prefixes of {family}, expected at most {}", limit.max);
            entry
                .peer
                .suspend(&Notification::new(code, &data), &detail, retry_after);
        }
        if rises && now >= entry.limit_quiet_until {
            entry.limit_quiet_until = now + super::REPORT_INTERVAL;
            let peer = entry.peer.config().name.clone();
            self.log(LogEvent::PrefixLimit {
                peer,
                family,
                held,
                max: limit.max,
            });
        }
    }
}
