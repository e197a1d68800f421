//! CHECK (§2 "CHECK").

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::result_shape::{cidr, in_container};
use crate::judgement::{Attached, Case, Judgement, Trial};

pub(super) const CASES: &[Case] = &[
    Case {
        name: "check.before-0.4.0",
        clause: "0.4.0 introduced CHECK; in an older version it is an error (code 1)",
        since: "0.3.1",
        before: Some("0.4.0"),
        judge: before_0_4_0,
    },
    Case {
        name: "check.after-add",
        clause: "§2 CHECK: MUST handle being called immediately after ADD",
        since: "0.4.0",
        before: None,
        judge: after_add,
    },
    Case {
        name: "check.prints-nothing",
        clause: "0.4.0 CHECK: the plugin returns nothing or an error",
        since: "0.4.0",
        before: None,
        judge: prints_nothing,
    },
    Case {
        name: "check.without-prevresult",
        clause: "§2 CHECK: MUST consult prevResult; without one there is nothing to consult",
        since: "0.4.0",
        before: None,
        judge: without_prevresult,
    },
    Case {
        name: "check.interface-gone",
        clause: "§2 CHECK: SHOULD fail if a created interface is missing",
        since: "0.4.0",
        before: None,
        judge: interface_gone,
    },
    Case {
        name: "check.interface-down",
        clause: "§2 CHECK: SHOULD fail if the container is known to be unreachable (its interface is down)",
        since: "0.4.0",
        before: None,
        judge: interface_down,
    },
    Case {
        name: "check.address-gone",
        clause: "§2 CHECK: SHOULD fail if a created address is missing",
        since: "0.4.0",
        before: None,
        judge: address_gone,
    },
    Case {
        name: "check.route-gone",
        clause: "§2 CHECK: SHOULD fail if a created route is missing",
        since: "0.4.0",
        before: None,
        judge: route_gone,
    },
    Case {
        name: "check.namespace-gone",
        clause: "§2 CHECK: SHOULD fail if what was created is missing (the whole namespace)",
        since: "0.4.0",
        before: None,
        judge: namespace_gone,
    },
    Case {
        name: "check.released",
        clause: "§2 CHECK: SHOULD fail if the IP reservation is gone (after DEL)",
        since: "0.4.0",
        before: None,
        judge: released,
    },
    Case {
        name: "check.later-changes",
        clause: "§2 CHECK: MUST allow for a later plugin's changes (an address and a route more in the container)",
        since: "0.4.0",
        before: None,
        judge: later_changes,
    },
    Case {
        name: "check.later-interfaces",
        clause: "§2 CHECK: MUST allow for a later plugin's changes (its own interface and address in prevResult)",
        since: "0.4.0",
        before: None,
        judge: later_interfaces,
    },
];

fn before_0_4_0(trial: &Trial<'_>, judgement: &mut Judgement) -> Result<()> {
    let attached = trial.attached()?;
    let pod = attached
        .pod
        .with(|call| call.key("prevResult", attached.result.clone()));
    let output = trial.lab.run("CHECK", &pod)?;
    judgement.must(!output.succeeded(), || "accepted".into());
    judgement.should(output.error_code() == Some(1), || {
        format!("expected code 1, got {}", output.summary())
    });
    Ok(())
}

fn after_add(trial: &Trial<'_>, judgement: &mut Judgement) -> Result<()> {
    let output = trial.check(&trial.attached()?)?;
    judgement.must(output.succeeded(), || output.summary());
    Ok(())
}

fn prints_nothing(trial: &Trial<'_>, judgement: &mut Judgement) -> Result<()> {
    let output = trial.check(&trial.attached()?)?;
    judgement.must(output.stdout.trim().is_empty(), || output.summary());
    Ok(())
}

fn without_prevresult(trial: &Trial<'_>, judgement: &mut Judgement) -> Result<()> {
    let output = trial.lab.run("CHECK", &trial.attached()?.pod)?;
    judgement.should(!output.succeeded(), || "accepted".into());
    Ok(())
}

/// Attaches, lets `damage` happen, and expects CHECK to notice.
fn notices(
    trial: &Trial<'_>,
    judgement: &mut Judgement,
    damage: impl FnOnce(&Attached) -> Result<Option<String>>,
) -> Result<()> {
    let attached = trial.attached()?;
    let before = trial.check(&attached)?;
    anyhow::ensure!(
        before.succeeded(),
        "CHECK fails already after ADD: {}",
        before.summary()
    );
    let Some(damage) = damage(&attached)? else {
        judgement.skip("the result has nothing of this kind");
        return Ok(());
    };
    let output = trial.check(&attached)?;
    judgement.should(!output.succeeded(), || format!("not noticed: {damage}"));
    Ok(())
}

