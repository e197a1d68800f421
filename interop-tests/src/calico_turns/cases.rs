//! What is proved, one function for each fact, in the order in which they run. Each takes away the containers that it added.

use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::Value;

use super::said::{calico_borrowed, calico_notes, calico_usage, our_borrowed, our_notes, our_usage};
use super::site::{Affinity, Container, Side, Site};
use crate::calico;

/// How many adds and deletions there are in turn, and after how many the judges look.
const TURNS: usize = 48;
const JUDGED_EVERY: usize = 8;
/// More containers than this at a time would fill the pool.
const MOST_CONTAINERS: usize = 30;
/// Addresses of the IPv4 pool.
const MOST_ADDRESSES: usize = 64;
/// Containers that are added at once, by each plugin on each node.
const AT_ONCE: usize = 5;
/// How often Calico's plugin is killed half way.
const KILLS: usize = 12;

/// A fact and how it is proved.
type Case = (&'static str, fn(&mut Site<'_>) -> anyhow::Result<()>);

/// All of them.
pub(super) const CASES: &[Case] = &[
    (
        "either plugin adds and deletes what the other added, in turn",
        turns,
    ),
    (
        "both commands say the same of every address and block",
        say_the_same,
    ),
    (
        "containers of both plugins reach each other, on one node and across",
        reach,
    ),
    (
        "our address management below Calico's plugin",
        our_ipam_below_calico,
    ),
    ("both add at once and delete each other's at once", at_once),
    (
        "Calico's plugin killed at any moment: our DEL and what we find leave nothing",
        killed,
    ),
    (
        "at the limit of blocks for a node neither plugin gives more",
        limits,
    ),
    ("addresses released by the other's command", released_by_the_other),
    ("a datastore that calicoctl locked is not written", locked),
    (
        "calidris gives back a node with what Calico's plugin gave on it",
        node_removed_by_us,
    ),
    (
        "calicoctl deletes a node with what our plugin gave on it",
        node_removed_by_calico,
    ),
];

fn some_side(site: &mut Site<'_>) -> Side {
    if site.random.once_in(2) {
        Side::Ours
    } else {
        Side::Calicos
    }
}

fn some_number(site: &mut Site<'_>, below: usize) -> usize {
    usize::try_from(site.random.below(below as u64)).unwrap_or_default()
}

fn turns(site: &mut Site<'_>) -> anyhow::Result<()> {
    let mut crosswise = 0;
    for turn in 1..=TURNS {
        let side = some_side(site);
        let count = site.containers.len();
        if count > 0 && (count >= MOST_CONTAINERS || site.random.once_in(3)) {
            let index = some_number(site, count);
            let (id, container) = site.containers.iter().nth(index).context("it was counted")?;
            crosswise += usize::from(container.by != side);
            let id = id.clone();
            site.delete(side, &id)?;
        } else {
            let node = some_number(site, site.nodes.len());
            site.add(side, node)?;
        }
        if turn % JUDGED_EVERY == 0 {
            site.is_right().with_context(|| format!("after {turn} turns"))?;
        }
    }
    ensure!(
        crosswise > 0,
        "nothing was deleted by the other plugin: choose another seed"
    );
    site.delete_all()?;
    site.is_right()
}

/// So many containers on the first node that it borrows from the second node's block, by either plugin.
fn fill(site: &mut Site<'_>) -> anyhow::Result<Vec<Container>> {
    let mut containers = vec![site.add(Side::Calicos, 1)?];
    for number in 0..MOST_ADDRESSES {
        containers.push(site.add(Side::BOTH[number % 2], 0)?);
        if our_borrowed(&site.calidris_json("ipam show --borrowed")?)?.len() > 1 {
            return Ok(containers);
        }
    }
    anyhow::bail!("{MOST_ADDRESSES} containers, and nothing is borrowed")
}

fn say_the_same(site: &mut Site<'_>) -> anyhow::Result<()> {
    let containers = fill(site)?;
    for container in &containers {
        for address in &container.addresses {
            let theirs = calico_notes(&site.calicoctl(&format!("ipam show --ip={address}"))?);
            let ours = our_notes(&site.calidris_json(&format!("ipam show --ip {address}"))?);
            ensure!(
                ours.is_some() && ours == theirs,
                "{address}, given by {:?}: calicoctl says {theirs:?}, calidris {ours:?}",
                container.by
            );
        }
    }
    let theirs = calico_usage(&site.calicoctl("ipam show --show-blocks")?)?;
    let ours = our_usage(&site.calidris_json("ipam show --blocks")?)?;
    ensure!(ours == theirs, "in use: calicoctl {theirs:?}, calidris {ours:?}");
    let theirs = calico_borrowed(&site.calicoctl("ipam show --show-borrowed")?);
    let ours = our_borrowed(&site.calidris_json("ipam show --borrowed")?)?;
    ensure!(
        !ours.is_empty() && ours == theirs,
        "borrowed: calicoctl {theirs:?}, calidris {ours:?}"
    );
    site.is_right()?;
    site.delete_all()?;
    site.is_right()
}

