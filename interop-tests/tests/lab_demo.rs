//! `calidris lab run` as a user runs it: the whole proof, keeping, cleaning, interrupting.

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use calidris_interop::binaries::Binaries;
use calidris_interop::eventually::eventually;
use calidris_interop::lab;
use calidris_interop::netns;
use calidris_interop::overlay::{self, Mode, Routing, Tour};
use calidris_interop::progress::{Progress, Stream};
use calidris_interop::require::{LAB, Need, OVERLAY};
use calidris_interop::{require, vm};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

fn name(test: &str) -> String {
    format!("{test}-{}", std::process::id())
}

/// Namespaces and directory of a lab.
fn traces(name: &str) -> anyhow::Result<Vec<String>> {
    let namespaces = netns::run(Command::new("ip").args(["netns", "list"]))?;
    let mut traces: Vec<String> = namespaces
        .lines()
        .filter(|line| line.contains(&format!("cal-{name}-")))
        .map(str::to_owned)
        .collect();
    traces.extend(lab::list()?.into_iter().filter(|lab| lab == name));
    Ok(traces)
}

/// The processes of a lab, found by the mark in their environment, wherever they are.
fn processes_of(name: &str) -> anyhow::Result<Vec<String>> {
    let mark = format!("CALIDRIS_LAB={name}");
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let path = entry?.path();
        let environment = std::fs::read(path.join("environ")).unwrap_or_default();
        if environment
            .split(|byte| *byte == 0)
            .any(|variable| variable == mark.as_bytes())
        {
            found.push(path.display().to_string());
        }
    }
    Ok(found)
}

#[test]
fn the_demo_s_proof_holds_and_nothing_is_left() -> anyhow::Result<()> {
    require!(LAB);
    let name = name("demo");
    let binaries = Binaries::find()?;
    let output = Command::new(binaries.agent)
        .args(["lab", "run", "--name", &name, "-o", "json"])
        .stdin(Stdio::null())
        .output()?;
    let progress = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}\n{progress}", output.status);
    let report: Value = serde_json::from_slice(&output.stdout).context("the report is JSON")?;
    ensure!(
        report["passed"] == report["total"] && report["total"].as_u64() > Some(60),
        "{report}"
    );
    ensure!(
        report["pods"].as_array().is_some_and(|pods| pods.len() == 6),
        "{report}"
    );
    let left = traces(&name)?;
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}

#[test]
fn a_kept_lab_stays_until_it_is_cleaned() -> anyhow::Result<()> {
    require!(LAB);
    let name = name("kept");
    let binaries = Binaries::find()?;
    let run = ["run", "--name", &name, "--nodes", "1", "--pods", "1", "--keep"];
    let output = Command::new(&binaries.lab)
        .args(run)
        .stdin(Stdio::null())
        .output()?;
    let kept = traces(&name);
    let printed = String::from_utf8_lossy(&output.stdout);
    netns::run(Command::new(&binaries.lab).args(["clean", "--name", &name]))?;
    ensure!(output.status.success() && printed.contains("PASS"), "{printed}");
    ensure!(
        printed.contains("birdc -s ") && printed.contains("clean --name"),
        "{printed}"
    );
    ensure!(kept?.len() > 5, "{printed}");
    let left = traces(&name)?;
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}

#[test]
fn a_crashed_lab_is_cleaned_whole() -> anyhow::Result<()> {
    require!(LAB);
    let name = name("crashed");
    let binaries = Binaries::find()?;
    let mut run = Command::new(&binaries.lab)
        .args(["run", "--name", &name])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    eventually("the lab runs agents", Duration::from_secs(20), || {
        ensure!(traces(&name)?.iter().any(|trace| trace.contains("node3")));
        Ok(())
    })?;
    run.kill()?;
    run.wait()?;
    let marked = processes_of(&name)?;
    netns::run(Command::new(&binaries.lab).args(["clean", "--name", &name]))?;
    ensure!(marked.len() > 5, "only {marked:?} ran");
    let left = (traces(&name)?, processes_of(&name)?);
    ensure!(left.0.is_empty() && left.1.is_empty(), "{left:?}");
    Ok(())
}

#[test]
fn an_interrupted_lab_takes_itself_down() -> anyhow::Result<()> {
    require!(LAB);
    let name = name("interrupted");
    let binaries = Binaries::find()?;
    let mut run = Command::new(&binaries.lab)
        .args(["run", "--name", &name, "--keep"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    eventually("the lab has namespaces", Duration::from_secs(20), || {
        ensure!(traces(&name)?.len() > 3);
        Ok(())
    })?;
    let pid = Pid::from_raw(i32::try_from(run.id())?).context("a process number")?;
    kill_process(pid, Signal::INT)?;
    let status = run.wait()?;
    ensure!(!status.success(), "an interrupted lab succeeded");
    let left = traces(&name)?;
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}

#[test]
fn every_mode_of_the_overlay_holds_and_takes_over_from_every_other() -> anyhow::Result<()> {
    require!(OVERLAY);
    let tour = Tour {
        routing: Routing::Direct,
        modes: vec![Mode::VxlanCrossSubnet, Mode::Unencapsulated, Mode::VxlanAlways],
        changes: vec![
            Mode::VxlanCrossSubnet,
            Mode::VxlanAlways,
            Mode::Unencapsulated,
            Mode::VxlanCrossSubnet,
        ],
    };
    overlay::prove(&tour, overlay::PACE, &Progress::start(Stream::Error))
}

#[test]
fn overlays_and_bgp_take_over_from_each_other() -> anyhow::Result<()> {
    require!(OVERLAY);
    let tour = Tour {
        routing: Routing::Bgp,
        modes: vec![Mode::Unencapsulated],
        changes: vec![
            Mode::VxlanAlways,
            Mode::Unencapsulated,
            Mode::VxlanCrossSubnet,
            Mode::Unencapsulated,
        ],
    };
    overlay::prove(&tour, overlay::PACE, &Progress::start(Stream::Error))
}

#[test]
fn ipip_holds_on_a_kernel_that_has_it_and_takes_over_from_bgp_and_vxlan() -> anyhow::Result<()> {
    require!(OVERLAY);
    require!(&[Need::VirtualMachine]);
    let tour = Tour {
        routing: Routing::Bgp,
        modes: vec![Mode::IpipAlways, Mode::IpipCrossSubnet],
        changes: vec![
            Mode::VxlanAlways,
            Mode::IpipAlways,
            Mode::Unencapsulated,
            Mode::IpipCrossSubnet,
            Mode::VxlanCrossSubnet,
            Mode::IpipCrossSubnet,
        ],
    };
    vm::prove(&tour).map(drop)
}
