//! Who does harm to etcd: one thing after another, each undone before the next, as the seed wants it. What was done counts
//! only if it was seen to have happened, from where the clients are.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde::Serialize;

use super::members::Members;
use super::{Shared, pause};
use crate::eventually::eventually;
use crate::lab::Lab;
use crate::netns::Namespace;
use crate::random::Random;
use crate::signals;

/// How long etcd may take to be as it should be again.
const MENDED_WITHIN: Duration = Duration::from_secs(60);

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Kill,
    Freeze,
    CutOff,
    /// The leader is frozen: what it was sent may be carried out later.
    FreezeLeader,
    CutOffLeader,
    MoveLeader,
    Compact,
    Fill,
    /// The wall clock of all nodes jumps. That of the members is no matter: nothing here has a lease.
    ClockJump,
}

const FAULTS: [Fault; 9] = [
    Fault::Freeze,
    Fault::Kill,
    Fault::FreezeLeader,
    Fault::CutOff,
    Fault::Compact,
    Fault::CutOffLeader,
    Fault::ClockJump,
    Fault::MoveLeader,
    Fault::Fill,
];

/// How often something was done.
#[derive(Debug, Default, Clone, Serialize)]
pub struct Times {
    /// Tried.
    pub tried: u32,
    /// Seen to have happened.
    pub seen: u32,
    /// Why it was not seen, the last time that it was not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_seen: Option<String>,
}

/// The one who does it.
pub(crate) struct Nemesis {
    random: Random,
    done: BTreeMap<String, Times>,
    leader: Option<usize>,
    leader_changes: u32,
}

impl Nemesis {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            random: Random::new(seed, u64::MAX),
            done: BTreeMap::new(),
            leader: None,
            leader_changes: 0,
        }
    }

    pub(crate) fn done(&self) -> &BTreeMap<String, Times> {
        &self.done
    }

    /// How often another member led than before.
    pub(crate) fn leader_changes(&self) -> u32 {
        self.leader_changes
    }

    /// # Errors
    /// Something was never seen to happen: then the run proves nothing about it.
    pub(crate) fn has_done_everything(&self) -> anyhow::Result<()> {
        for fault in FAULTS {
            let times = self.done.get(&format!("{fault:?}")).cloned().unwrap_or_default();
            ensure!(times.seen > 0, "{fault:?} was never seen to happen: {times:?}");
        }
        ensure!(self.leader_changes > 0, "the leader never changed");
        Ok(())
    }

    /// Does harm for `duration`, and at least until everything was tried once; in an order of the seed.
    pub(crate) fn harm(
        &mut self,
        (lab, members): (&Lab, &mut Members),
        from: &Namespace,
        shared: &Shared,
        (duration, longest): (Duration, Duration),
    ) -> anyhow::Result<()> {
        let end = shared.watch.elapsed() + duration;
        let mut waiting: Vec<Fault> = FAULTS.to_vec();
        let mut is_first_round = true;
        self.look_who_leads(members);
        while is_first_round || shared.watch.elapsed() < end {
            ensure!(!signals::interrupted(), "interrupted");
            let index = usize::try_from(self.random.below(waiting.len() as u64)).unwrap_or_default();
            let fault = waiting.swap_remove(index);
            let seen = self.inflict(fault, (lab, members), from, shared, longest)?;
            let times = self.done.entry(format!("{fault:?}")).or_default();
            times.tried += 1;
            match seen {
                Ok(()) => times.seen += 1,
                Err(why) => times.not_seen = Some(format!("{why:#}")),
            }
            pause(self.time(longest) / 2);
            self.look_who_leads(members);
            if waiting.is_empty() {
                is_first_round = false;
                waiting = FAULTS.to_vec();
            }
        }
        Ok(())
    }

    fn look_who_leads(&mut self, members: &Members) {
        let now = members.leader();
        if now.is_some() && self.leader.is_some() && now != self.leader {
            self.leader_changes += 1;
        }
        self.leader = now.or(self.leader);
    }

    /// Does it and undoes it. The inner result is whether it was seen from `from`.
    fn inflict(
        &mut self,
        fault: Fault,
        (lab, members): (&Lab, &mut Members),
        from: &Namespace,
        shared: &Shared,
        longest: Duration,
    ) -> anyhow::Result<anyhow::Result<()>> {
        let victim = usize::try_from(self.random.below(members.count() as u64)).unwrap_or_default();
        let leader = members.leader().unwrap_or(victim);
        let time = self.time(longest);
        match fault {
            Fault::Kill => {
                members.kill(victim)?;
                let seen = members.is_unheard(victim, from);
                pause(time);
                members.launch(lab, victim)?;
                Ok(seen)
            }
            Fault::Freeze | Fault::FreezeLeader => {
                let victim = if fault == Fault::Freeze { victim } else { leader };
                members.freeze(victim)?;
                let seen = members.is_unheard(victim, from);
                pause(time);
                members.thaw(victim)?;
                Ok(seen)
            }
            Fault::CutOff | Fault::CutOffLeader => {
                let victim = if fault == Fault::CutOff { victim } else { leader };
                members.cut_off(victim)?;
                let seen = members.is_unheard(victim, from);
                pause(time);
                members.reconnect(victim)?;
                Ok(seen)
            }
            Fault::MoveLeader => Ok(eventually("another member leads", MENDED_WITHIN, || {
                members.move_leader()
            })),
            Fault::Compact => Ok(eventually("the history is compacted", MENDED_WITHIN, || {
                members.compact()?;
                members.has_forgotten_the_beginning()
            })),
            Fault::Fill => {
                let seen = members.fill();
                pause(time);
                eventually("there is room again", MENDED_WITHIN, || members.make_room())?;
                Ok(seen)
            }
            Fault::ClockJump => {
                let hours = i64::try_from(self.random.below(48)).unwrap_or_default() + 1;
                let sign = if self.random.once_in(2) { 1 } else { -1 };
                let offset = sign * hours * 3_600_000_000_000;
                shared.clock_offset.store(offset, Ordering::Relaxed);
                let assigned = || shared.assigned();
                let before = assigned();
                // Addresses are given by the clock that has jumped.
                Ok(eventually("an assignment after the jump", MENDED_WITHIN, || {
                    ensure!(assigned() > before, "{before} assignments");
                    Ok(())
                })
                .context("the clock has jumped"))
            }
        }
    }

    /// A time from a third of `longest` on.
    fn time(&mut self, longest: Duration) -> Duration {
        let millis = u64::try_from(longest.as_millis()).unwrap_or(u64::MAX);
        Duration::from_millis(millis / 3 + self.random.below(millis * 2 / 3))
    }
}
