//! Every schedule of some requests, and what must be true in each of them.

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use calidris_ipam::{Ipam, ReleaseRequest};

use crate::request::{Given, Request, Setup, whole};
use crate::script::{Footprint, Possible, Script, Step};
use crate::support::at;
use crate::world::{Stepped, Trouble, World};

/// Whose requests they are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Clients {
    /// Each has its own.
    Apart,
    /// All are made through one.
    One,
}

/// Runs every schedule of `requests`, each of a client of its own.
pub(crate) fn explore(what: &str, trouble: Trouble, setup: &Setup, requests: &[Request]) {
    explore_clients(what, Clients::Apart, trouble, setup, requests);
}

pub(crate) fn explore_clients(
    what: &str,
    clients: Clients,
    trouble: Trouble,
    setup: &Setup,
    requests: &[Request],
) {
    let runs = count_schedules(what, clients, trouble, setup, requests);
    // A schedule that is never explored proves nothing. Those that know from before have one call each, which may have
    // nothing to do with each other; of one client only one works at a time, and only trouble makes a difference.
    let is_alone = clients == Clients::One || !setup.before.is_empty();
    let least = if is_alone && trouble == Trouble::Nothing {
        1
    } else {
        2
    };
    assert!(runs >= least, "{what}: only {runs} schedules");
}

/// Explores all schedules that differ in more than the order of steps which have nothing to do with each other.
pub(crate) fn count_schedules(
    what: &str,
    clients: Clients,
    trouble: Trouble,
    setup: &Setup,
    requests: &[Request],
) -> usize {
    let script = Script::default();
    let mut runs = 0;
    loop {
        runs += usize::from(run_once(what, clients, trouble, setup, requests, &script));
        if !script.advance() {
            break;
        }
    }
    runs
}

/// Follows the script. False if it led to where everything that could come was explored before.
fn run_once(
    what: &str,
    clients: Clients,
    trouble: Trouble,
    setup: &Setup,
    requests: &[Request],
    script: &Script,
) -> bool {
    let world = World::new(setup.store(), script, clients);
    let count = if clients == Clients::One {
        1
    } else {
        requests.len()
    };
    let ipams: Vec<Ipam<Stepped<'_>>> = (0..count)
        .map(|client| {
            Ipam::new(Stepped {
                world: &world,
                client,
            })
        })
        .collect();
    forget_predecessors(&ipams, requests);
    for (request, ipam) in setup.before.iter().zip(&ipams) {
        run_alone(request.run(ipam));
    }
    world.allow(trouble);
    let mut tasks: Vec<Option<Task<'_>>> = requests
        .iter()
        .zip(ipams.iter().cycle())
        .map(|(request, ipam)| Some(Task::new(request.run(ipam))))
        .collect();
    // Up to the first call, which no schedule can tell from having done nothing.
    for task in tasks.iter_mut().flatten() {
        assert!(task.poll().is_pending());
    }
    let mut given: Vec<Given> = vec![None; tasks.len()];
    let mut dead = None;
    loop {
        let live: Vec<usize> = (0..tasks.len()).filter(|&index| tasks[index].is_some()).collect();
        if live.is_empty() {
            break;
        }
        let is_woken = |index: &usize| tasks[*index].as_ref().is_some_and(Task::is_woken);
        let woken: Vec<usize> = live.iter().copied().filter(is_woken).collect();
        assert!(
            !woken.is_empty(),
            "{what}: {live:?} wait for nobody after {script:?}"
        );
        let Some(step) = script.step(&possible(&world, clients, &woken, &live)) else {
            return false;
        };
        match step {
            Step::Run(index) => {
                if let Poll::Ready(result) = tasks[index].as_mut().unwrap().poll() {
                    given[index] = result;
                    tasks[index] = None;
                } else if world.is_stuck_just_now() {
                    tasks[index] = None;
                    dead = Some(index);
                }
            }
            Step::Deliver => world.deliver(),
            Step::Die(index) => {
                world.allow(Trouble::Nothing);
                tasks[index] = None;
                dead = Some(index);
            }
        }
        world.check_if_changed(what, script);
    }
    world.allow(Trouble::Nothing);
    let waits = world.has_something_in_flight() && script.choose(2) == 1;
    if !waits {
        world.deliver();
    }
    world.check(what, script);
    let settled = recover(&ipams, requests, &given, dead);
    world.check(what, script);
    world.deliver();
    world.check(what, script);
    world.check_given(what, requests, &given, &settled);
    true
}

