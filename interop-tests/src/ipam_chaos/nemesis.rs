//! Who does harm to etcd: one thing after another, each undone before the next, as the seed wants it.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::members::Members;
use super::random::Random;
use super::{Shared, pause};
use crate::lab::Lab;

/// What is done.
#[derive(Debug, Clone, Copy)]
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

/// The one who does it.
pub(crate) struct Nemesis {
    random: Random,
    done: BTreeMap<String, u32>,
}

impl Nemesis {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            random: Random::new(seed, u64::MAX),
            done: BTreeMap::new(),
        }
    }

    pub(crate) fn done(&self) -> &BTreeMap<String, u32> {
        &self.done
    }

    /// Does harm for `duration`. Begins with each fault once, in an order of the seed.
    pub(crate) fn harm(
        &mut self,
        lab: &Lab,
        members: &mut Members,
        shared: &Shared,
        duration: Duration,
    ) -> anyhow::Result<()> {
        let end = shared.watch.elapsed() + duration;
        let mut waiting: Vec<Fault> = Vec::new();
        while shared.watch.elapsed() < end {
            if waiting.is_empty() {
                waiting = FAULTS.to_vec();
            }
            let index = usize::try_from(self.random.below(waiting.len() as u64)).unwrap_or_default();
            let fault = waiting.swap_remove(index);
            self.inflict(fault, lab, members, shared)?;
            *self.done.entry(format!("{fault:?}")).or_default() += 1;
            pause(Duration::from_millis(300 + self.random.below(500)));
        }
        Ok(())
    }

    fn inflict(
        &mut self,
        fault: Fault,
        lab: &Lab,
        members: &mut Members,
        shared: &Shared,
    ) -> anyhow::Result<()> {
        let victim = usize::try_from(self.random.below(members.count() as u64)).unwrap_or_default();
        let leader = members.leader().unwrap_or(victim);
        let time = Duration::from_millis(800 + self.random.below(1800));
        match fault {
            Fault::Kill => {
                members.kill(victim)?;
                pause(time);
                members.launch(lab, victim)?;
            }
            Fault::Freeze | Fault::FreezeLeader => {
                let victim = if matches!(fault, Fault::Freeze) {
                    victim
                } else {
                    leader
                };
                members.freeze(victim)?;
                pause(time);
                members.thaw(victim)?;
            }
            Fault::CutOff | Fault::CutOffLeader => {
                let victim = if matches!(fault, Fault::CutOff) {
                    victim
                } else {
                    leader
                };
                members.cut_off(victim)?;
                pause(time);
                members.reconnect(victim)?;
            }
            // These need a cluster that works: if it does not at the moment, nothing is done.
            Fault::MoveLeader => drop(members.move_leader()),
            Fault::Compact => drop(members.compact()),
            Fault::Fill => {
                if members.fill().is_ok() {
                    pause(time);
                }
                crate::eventually::eventually("there is room again", Duration::from_secs(60), || {
                    members.make_room()
                })?;
            }
            Fault::ClockJump => {
                let hours = i64::try_from(self.random.below(96)).unwrap_or_default() - 48;
                shared
                    .clock_offset
                    .store(hours * 3_600_000_000_000, Ordering::Relaxed);
            }
        }
        Ok(())
    }
}
