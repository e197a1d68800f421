//! The proof is worth something: it fails when something is broken.

use std::process::Command;

use anyhow::ensure;
use calidris_interop::cluster::Cluster;
use calidris_interop::progress::{Progress, Stream};
use calidris_interop::proof::{self, Proof};
use calidris_interop::require;
use calidris_interop::require::LAB;

#[test]
fn a_pulled_cable_fails_what_went_through_it_until_it_is_back() -> anyhow::Result<()> {
    require!(LAB);
    let mut cluster = Cluster::for_test("cable", 2)?;
    let progress = Progress::start(Stream::Error);
    proof::add_pods(&mut cluster, &progress, &mut Proof::default())?;
    cluster.fabric.unplug("node2", "rack1")?;
    let mut proof = Proof::default();
    proof::pod_to_pod(&cluster, &progress, &mut proof);
    for check in &proof.checks {
        let crosses = check.name.contains("node1pod") && check.name.contains("node2pod");
        ensure!(check.failure.is_some() == crosses, "{check:?}");
    }
    ensure!(
        !proof.holds() && proof.verdict() == "FAIL 4/12",
        "{}",
        proof.verdict()
    );

    cluster.fabric.replug("node2", "rack1")?;
    cluster.wait_for_sessions()?;
    let mut again = Proof::default();
    proof::routes_everywhere(&cluster, &progress, &mut again)?;
    proof::pod_to_pod(&cluster, &progress, &mut again);
    again.into_result()?;
    cluster.lab.take_down()
}

#[test]
fn a_client_that_is_masqueraded_within_the_pool_is_noticed() -> anyhow::Result<()> {
    require!(LAB);
    let mut cluster = Cluster::for_test("masquerade", 2)?;
    cluster.topology.pods_per_node = 1;
    let progress = Progress::start(Stream::Error);
    proof::add_pods(&mut cluster, &progress, &mut Proof::default())?;
    let table =
        "table ip wrong { chain c { type nat hook postrouting priority 90; oifname rack1 masquerade; }; }";
    cluster
        .node("node1")?
        .namespace
        .run(Command::new("nft").arg(table))?;
    let mut proof = Proof::default();
    proof::pod_to_pod(&cluster, &progress, &mut proof);
    let failures: Vec<_> = proof
        .checks
        .iter()
        .filter_map(|check| check.failure.as_ref())
        .collect();
    ensure!(
        failures.len() == 1 && failures.iter().all(|why| why.contains("192.0.2.11")),
        "{failures:?}"
    );
    cluster.lab.take_down()
}
