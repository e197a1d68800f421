//! Remote routes in a table of their own, on the real kernel: what packets take which way, moving there and back, what others do to
//! the rules, and what others have beside them.

use std::net::{Ipv4Addr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};

use calidris_agent::cleanup::{self, Mode};
use calidris_agent::desired::MAIN_TABLE;
use calidris_agent::kernel::Linux;
use calidris_agent::model::{Learned, Model, NextHop};

use super::namespaces::{Namespace, possible};
use super::{Monitor, fresh, model, node, settle, turn};

/// Rules of others that look as much like ours as can be.
const FOREIGN: &str = "\
ip rule add lookup main suppress_prefixlength 0 priority 32000 proto static
ip rule add lookup 100 priority 32001 proto static
ip -6 rule add lookup 100 priority 32001
ip rule add from 10.9.0.0/16 lookup 100 priority 32001
ip route add 10.99.0.0/16 via 192.0.2.9 table 100";

/// The rules of ours, or those of others.
fn rules(node: &Namespace, are_ours: bool) -> Vec<String> {
    let text = node.sh("ip rule; ip -6 rule | sed 's/^/v6 /'");
    let lines = text.lines().filter(|line| line.contains("proto 202") == are_ours);
    lines.map(str::to_owned).collect()
}

fn assert_settled(model: &mut Model) {
    let report = turn(&mut fresh(), model);
    assert_eq!((report.ops, report.failures), (vec![], vec![]));
}

/// A peer announces everything, also what lies here.
fn with_covering_route(mut model: Model) -> Model {
    let hop = NextHop {
        address: "192.0.2.4".parse().unwrap(),
        interface: None,
    };
    model
        .learned
        .insert("10.0.0.0/8".parse().unwrap(), Learned::via([hop].into()).unwrap());
    model
}

#[test]
fn what_is_here_comes_before_what_was_learned_and_the_default_route_after_it() {
    if !possible("what_is_here_comes_before") {
        return;
    }
    let node = node();
    let mut model = with_covering_route(model(&node));
    model.settings.remote_route_table = 100;
    node.run(|| {
        node.sh(
            "ip route add default via 192.0.2.253 metric 1; ip route add default via 192.0.2.252 metric 2000",
        );
        let monitor = Monitor::open();
        settle(&mut fresh(), &mut model);
        assert!(monitor.heard() > 0);
        for (destination, way) in [
            ("10.65.0.2", "10.65.0.2 dev cali2"),
            ("10.65.1.1", "via 192.0.2.2 dev up0 table 100"),
            ("10.1.1.1", "via 192.0.2.4 dev up0 table 100"),
            ("198.51.100.1", "via 192.0.2.254 dev up0 table 100"),
            ("192.0.2.7", "192.0.2.7 dev up0"),
            ("fd00:10:65::2", "fd00:10:65::2 from :: dev cali2"),
            ("fd00:10:67::1", "via fe80::2 dev up0 table 100"),
        ] {
            let taken = node.sh(&format!("ip route get {destination}"));
            assert!(
                taken.starts_with(way) || taken.contains(way),
                "{destination}: {taken}"
            );
        }
        let dropped = node.try_sh("ip route get 10.65.0.9");
        assert!(
            !dropped.status.success(),
            "an unused address of a block of ours is dropped"
        );
        let again = fresh();
        assert_settled(&mut model);
        assert_eq!((again.writes(), monitor.heard()), (0, 0), "a second start writes");
        node.sh("ip rule add lookup 9 priority 9");
        assert_eq!(monitor.heard(), 1, "or it would prove nothing");
    });
}

#[test]
fn a_move_to_another_table_and_back_leaves_no_moment_without_a_route() {
    if !possible("a_move_to_another_table") {
        return;
    }
    let node = node();
    let mut model = model(&node);
    // Without it, every destination would have one.
    model.learned.remove(&"0.0.0.0/0".parse().unwrap());
    let is_over = AtomicBool::new(false);
    let lookups = std::thread::scope(|scope| {
        node.run(|| settle(&mut fresh(), &mut model));
        let asking = scope.spawn(|| {
            node.run(|| {
                let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
                let mut lookups = 0_u64;
                while !is_over.load(Ordering::Relaxed) {
                    for destination in ["10.65.1.1:9", "10.65.2.1:9"] {
                        if let Err(error) = socket.connect(destination) {
                            return Err(format!("{destination} after {lookups} lookups: {error}"));
                        }
                        lookups += 1;
                    }
                }
                Ok(lookups)
            })
        });
        node.run(|| {
            for table in [100, MAIN_TABLE, 100, 200, 70_000, MAIN_TABLE].repeat(3) {
                model.settings.remote_route_table = table;
                settle(&mut fresh(), &mut model);
                assert_settled(&mut model);
            }
            assert_eq!(rules(&node, true), [""; 0]);
            assert_eq!(
                node.sh("ip route show table 200; ip route show table 100; ip route show table 70000"),
                ""
            );
        });
        is_over.store(true, Ordering::Relaxed);
        asking.join().unwrap()
    });
    assert!(lookups.as_ref().is_ok_and(|count| *count > 100), "{lookups:?}");
}

#[test]
fn what_others_do_to_the_rules_is_repaired_and_what_they_have_stays() {
    if !possible("what_others_do_to_the_rules") {
        return;
    }
    let node = node();
    let mut model = model(&node);
    model.settings.remote_route_table = 100;
    node.run(|| {
        node.sh(FOREIGN);
        let theirs = rules(&node, false);
        let mut dataplane = fresh();
        settle(&mut dataplane, &mut model);
        let ours = rules(&node, true);
        assert_eq!(ours.len(), 4, "{ours:#?}");
        for damage in [
            "ip rule del priority 32000 proto 202",
            "ip rule del priority 32001 lookup 100 proto 202",
            "ip -6 rule del priority 32001 proto 202; ip -6 rule del priority 32000 proto 202",
            "ip rule flush proto 202; ip -6 rule flush proto 202",
            "ip route del 10.65.1.0/26 table 100",
            // With our mark, and of kinds that we never make: before ours, and in front of the place of ours.
            "ip rule add from 10.7.0.0/16 fwmark 3/7 lookup 100 priority 32001 proto 202",
            "ip rule add not from 10.7.0.0/16 iif up0 lookup 70000 priority 5 proto 202",
            "ip rule add prohibit priority 4 proto 202; ip -6 rule add goto 32766 priority 3 proto 202",
            "ip rule add lookup 100 priority 17 proto 202; ip rule add lookup 77 priority 32001 proto 202",
        ] {
            node.sh(damage);
            settle(&mut dataplane, &mut model);
            assert_settled(&mut model);
            assert_eq!(
                rules(&node, true).len(),
                ours.len(),
                "{damage}: {:#?}",
                rules(&node, true)
            );
            assert!(
                rules(&node, true).iter().all(|rule| ours.contains(rule)),
                "{damage}"
            );
            assert_eq!(rules(&node, false), theirs, "{damage}");
        }
        let mut kernel = Linux::open().unwrap();
        let report = cleanup::clean(&mut kernel, Mode::Remove).unwrap();
        assert!(report.failed.is_empty(), "{:#?}", report.failed);
        assert_eq!(rules(&node, true), [""; 0]);
        assert_eq!(rules(&node, false), theirs);
        assert_eq!(
            node.sh("ip route show table 100").trim(),
            "10.99.0.0/16 via 192.0.2.9 dev up0"
        );
    });
}
