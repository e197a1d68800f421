//! All interleavings of small sets of requests on the memory store, one store call at a time; with a client that dies
//! between any two calls, or a commit whose answer is lost (not applied, applied, or applied at any later moment).
//!
//! The requests are of clients of their own, or of one client that commits them in groups: then, too, between a commit and
//! its answer the caller that leads may die, and who waits must be woken for what is left to do.
//!
//! After every call the invariants hold. After the dead client's handle was released, everything is accounted for.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod explore;
mod request;
mod script;
mod states;
#[path = "../support/mod.rs"]
mod support;
mod world;

use calidris_ipam::keys;
use explore::{Clients, count_schedules, explore, explore_clients};
use request::{Request, Setup, assign, release};
use states::{HalfClaims, like_minded_nodes, reachable, workload};
use world::{TROUBLES, Trouble};

#[test]
fn two_nodes_that_claim_in_the_same_pool() {
    for trouble in TROUBLES {
        explore(
            "two claims",
            trouble,
            &Setup::new(30),
            &[assign("n1", "a", 1), assign("n2", "b", 1)],
        );
    }
}

#[test]
fn two_requests_of_one_node_for_the_last_addresses_of_a_block() {
    for trouble in TROUBLES {
        explore(
            "one node",
            trouble,
            &Setup::new(31),
            &[assign("n1", "a", 1), assign("n1", "b", 2)],
        );
    }
}

#[test]
fn a_release_and_an_assignment_that_needs_what_is_released() {
    let setup = Setup::new(31).assigned(&[("n1", "old", 2)]);
    for trouble in TROUBLES {
        explore(
            "release, assign",
            trouble,
            &setup,
            &[release("old"), assign("n2", "b", 1)],
        );
    }
}

#[test]
fn two_releases_of_the_same_handle() {
    let setup = Setup::new(30).assigned(&[("n1", "old", 2), ("n2", "other", 1)]);
    for trouble in TROUBLES {
        explore("two releases", trouble, &setup, &[release("old"), release("old")]);
    }
}

#[test]
fn the_same_request_made_twice_at_once_is_one_request() {
    for trouble in [Trouble::Nothing, Trouble::LostAnswer] {
        let requests = [assign("n1", "a", 1), assign("n1", "a", 1)];
        explore("one request twice", trouble, &Setup::new(30), &requests);
    }
}

#[test]
fn an_empty_block_that_its_node_uses_again_while_another_takes_it() {
    // One block in the pool, of n1, empty and old.
    let mut setup = Setup::new(31).assigned(&[("n1", "old", 1)]);
    setup.release("old");
    for trouble in TROUBLES {
        explore(
            "take over",
            trouble,
            &setup,
            &[assign("n1", "a", 1), assign("n2", "b", 1)],
        );
    }
}

#[test]
fn a_late_release_of_an_address_that_was_given_to_somebody_else_meanwhile() {
    let setup = Setup::new(31).assigned(&[("n1", "old", 1)]);
    let stale = setup.sequence_number("old");
    let late = Request::Release("old".to_owned(), Some(stale));
    let requests = [release("old"), late, assign("n1", "old", 1)];
    explore("late release", Trouble::Nothing, &setup, &requests);
}

#[test]
fn three_nodes_that_claim_in_the_same_pool() {
    let requests = [assign("n1", "a", 1), assign("n2", "b", 1), assign("n3", "c", 1)];
    explore("three claims", Trouble::Nothing, &Setup::new(30), &requests);
}

#[test]
fn three_clients_of_which_one_dies_between_any_two_steps_from_every_state() {
    from_every_state(HalfClaims::None);
}

#[test]
#[ignore = "takes a minute and more: make model-check"]
fn three_clients_of_which_one_dies_between_any_two_steps_from_every_state_with_half_claims() {
    from_every_state(HalfClaims::OneForEachNode);
}

