//! Routes of a peer that went away: which are kept, and for how long.
//!
//! RFC 4724 §4.2: the session goes away without a NOTIFICATION; routes of the families the peer named become stale and stay in use until it
//! announces them again, its End-of-RIB says that the rest is gone, or a timer ends. RFC 8538: a NOTIFICATION other than a Hard Reset is
//! survived too, and as many failures in a row as fit into one stale time. RFC 9494 §4.2: when the restart time is over, or zero, routes of families
//! with a long-lived stale time stay as the least preferred ones until that time is over.
//!
//! A family's long-lived timer runs until it ends or the peer has synchronised a new session: neither a new session nor another failure moves it.

use std::collections::BTreeMap;
use std::time::Duration;

use super::import::Importer;
use super::{LogEvent, Speaker};
use crate::family::{AfiSafi, Family, Ipv4Unicast, Ipv6Unicast};
use crate::rib::{LocRib, SourceId, Tables};
use crate::session::{GracefulRestart, Timer};
use crate::time::Time;

/// The families of the tables.
const FAMILIES: [AfiSafi; 2] = [Ipv4Unicast::AFI_SAFI, Ipv6Unicast::AFI_SAFI];

/// What is agreed about the routes of a peer that went away.
#[derive(Debug, Default)]
pub(super) struct Kept {
    /// When the restart time ends at the latest, however often the session fails (RFC 8538 §4.1).
    until: Option<Time>,
    long_lived: BTreeMap<AfiSafi, LongLived>,
}

#[derive(Debug, Clone, Copy)]
struct LongLived {
    /// How long routes are kept beyond the restart time.
    time: Duration,
    /// When that ends; `None` before it has begun.
    until: Option<Time>,
}

/// What becomes of the routes of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Plan {
    Remove,
    /// Kept for the restart time.
    Restart,
    /// The restart time is zero, or over already.
    LongLived,
}

/// What happens to the paths of a peer in one table.
#[derive(Debug, Clone, Copy)]
enum Change {
    Remove,
    Mark,
    MarkAgain,
    Sweep,
}

impl Change {
    fn apply<F: Family>(self, loc_rib: &mut LocRib<F>, source: SourceId, tables: &mut Tables<'_>) {
        match self {
            Self::Remove => loc_rib.clear_source(source, tables),
            Self::Mark => loc_rib.mark_stale(source, tables),
            Self::MarkAgain => loc_rib.mark_stale_again(source),
            Self::Sweep => loc_rib.sweep_stale(source, tables),
        }
    }
}

impl Kept {
    fn has_begun(&self, family: AfiSafi) -> bool {
        self.long_lived
            .get(&family)
            .is_some_and(|long| long.until.is_some())
    }

    fn plan(&self, family: AfiSafi, restart: &GracefulRestart) -> Plan {
        if restart.covers(family) && restart.restart_time > 0 {
            Plan::Restart
        } else if self.long_lived.contains_key(&family) {
            Plan::LongLived
        } else {
            Plan::Remove
        }
    }

    /// When the next long-lived time ends.
    fn next_end(&self) -> Option<Time> {
        self.long_lived.values().filter_map(|long| long.until).min()
    }
}

impl Speaker {
    /// The session of a peer went away, in a manner after which `restart` says what may be kept.
    pub(super) fn keep_routes(&mut self, index: u32, restart: Option<&GracefulRestart>, now: Time) {
        let Some(entry) = self.peers.get_mut(&index) else {
            return;
        };
        let config = entry.peer.config().graceful_restart.clone().unwrap_or_default();
        let Some(restart) = restart else {
            entry.kept = Kept::default();
            entry.timers.stop(Timer::Restart);
            entry.timers.stop(Timer::LongLived);
            return FAMILIES
                .iter()
                .for_each(|family| self.change_routes(index, *family, Change::Remove));
        };
        for family in FAMILIES {
            let asked = restart.long_lived(family).map_or(0, |long| long.stale_time);
            let time = Duration::from_secs(asked.into()).min(config.long_lived.keep);
            if !time.is_zero() {
                let new = LongLived { time, until: None };
                entry.kept.long_lived.entry(family).or_insert(new);
            }
        }
        let mut plans = Vec::new();
        for family in FAMILIES {
            let older = restart.notification || entry.kept.has_begun(family);
            plans.push((family, entry.kept.plan(family, restart), older));
        }
        if plans.iter().any(|(_, plan, _)| *plan == Plan::Restart) {
            let mut end = now + Duration::from_secs(restart.restart_time.into());
            if restart.notification {
                let until = *entry.kept.until.get_or_insert(end + config.stale_time);
                end = end.min(until);
            }
            entry.timers.set(Timer::Restart, end);
        }
        for (family, plan, older) in plans {
            let change = match (plan, older) {
                (Plan::Remove, _) => Change::Remove,
                (Plan::Restart, false) => Change::Mark,
                (Plan::Restart, true) | (Plan::LongLived, _) => Change::MarkAgain,
            };
            self.change_routes(index, family, change);
            if plan == Plan::LongLived {
                self.begin_long_lived(index, family, now);
            }
        }
    }