fn reach(site: &mut Site<'_>) -> anyhow::Result<()> {
    let mut containers = Vec::new();
    for node in 0..site.nodes.len() {
        for side in Side::BOTH {
            containers.push(site.add(side, node)?);
        }
    }
    for from in &containers {
        for to in &containers {
            let address = to.addresses.first().context("no address")?;
            ping(from, &address.to_string()).with_context(|| {
                format!(
                    "from {:?}'s on node {} to {:?}'s on node {}",
                    from.by, from.node, to.by, to.node
                )
            })?;
        }
    }
    site.delete_all()?;
    site.is_right()
}

/// Waits: what Calico's plugin adds is routed when our agent has heard of it.
fn ping(from: &Container, address: &str) -> anyhow::Result<()> {
    let mut command = std::process::Command::new("ping");
    command.args(["-c", "1", "-i", "0.2", "-w", "10", address]);
    from.namespace.run(&mut command).map(drop)
}

fn our_ipam_below_calico(site: &mut Site<'_>) -> anyhow::Result<()> {
    let runtime = site.calico_with_our_ipam()?;
    let (attachment, namespace) = site.new_container()?;
    let added = runtime.add(&attachment)?;
    let whole = (attachment.clone(), namespace.clone());
    let container = site.note((Side::Calicos, 0), whole, added.result)?;
    ensure!(container.addresses.len() == 2, "{:?}", container.addresses);
    site.is_right()?;
    runtime.del(&attachment, None)?;
    site.containers.remove(&attachment.container_id);
    site.end(&attachment, 0, &namespace)?;
    site.is_right()
}

fn at_once(site: &mut Site<'_>) -> anyhow::Result<()> {
    let mut asked = Vec::new();
    for _ in 0..AT_ONCE {
        for side in Side::BOTH {
            for node in 0..site.nodes.len() {
                asked.push(((side, node), site.new_container()?));
            }
        }
    }
    let adding = &*site;
    let added: Vec<anyhow::Result<Value>> = std::thread::scope(|scope| {
        let add = |&((side, node), (ref attachment, _)): &((Side, usize), (_, _))| {
            let runtime = adding.runtime(side, node)?;
            anyhow::Ok(
                runtime
                    .add(attachment)
                    .with_context(|| format!("ADD by {side:?}"))?
                    .result,
            )
        };
        let threads: Vec<_> = asked.iter().map(|one| scope.spawn(move || add(one))).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| anyhow::bail!("an ADD panicked")))
            .collect()
    });
    for ((whose, container), result) in asked.into_iter().zip(added) {
        site.note(whose, container, result?)?;
    }
    site.is_right()?;
    let containers: Vec<Container> = site.containers.values().cloned().collect();
    let deleting = &*site;
    let deleted: Vec<anyhow::Result<()>> = std::thread::scope(|scope| {
        let delete = |container: &Container| {
            let other = if container.by == Side::Ours {
                Side::Calicos
            } else {
                Side::Ours
            };
            deleting
                .runtime(other, container.node)?
                .del(&container.attachment, None)
        };
        let threads: Vec<_> = containers
            .iter()
            .map(|one| scope.spawn(move || delete(one)))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| anyhow::bail!("a DEL panicked")))
            .collect()
    });
    deleted.into_iter().collect::<anyhow::Result<()>>()?;
    for container in &containers {
        site.end(&container.attachment, container.node, &container.namespace)?;
    }
    site.containers.clear();
    site.is_right()
}

fn killed(site: &mut Site<'_>) -> anyhow::Result<()> {
    for _ in 0..KILLS {
        let node = some_number(site, site.nodes.len());
        let (attachment, namespace) = site.new_container()?;
        let after = Duration::from_millis(20 + site.random.below(130));
        site.runtime(Side::Calicos, node)?
            .add_and_kill(&attachment, after)?;
        // What a runtime does after an ADD that failed.
        site.runtime(Side::Ours, node)?.del(&attachment, None)?;
        site.end(&attachment, node, &namespace)?;
    }
    // What Calico left half done and no handle names: an affinity without block, a block without affinity.
    let report = site.file("report.json")?;
    let found = site.calidris_output("ipam check -o json")?;
    std::fs::write(&report, &found.stdout)?;
    let findings: Value = serde_json::from_slice(&found.stdout)?;
    for finding in findings["findings"].as_array().context("no findings")? {
        let at = finding["at"].as_str().unwrap_or_default();
        ensure!(
            at.contains("/ipam/v2/host/") || at.contains("/ipam/v2/assignment/"),
            "our DEL left {finding}"
        );
    }
    site.calidris(&format!("ipam release --from-report {}", report.display()))?;
    site.is_right()
}

