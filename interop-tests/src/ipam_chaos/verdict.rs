//! What must be true when all is mended.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::process::Command;

use anyhow::ensure;

use super::members::Members;
use super::workload::{Held, on};
use crate::binaries::Binaries;
use crate::netns::Namespace;

/// Every address that is allocated is held by a client under its handle, and the other way round.
pub(crate) fn holds_what_the_clients_hold(
    members: &Members,
    from: &Namespace,
    held: &[Held],
) -> anyhow::Result<()> {
    let mut expected: BTreeMap<IpAddr, String> = BTreeMap::new();
    for one in held {
        for &address in &one.addresses {
            let other = expected.insert(address, one.handle.clone());
            ensure!(
                other.is_none(),
                "{address} is held by {other:?} and {}",
                one.handle
            );
        }
    }
    let stored = allocated(members, from)?;
    let lost: Vec<_> = expected
        .iter()
        .filter(|(address, handle)| stored.get(address) != Some(handle))
        .collect();
    let nobodys: Vec<_> = stored
        .iter()
        .filter(|(address, _)| !expected.contains_key(address))
        .collect();
    ensure!(
        lost.is_empty() && nobodys.is_empty(),
        "held and not allocated: {lost:?}; allocated and not held: {nobodys:?}"
    );
    Ok(())
}

/// No address, no handle, no endpoint.
pub(crate) fn nothing_is_left(members: &Members, from: &Namespace) -> anyhow::Result<()> {
    let stored = allocated(members, from)?;
    ensure!(stored.is_empty(), "still allocated: {stored:?}");
    let (handles, endpoints) = on(members, from, async |ipam| {
        let inventory = ipam.inventory().await?;
        let handles: Vec<String> = inventory.handles.keys().cloned().collect();
        let endpoints: Vec<String> = inventory.endpoints.keys().cloned().collect();
        Ok((handles, endpoints))
    })?;
    ensure!(
        handles.is_empty() && endpoints.is_empty(),
        "left over: handles {handles:?}, endpoints {endpoints:?}"
    );
    Ok(())
}

/// `calidris ipam check`, as an operator runs it.
pub(crate) fn check_finds_nothing(
    binaries: &Binaries,
    from: &Namespace,
    members: &Members,
    when: &str,
) -> anyhow::Result<()> {
    let output = from.output(
        Command::new(&binaries.agent)
            .args(["ipam", "check"])
            .env("ETCD_ENDPOINTS", members.endpoints().join(",")),
    )?;
    ensure!(
        output.status.success(),
        "calidris ipam check, {when}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

fn allocated(members: &Members, from: &Namespace) -> anyhow::Result<BTreeMap<IpAddr, String>> {
    on(members, from, async |ipam| {
        let inventory = ipam.inventory().await?;
        ensure!(
            inventory.unreadable.is_empty(),
            "unreadable: {:?}",
            inventory.unreadable
        );
        let blocks = inventory.blocks.values();
        Ok(blocks
            .flat_map(|block| block.allocations())
            .map(|allocation| {
                let handle = allocation.attribute.handle().unwrap_or_default().to_owned();
                (allocation.address, handle)
            })
            .collect())
    })
}