    /// A peer is back: its stale routes stay if it says that it forwarded all the time.
    pub(super) fn meet_again(&mut self, index: u32, now: Time) {
        let Some(entry) = self.peers.get_mut(&index) else {
            return;
        };
        entry.timers.stop(Timer::Restart);
        let config = entry.peer.config().graceful_restart.as_ref();
        if let Some(stale_time) = config.map(|restart| restart.stale_time) {
            let end = now + stale_time;
            let end = entry.kept.until.map_or(end, |until| end.min(until));
            entry.timers.set(Timer::Stale, end);
        }
        let Some(terms) = &entry.session else {
            return;
        };
        let forwarded = |family| {
            let restart = terms.graceful_restart.as_ref()?;
            // RFC 9494 §4.2: once the long-lived time has begun its capability counts.
            Some(match entry.kept.has_begun(family) {
                true => restart.long_lived(family)?.forwarding_preserved,
                false => restart.kept_forwarding(family),
            })
        };
        let lost: Vec<AfiSafi> = FAMILIES
            .into_iter()
            .filter(|family| !terms.families.contains(family) || forwarded(*family) != Some(true))
            .collect();
        for family in lost {
            self.synchronized(index, family);
        }
    }

    /// Nothing of a family is kept any more: what is still stale goes.
    pub(super) fn synchronized(&mut self, index: u32, family: AfiSafi) {
        let Some(entry) = self.peers.get_mut(&index) else {
            return;
        };
        entry.kept.long_lived.remove(&family);
        if entry.is_synced() {
            entry.kept.until = None;
        }
        self.change_routes(index, family, Change::Sweep);
        self.set_long_lived_timer(index);
    }

    pub(super) fn expire_restart_timers(&mut self, index: u32, now: Time) {
        while let Some(entry) = self.peers.get_mut(&index)
            && let Some(timer) = entry.timers.take_expired(now)
        {
            match timer {
                Timer::Restart => self.end_restart_time(index, now),
                Timer::LongLived => self.end_long_lived(index, now),
                Timer::Forget => self.forget_dynamic(index, now),
                _ => self.end_stale_time(index),
            }
        }
    }

    /// The peer did not come back in its restart time.
    fn end_restart_time(&mut self, index: u32, now: Time) {
        let Some(entry) = self.peers.get_mut(&index) else {
            return;
        };
        entry.kept.until = None;
        let (longer, over): (Vec<_>, Vec<_>) = FAMILIES
            .into_iter()
            .partition(|family| entry.kept.long_lived.contains_key(family));
        for family in longer {
            self.begin_long_lived(index, family, now);
        }
        for family in &over {
            self.change_routes(index, *family, Change::Sweep);
        }
        if !over.is_empty() {
            self.note_removed(index);
        }
    }

    /// The peer came back and never said that it has told everything.
    fn end_stale_time(&mut self, index: u32) {
        let Some(entry) = self.peers.get_mut(&index) else {
            return;
        };
        entry.kept = Kept::default();
        entry.timers.stop(Timer::LongLived);
        for progress in entry.progress.values_mut() {
            progress.refreshing = false;
        }
        for family in FAMILIES {
            self.change_routes(index, family, Change::Sweep);
        }
        self.note_removed(index);
    }

    /// From now on the stale routes of a family are the least preferred ones.
    fn begin_long_lived(&mut self, index: u32, family: AfiSafi, now: Time) {
        let Some(entry) = self.peers.get_mut(&index) else {
            return;
        };
        if let Some(long) = entry.kept.long_lived.get_mut(&family) {
            long.until.get_or_insert(now + long.time);
        }
        let importer = Importer::new(entry, &self.config);
        let source = SourceId::peer(index);
        let mut tables = Tables {
            attrs: &mut self.attrs,
            sources: &self.sources,
            decision: &self.config.decision,
        };
        match family {
            AfiSafi::IPV4_UNICAST => {
                self.ipv4
                    .loc_rib
                    .mark_long_lived(source, &mut tables, |prefix, received, attrs| {
                        importer.import::<Ipv4Unicast>(prefix, received, attrs)
                    });
            }
            AfiSafi::IPV6_UNICAST => {
                self.ipv6
                    .loc_rib
                    .mark_long_lived(source, &mut tables, |prefix, received, attrs| {
                        importer.import::<Ipv6Unicast>(prefix, received, attrs)
                    });
            }
            _ => {}
        }
        self.set_long_lived_timer(index);
    }

    /// The long-lived time of one or both families is over.
    fn end_long_lived(&mut self, index: u32, now: Time) {
        let Some(entry) = self.peers.get_mut(&index) else {
            return;
        };
        let over = entry.kept.long_lived.iter();
        let over: Vec<AfiSafi> = over
            .filter(|(_, long)| long.until.is_some_and(|until| until <= now))
            .map(|(family, _)| *family)
            .collect();
        for family in over {
            if let Some(entry) = self.peers.get_mut(&index) {
                entry.kept.long_lived.remove(&family);
            }
            self.change_routes(index, family, Change::Sweep);
        }
        self.set_long_lived_timer(index);
        self.note_removed(index);
    }

    fn change_routes(&mut self, index: u32, family: AfiSafi, change: Change) {
        let mut tables = Tables {
            attrs: &mut self.attrs,
            sources: &self.sources,
            decision: &self.config.decision,
        };
        match family {
            AfiSafi::IPV4_UNICAST => change.apply(&mut self.ipv4.loc_rib, SourceId::peer(index), &mut tables),
            AfiSafi::IPV6_UNICAST => change.apply(&mut self.ipv6.loc_rib, SourceId::peer(index), &mut tables),
            _ => {}
        }
    }

    fn set_long_lived_timer(&mut self, index: u32) {
        if let Some(entry) = self.peers.get_mut(&index) {
            match entry.kept.next_end() {
                Some(end) => entry.timers.set(Timer::LongLived, end),
                None => entry.timers.stop(Timer::LongLived),
            }
        }
    }

    fn note_removed(&mut self, index: u32) {
        if let Some(entry) = self.peers.get(&index) {
            let peer = entry.peer.config().name.clone();
            self.log(LogEvent::StaleRoutesRemoved { peer });
        }
    }
}