/// What can happen next.
fn possible(world: &World<'_>, clients: Clients, woken: &[usize], live: &[usize]) -> Vec<Possible> {
    let mut possible = Vec::new();
    for &index in woken {
        let footprint = match clients {
            Clients::Apart => world.pending(index),
            // They wait for each other in memory.
            Clients::One => Footprint::unknown(),
        };
        possible.push((Step::Run(index), footprint));
    }
    if world.has_something_in_flight() {
        possible.push((Step::Deliver, Footprint::unknown()));
    }
    if world.allows(Trouble::Crash) {
        let death = match clients {
            Clients::Apart => Footprint {
                may_be_trouble: true,
                ..Footprint::default()
            },
            Clients::One => Footprint::unknown(),
        };
        possible.extend(live.iter().map(|&index| (Step::Die(index), death.clone())));
    }
    possible
}

/// A request under way, and whether it was woken since it was polled.
struct Task<'a> {
    future: Pin<Box<dyn Future<Output = Given> + 'a>>,
    woken: Arc<Woken>,
}

struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl<'a> Task<'a> {
    fn new(future: impl Future<Output = Given> + 'a) -> Self {
        Self {
            future: Box::pin(future),
            woken: Arc::new(Woken(AtomicBool::new(true))),
        }
    }

    fn is_woken(&self) -> bool {
        self.woken.0.load(Ordering::Relaxed)
    }

    fn poll(&mut self) -> Poll<Given> {
        self.woken.0.store(false, Ordering::Relaxed);
        let waker = Waker::from(Arc::clone(&self.woken));
        self.future.as_mut().poll(&mut Context::from_waker(&waker))
    }
}

/// A fresh client takes it that a predecessor's assignment may be outstanding. These are to know better: what keeps a lost
/// attempt out must be what they saw themselves.
fn forget_predecessors(ipams: &[Ipam<Stepped<'_>>], requests: &[Request]) {
    for (request, ipam) in requests.iter().zip(ipams.iter().cycle()) {
        if let Some(node) = request.node() {
            let request = ReleaseRequest {
                handle_id: "nobody".to_owned(),
                fence: Some(node.to_owned()),
                ..ReleaseRequest::default()
            };
            run_alone(ipam.release(&request, at(0))).unwrap();
        }
    }
}

/// What an agent does about requests that did not end well: it releases what they may have got. Returns which.
fn recover(
    ipams: &[Ipam<Stepped<'_>>],
    requests: &[Request],
    given: &[Given],
    dead: Option<usize>,
) -> BTreeSet<usize> {
    let mut settled = BTreeSet::new();
    for (index, request) in requests.iter().enumerate() {
        let unsettled =
            Some(index) == dead || (given[index].is_none() && matches!(request, Request::Assign { .. }));
        let known_by_another = requests
            .iter()
            .zip(given)
            .any(|(other, given)| other.handle() == request.handle() && given.is_some());
        if unsettled && !known_by_another {
            let release = ReleaseRequest {
                fence: request.node().map(str::to_owned),
                ..whole(request.handle())
            };
            run_alone(ipams[index % ipams.len()].release(&release, at(0))).unwrap();
            settled.insert(index);
        }
    }
    settled
}

/// Runs `future` to its end while nothing else happens.
fn run_alone<T>(future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return value;
        }
    }
}
