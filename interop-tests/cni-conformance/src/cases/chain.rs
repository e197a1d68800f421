//! Chaining: a plugin behind another one (§2 "ADD", §5 "ADD Success", §3 "Deleting an attachment").

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::judgement::{Attached, Case, Judgement, Trial};

pub(super) const CASES: &[Case] = &[
    Case {
        name: "chain.prevresult-is-kept",
        clause: "§5 ADD Success: given a prevResult, MUST output it with its own modifications",
        since: "0.3.1",
        before: None,
        judge: prevresult_is_kept,
    },
    Case {
        name: "chain.indexes-are-moved",
        clause: "§5 ADD Success ips: interface is an index into the list that is output",
        since: "0.3.1",
        before: None,
        judge: indexes_are_moved,
    },
    Case {
        name: "chain.del-spares-others",
        clause: "§2 DEL: undoes what its own ADD did, not what prevResult has from other plugins",
        since: "0.4.0",
        before: None,
        judge: del_spares_others,
    },
];

/// The interface and the address that the plugin before made.
const PREVIOUS: (&str, &str) = ("prev0", "198.51.100.7/24");

/// A container in which another plugin has been, and the result of ADD behind it.
fn attached_behind_another(trial: &Trial<'_>) -> Result<Attached> {
    let pod = trial.pod()?;
    pod.netns.add_link(PREVIOUS.0, PREVIOUS.1)?;
    let mut ip = json!({"address": PREVIOUS.1, "interface": 0});
    if trial.version < "1.0.0" {
        ip["version"] = json!("4");
    }
    let previous = json!({
        "cniVersion": trial.version,
        "interfaces": [{"name": PREVIOUS.0, "sandbox": pod.netns.path()}],
        "ips": [ip],
    });
    let result = trial.add(&pod.with(|call| call.key("prevResult", previous)))?;
    Ok(Attached { pod, result })
}

fn has_interface(result: &Value, name: &str) -> bool {
    result["interfaces"]
        .as_array()
        .into_iter()
        .flatten()
        .any(|interface| interface["name"] == name)
}

fn prevresult_is_kept(trial: &Trial<'_>, judgement: &mut Judgement) -> Result<()> {
    let Attached { result, .. } = attached_behind_another(trial)?;
    judgement.must(has_interface(&result, PREVIOUS.0), || {
        format!("the interface {} of prevResult is lost", PREVIOUS.0)
    });
    let has_address = result["ips"]
        .as_array()
        .into_iter()
        .flatten()
        .any(|ip| ip["address"] == PREVIOUS.1);
    judgement.must(has_address, || {
        format!("the address {} of prevResult is lost", PREVIOUS.1)
    });
    Ok(())
}

fn indexes_are_moved(trial: &Trial<'_>, judgement: &mut Judgement) -> Result<()> {
    let attached = attached_behind_another(trial)?;
    if !has_interface(&attached.result, attached.ifname()) {
        judgement.skip("the plugin adds no interface when it is chained");
        return Ok(());
    }
    for ip in attached.result["ips"].as_array().into_iter().flatten() {
        let index = ip["interface"]
            .as_u64()
            .and_then(|index| usize::try_from(index).ok())
            .unwrap_or(usize::MAX);
        let name = attached.result["interfaces"][index]["name"]
            .as_str()
            .unwrap_or_default();
        let link = attached.pod.netns.link(name)?;
        let address = super::result_shape::cidr(&ip["address"]).context("an address that is none")?;
        judgement.must(link.is_some_and(|link| link.addresses.contains(&address)), || {
            format!(
                "{address} is said to be on {name:?}, and is not: {}",
                attached.result
            )
        });
    }
    Ok(())
}

fn del_spares_others(trial: &Trial<'_>, judgement: &mut Judgement) -> Result<()> {
    let attached = attached_behind_another(trial)?;
    let output = trial.del(&attached)?;
    judgement.must(output.succeeded(), || output.summary());
    judgement.must(attached.pod.netns.link(PREVIOUS.0)?.is_some(), || {
        format!("DEL removed {}, which another plugin made", PREVIOUS.0)
    });
    Ok(())
}
