//! A path through the tree of choices, and how to get to the next one that shows something new.
//!
//! Two steps of different clients that touch nothing in common lead to the same state in either order. Once all that
//! follows the one was explored, it *sleeps* while the other is: until something happens that it depends on (sleep sets:
//! Godefroid, Partial-Order Methods for the Verification of Concurrent Systems, 1996, chapter 5). No state is missed by
//! that, only ways to reach it again.

use std::sync::Mutex;

use calidris_ipam::Range;

/// What happens next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// A task goes on until it waits again.
    Run(usize),
    /// A task stops for ever.
    Die(usize),
    /// A commit that was stuck arrives.
    Deliver,
}

/// What a step depends on and what depends on it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Footprint {
    pub(crate) reads: Vec<Range>,
    pub(crate) writes: Vec<String>,
    /// Whether the one trouble of a run can be spent in it.
    pub(crate) may_be_trouble: bool,
    /// Whether nothing is known: everything depends on it.
    pub(crate) unknown: bool,
}

impl Footprint {
    pub(crate) fn unknown() -> Self {
        Self {
            unknown: true,
            ..Self::default()
        }
    }

    fn changes_what_is_seen_by(&self, other: &Self) -> bool {
        self.writes.iter().any(|key| {
            let covers = |range: &Range| match range {
                Range::Key(read) => read == key,
                Range::Prefix(prefix) => key.starts_with(prefix.as_str()),
            };
            other.reads.iter().any(covers) || other.writes.contains(key)
        })
    }
}

/// A step that could come next.
pub(crate) type Possible = (Step, Footprint);

fn depend((step, of_step): &Possible, (other, of_other): &Possible) -> bool {
    let task = |step: &Step| match *step {
        Step::Run(task) | Step::Die(task) => Some(task),
        Step::Deliver => None,
    };
    of_step.unknown
        || of_other.unknown
        || task(step) == task(other)
        || (of_step.may_be_trouble && of_other.may_be_trouble)
        || of_step.changes_what_is_seen_by(of_other)
        || of_other.changes_what_is_seen_by(of_step)
}

#[derive(Debug, Default)]
pub(crate) struct Script(Mutex<Path>);

#[derive(Debug, Default)]
struct Path {
    /// What to choose, of how many.
    choices: Vec<(usize, usize)>,
    position: usize,
    /// Steps whose consequences from here on were explored before.
    asleep: Vec<Possible>,
}

impl Script {
    /// The choice among `options` here, whose consequences are all different.
    pub(crate) fn choose(&self, options: usize) -> usize {
        self.0.lock().unwrap().choice(options).0
    }

    /// The next step of those that are possible. `None` if whatever could come was explored before.
    pub(crate) fn step(&self, possible: &[Possible]) -> Option<Step> {
        let mut path = self.0.lock().unwrap();
        let (from, position) = path.choice(possible.len());
        let Path { choices, asleep, .. } = &mut *path;
        let sleeps = |index: &usize| asleep.iter().any(|(step, _)| *step == possible[*index].0);
        let chosen = (from..possible.len()).find(|index| !sleeps(index));
        let explored: Vec<usize> = (0..chosen.unwrap_or(0)).filter(|index| !sleeps(index)).collect();
        choices[position].0 = chosen.unwrap_or(possible.len() - 1);
        let chosen = &possible[chosen?];
        asleep.extend(explored.into_iter().map(|index| possible[index].clone()));
        asleep.retain(|other| !depend(other, chosen));
        Some(chosen.0)
    }

    /// Goes to the next path; false after the last.
    pub(crate) fn advance(&self) -> bool {
        let mut path = self.0.lock().unwrap();
        path.position = 0;
        path.asleep.clear();
        while let Some((choice, options)) = path.choices.pop() {
            if choice + 1 < options {
                path.choices.push((choice + 1, options));
                return true;
            }
        }
        false
    }
}

impl Path {
    /// What to choose here, and where in the path that is.
    fn choice(&mut self, options: usize) -> (usize, usize) {
        let position = self.position;
        self.position += 1;
        if position == self.choices.len() {
            self.choices.push((0, options));
        }
        let (choice, known) = self.choices[position];
        assert_eq!(
            known, options,
            "the same choices led elsewhere: something is not deterministic"
        );
        (choice, position)
    }
}