fn from_every_state(half_claims: HalfClaims) {
    let nodes = like_minded_nodes(3);
    let states = reachable(&nodes, half_claims);
    let mut schedules = 0;
    for (number, state) in states.iter().enumerate() {
        for requests in requests_of_all(&nodes, state) {
            let what = format!("state {number}, {requests:?}");
            schedules += count_schedules(&what, Clients::Apart, Trouble::Crash, state, &requests);
        }
    }
    println!("{} states, {schedules} schedules", states.len());
    assert!(states.len() > 20 && schedules > 1000);
}

/// Everything that each node's client can ask for at the same time: another address, or the end of its workload if there
/// is one.
fn requests_of_all(nodes: &[String], state: &Setup) -> Vec<Vec<Request>> {
    let mut all = vec![Vec::new()];
    for node in nodes {
        let mut can = vec![assign(node, &format!("new-{node}"), 1)];
        if state.kvs.contains_key(&keys::handle(&workload(node))) {
            can.push(release(&workload(node)));
        }
        let with = |requests: &Vec<Request>| -> Vec<Vec<Request>> {
            let one_more = |request: &Request| [requests.as_slice(), std::slice::from_ref(request)].concat();
            can.iter().map(one_more).collect()
        };
        all = all.iter().flat_map(with).collect();
    }
    all
}

#[test]
fn three_clients_that_know_from_before_of_which_one_dies_between_any_two_steps() {
    // Four addresses in two blocks. The third client lives on what it borrows; one address is free, or comes free.
    let setup = Setup::new(30).with_clients_that_have(&[("n1", "w1"), ("n2", "w2"), ("n3", "w3")]);
    let requests = [assign("n1", "a", 1), assign("n2", "b", 1), release("w3")];
    explore(
        "two for two, one of them released",
        Trouble::Crash,
        &setup,
        &requests,
    );
}

#[test]
fn requests_of_one_client_that_are_committed_together() {
    let old = Setup::new(30).assigned(&[("n1", "old", 2)]);
    let cases: [(&str, &Setup, &[Request]); 4] = [
        (
            "two assignments",
            &Setup::new(30),
            &[assign("n1", "a", 1), assign("n1", "b", 1)],
        ),
        (
            "one of them refused",
            &Setup::new(31),
            &[assign("n1", "a", 2), assign("n1", "b", 1)],
        ),
        (
            "a release, an assignment",
            &old,
            &[release("old"), assign("n1", "b", 1)],
        ),
        (
            "one request twice",
            &Setup::new(30),
            &[assign("n1", "a", 1), assign("n1", "a", 1)],
        ),
    ];
    for (what, setup, requests) in cases {
        for trouble in TROUBLES {
            explore_clients(what, Clients::One, trouble, setup, requests);
        }
    }
}

#[test]
fn three_requests_of_one_client_of_which_two_wait_for_the_first() {
    let setup = Setup::new(30).assigned(&[("n1", "old", 2)]);
    let requests = [assign("n1", "a", 1), release("old"), assign("n1", "c", 2)];
    for trouble in TROUBLES {
        explore_clients("three", Clients::One, trouble, &setup, &requests);
    }
}

#[test]
fn clients_that_know_from_before_what_others_are_about_to_change() {
    // Each has one address of a block of its own, and what it knows says that the other is free.
    let setup = Setup::new(30).with_clients_that_have(&[("n1", "w1"), ("n2", "w2")]);
    for trouble in TROUBLES {
        let requests = [assign("n1", "a", 2), assign("n2", "b", 1)];
        explore("two that know", trouble, &setup, &requests);
        let requests = [assign("n1", "a", 1), release("w2")];
        explore("one that knows", trouble, &setup, &requests);
    }
    let one = Setup::new(30).with_clients_that_have(&[("n1", "w1")]);
    for trouble in TROUBLES {
        let requests = [assign("n1", "a", 1), assign("n1", "b", 2)];
        explore_clients("one client that knows", Clients::One, trouble, &one, &requests);
    }
}