fn interface_gone(trial: &Trial<'_>, judgement: &mut Judgement) -> Result<()> {
    notices(trial, judgement, |attached| {
        attached
            .pod
            .netns
            .ip(&format!("link delete {}", attached.ifname()))?;
        Ok(Some(format!("{} deleted", attached.ifname())))
    })
}

fn interface_down(trial: &Trial<'_>, judgement: &mut Judgement) -> Result<()> {
    notices(trial, judgement, |attached| {
        attached
            .pod
            .netns
            .ip(&format!("link set {} down", attached.ifname()))?;
        Ok(Some(format!("{} down", attached.ifname())))
    })
}

fn address_gone(trial: &Trial<'_>, judgement: &mut Judgement) -> Result<()> {
    notices(trial, judgement, |attached| {
        let Some(address) = container_address(&attached.result) else {
            return Ok(None);
        };
        let routes: Vec<String> = attached
            .pod
            .netns
            .ip("route show")?
            .lines()
            .map(str::to_owned)
            .collect();
        attached
            .pod
            .netns
            .ip(&format!("address delete {address} dev {}", attached.ifname()))?;
        // The kernel may take routes along; they come back, so that only the address is missing.
        for route in routes {
            let _ = attached.pod.netns.ip(&format!("route replace {route}"));
        }
        Ok(Some(format!("address {address} deleted")))
    })
}

fn route_gone(trial: &Trial<'_>, judgement: &mut Judgement) -> Result<()> {
    notices(trial, judgement, |attached| {
        let Some(dst) = attached.result["routes"]
            .as_array()
            .into_iter()
            .flatten()
            .find_map(|route| cidr(&route["dst"]))
        else {
            return Ok(None);
        };
        let family = if dst.is_ipv4() { "-4" } else { "-6" };
        attached
            .pod
            .netns
            .ip(&format!("{family} route delete {dst}"))
            .context("the route of the result")?;
        Ok(Some(format!("route {dst} deleted")))
    })
}

fn namespace_gone(trial: &Trial<'_>, judgement: &mut Judgement) -> Result<()> {
    notices(trial, judgement, |attached| {
        attached.pod.netns.destroy();
        Ok(Some("the namespace ended".into()))
    })
}

fn released(trial: &Trial<'_>, judgement: &mut Judgement) -> Result<()> {
    notices(trial, judgement, |attached| {
        let del = trial.del(attached)?;
        anyhow::ensure!(del.succeeded(), "DEL failed: {}", del.summary());
        Ok(Some("DEL".into()))
    })
}

fn later_changes(trial: &Trial<'_>, judgement: &mut Judgement) -> Result<()> {
    let attached = trial.attached()?;
    attached
        .pod
        .netns
        .ip(&format!("address add 198.51.100.99/32 dev {}", attached.ifname()))?;
    attached.pod.netns.add_link("later0", "198.51.100.7/24")?;
    attached.pod.netns.ip("route add 203.0.113.0/24 dev later0")?;
    let output = trial.check(&attached)?;
    judgement.must(output.succeeded(), || output.summary());
    Ok(())
}

fn later_interfaces(trial: &Trial<'_>, judgement: &mut Judgement) -> Result<()> {
    let mut attached = trial.attached()?;
    attached.pod.netns.add_link("later0", "198.51.100.7/24")?;
    attached.pod.netns.ip("route add 203.0.113.0/24 dev later0")?;
    let index = attached.result["interfaces"].as_array().map_or(0, Vec::len);
    let sandbox = attached.pod.netns.path().to_owned();
    push(
        &mut attached.result,
        "interfaces",
        json!({"name": "later0", "sandbox": sandbox}),
    );
    let mut ip = json!({"address": "198.51.100.7/24", "interface": index});
    if trial.version < "1.0.0" {
        ip["version"] = json!("4");
    }
    push(&mut attached.result, "ips", ip);
    push(&mut attached.result, "routes", json!({"dst": "203.0.113.0/24"}));
    let output = trial.check(&attached)?;
    judgement.must(output.succeeded(), || output.summary());
    Ok(())
}

fn push(result: &mut Value, key: &str, entry: Value) {
    if !result[key].is_array() {
        result[key] = json!([]);
    }
    if let Some(entries) = result[key].as_array_mut() {
        entries.push(entry);
    }
}

fn container_address(result: &Value) -> Option<ipnetwork::IpNetwork> {
    result["ips"].as_array()?.iter().find_map(|ip| {
        let index = usize::try_from(ip["interface"].as_u64()?).ok()?;
        in_container(&result["interfaces"][index]).then(|| cidr(&ip["address"]))?
    })
}
