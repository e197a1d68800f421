//! The lab's ground: two routers of different makes, connected to each other, and an etcd.

use std::time::Duration;

use anyhow::{Context, ensure};
use calidris_interop::daemon::etcd::Etcd;
use calidris_interop::daemon::{ESTABLISHED, start_router};
use calidris_interop::eventually::eventually;
use calidris_interop::fabric::Fabric;
use calidris_interop::lab::{self, Lab};
use calidris_interop::topology::{DEMO, Topology};
use calidris_interop::{require, require::LAB};

const SOON: Duration = Duration::from_secs(20);

#[test]
fn bird_and_frr_exchange_their_subnets_over_ebgp_and_nothing_is_left() -> anyhow::Result<()> {
    require!(LAB);
    let topology = Topology::parse(DEMO)?;
    let lab = Lab::create(&format!("routers-{}", std::process::id()))?;
    let fabric = Fabric::create(&lab)?;
    for subnet in &topology.subnets {
        fabric.add_subnet(&subnet.name)?;
    }
    let mut routers = Vec::new();
    for spec in &topology.routers {
        let namespace = lab.namespace(&spec.name)?;
        for (subnet, address) in &spec.addresses {
            fabric.plug(
                (&spec.name, &namespace),
                subnet,
                topology.interface(subnet, *address)?,
            )?;
        }
        routers.push(start_router(
            &lab,
            spec.kind,
            &namespace,
            topology.router_config(&spec.name)?,
        )?);
    }
    let expectations = [
        ("router2", "198.51.100.0/24", "172.20.0.2"),
        ("router1", "203.0.113.0/24", "172.20.0.1"),
    ];
    for (router, (peer, prefix, hop)) in routers.iter().zip(expectations) {
        eventually("the routers' session", SOON, || {
            let sessions = router.sessions()?;
            ensure!(
                sessions.get(peer).is_some_and(|state| state == ESTABLISHED),
                "{sessions:?}"
            );
            Ok(())
        })?;
        eventually("the other's subnet", SOON, || {
            let routes = router.routes()?;
            let hops = routes
                .get(&prefix.parse()?)
                .with_context(|| format!("{routes:?}"))?;
            ensure!(
                hops.iter().any(|address| address.to_string() == hop),
                "{routes:?}"
            );
            Ok(())
        })?;
    }
    let name = lab.name().to_owned();
    lab.take_down()?;
    ensure!(!lab::list()?.contains(&name), "the lab's directory is left");
    Ok(())
}

#[test]
fn etcd_keeps_what_was_put_over_a_kill() -> anyhow::Result<()> {
    require!(LAB);
    let lab = Lab::create(&format!("etcd-{}", std::process::id()))?;
    let namespace = lab.namespace("etcd")?;
    let mut etcd = Etcd::start(&lab, &namespace, "127.0.0.1".parse()?)?;
    etcd.put("/lab/a", r#"{"one":1}"#)?;
    etcd.kill()?;
    ensure!(
        etcd.get_prefix("/lab/").is_err(),
        "etcd answers after it was killed"
    );
    etcd.launch(&lab)?;
    let pairs = etcd.get_prefix("/lab/")?;
    ensure!(
        pairs.get("/lab/a").is_some_and(|value| value == r#"{"one":1}"#),
        "{pairs:?}"
    );
    lab.take_down()
}

#[test]
fn a_crashed_lab_is_cleaned_by_name_and_a_running_one_is_not() -> anyhow::Result<()> {
    require!(LAB);
    let lab = Lab::create(&format!("clean-{}", std::process::id()))?;
    let namespace = lab.namespace("n")?;
    lab.start(
        "n",
        "sleeper",
        &namespace,
        std::process::Command::new("sleep").arg("1000"),
    )?;
    ensure!(lab::clean(lab.name()).is_err(), "a running lab was cleaned");
    ensure!(Lab::create(lab.name()).is_err(), "two labs of one name");
    let (name, directory) = (lab.name().to_owned(), lab.directory().to_owned());
    lab.take_down()?;
    ensure!(!namespace.exists() && !directory.exists());
    lab::clean(&name)
}