fn limits(site: &mut Site<'_>) -> anyhow::Result<()> {
    for affinity in [Affinity::Strict, Affinity::Loose] {
        site.configure(affinity, 1)?;
        // Blocks that a node has beyond the limit are used: both plugins give until they are full, then neither does.
        for side in Side::BOTH {
            let why = loop {
                match site.add(side, 0) {
                    Ok(_) => {}
                    Err(error) => break format!("{error:#}"),
                }
                ensure!(
                    site.containers.len() <= MOST_ADDRESSES,
                    "{side:?} gave more than the pool has"
                );
            };
            let named = if side == Side::Ours {
                "maxBlocksPerHost"
            } else {
                "limit"
            };
            ensure!(
                why.contains(named),
                "{side:?}, {affinity:?}: no limit is named: {why}"
            );
        }
        site.is_right()?;
        site.delete_all()?;
    }
    site.configure(Affinity::Loose, 0)?;
    site.is_right()
}

fn released_by_the_other(site: &mut Site<'_>) -> anyhow::Result<()> {
    let ours = site.add(Side::Ours, 0)?;
    let calicos = site.add(Side::Calicos, 0)?;
    let of = |container: &Container| container.addresses.first().copied().context("no address");
    let (ours_has, calicos_has) = (of(&ours)?, of(&calicos)?);
    let said = site.calicoctl(&format!("ipam release --ip={ours_has}"))?;
    ensure!(said.contains("Successfully released"), "{said}");
    let shown = site.calidris_json(&format!("ipam show --ip {ours_has}"))?;
    ensure!(shown["state"] == "free", "{shown}");
    let refused = site.calidris_output(&format!("ipam release --ip {calicos_has}"))?;
    ensure!(
        refused.status.code() == Some(1),
        "an address in use was released without --force"
    );
    site.calidris(&format!("ipam release --ip {calicos_has} --force"))?;
    let said = site.calicoctl(&format!("ipam show --ip={calicos_has}"))?;
    ensure!(said.contains("is not assigned"), "{said}");
    site.delete_all()?;
    site.is_right()
}

fn locked(site: &mut Site<'_>) -> anyhow::Result<()> {
    site.add(Side::Ours, 0)?;
    site.calicoctl("datastore migrate lock")?;
    for side in Side::BOTH {
        let why = site.add(side, 0).err().context("an ADD in a locked datastore")?;
        ensure!(
            format!("{why:#}").contains("not ready") || format!("{why:#}").contains("locked"),
            "{side:?} refuses for another reason: {why:#}"
        );
    }
    site.is_right()?;
    site.calicoctl("datastore migrate unlock")?;
    site.delete_all()?;
    site.is_right()
}

/// The second node has containers of both; its agent is gone.
fn leave_second_node(site: &mut Site<'_>) -> anyhow::Result<()> {
    for side in [Side::Calicos, Side::Ours, Side::Calicos, Side::Ours] {
        site.add(side, 1)?;
        site.add(side, 0)?;
    }
    site.nodes.get_mut(1).context("no second node")?.kill_agent()
}

/// Nothing of the second node is left, all of the first is.
fn second_node_is_gone(site: &mut Site<'_>) -> anyhow::Result<()> {
    let gone = site.containers.extract_if(.., |_, container| container.node == 1);
    let gone: Vec<Container> = gone.map(|(_, container)| container).collect();
    for container in &gone {
        site.end(&container.attachment, container.node, &container.namespace)?;
    }
    site.is_right()?;
    let blocks = calico::blocks_of(site.etcd(), "node-b")?;
    ensure!(blocks.is_empty(), "node-b still has {blocks:?}");
    let shown = site.calicoctl("ipam show --show-blocks")?;
    let usage = calico_usage(&shown)?;
    let ours = our_usage(&site.calidris_json("ipam show --blocks")?)?;
    ensure!(usage == ours, "in use: calicoctl {usage:?}, calidris {ours:?}");
    Ok(())
}

fn node_removed_by_us(site: &mut Site<'_>) -> anyhow::Result<()> {
    leave_second_node(site)?;
    site.etcd()
        .delete_prefix("/calico/resources/v3/projectcalico.org/nodes/node-b")?;
    site.calidris("ipam release --node node-b")?;
    second_node_is_gone(site)?;
    site.bring_second_node_back()
}

fn node_removed_by_calico(site: &mut Site<'_>) -> anyhow::Result<()> {
    leave_second_node(site)?;
    site.calicoctl("delete node node-b")?;
    second_node_is_gone(site)?;
    site.delete_all()?;
    site.is_right()
}
