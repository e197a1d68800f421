//! ADD (§2 "ADD", §5 "ADD Success").

use std::collections::BTreeMap;

use anyhow::Result;
use serde_json::Value;

use super::result_shape::{self, Asked, cidr, in_container};
use crate::judgement::{Attached, Case, Judgement, Trial};

pub(super) const CASES: &[Case] = &[
    Case {
        name: "add.result",
        clause: "§5 ADD Success: the keys of this version, cniVersion as on input, sandbox as CNI_NETNS",
        since: "0.3.1",
        before: None,
        judge: result,
    },
    Case {
        name: "add.stdout",
        clause: "§2 ADD: on success MUST print a result structure on stdout (one JSON object, nothing else)",
        since: "0.3.1",
        before: None,
        judge: stdout,
    },
    Case {
        name: "add.interface",
        clause: "§2 ADD: creates the interface CNI_IFNAME inside the container (and it is up)",
        since: "0.3.1",
        before: None,
        judge: interface,
    },
    Case {
        name: "add.interfaces-are-real",
        clause: "§5 ADD Success interfaces: all interfaces created, with their hardware addresses and MTU",
        since: "0.3.1",
        before: None,
        judge: interfaces_are_real,
    },
    Case {
        name: "add.addresses-are-real",
        clause: "§5 ADD Success ips: addresses assigned by this attachment, to the interface they point to",
        since: "0.3.1",
        before: None,
        judge: addresses_are_real,
    },
    Case {
        name: "add.routes-are-real",
        clause: "§5 ADD Success routes: routes created by this attachment",
        since: "0.3.1",
        before: None,
        judge: routes_are_real,
    },
    Case {
        name: "add.existing-interface",
        clause: "§2 ADD: an interface of that name in the container MUST be an error",
        since: "0.3.1",
        before: None,
        judge: existing_interface,
    },
    Case {
        name: "add.repeated",
        clause: "§2 ADD: the same container and interface again MUST be an error (it exists), and changes nothing",
        since: "0.3.1",
        before: None,
        judge: repeated,
    },
    Case {
        name: "add.second-interface",
        clause: "§2 ADD: a container may be added again with a different interface name",
        since: "0.3.1",
        before: None,
        judge: second_interface,
    },
    Case {
        name: "add.longest-interface-name",
        clause: "§2 CNI_IFNAME: used as given, or an error",
        since: "0.3.1",
        before: None,
        judge: longest_interface_name,
    },
    Case {
        name: "add.failure-leaves-nothing",
        clause: "§3 Lifecycle: after a failed ADD and its DEL nothing remains on the host",
        since: "0.3.1",
        before: None,
        judge: failure_leaves_nothing,
    },
    Case {
        name: "add.after-del",
        clause: "§2 ADD: may be called again after DEL",
        since: "0.3.1",
        before: None,
        judge: after_del,
    },
    Case {
        name: "add.without-args",
        clause: "§2 ADD: CNI_ARGS is optional",
        since: "0.3.1",
        before: None,
        judge: without_args,
    },
];

fn entries<'v>(result: &'v Value, key: &str) -> impl Iterator<Item = &'v Value> {
    result[key].as_array().into_iter().flatten()
}

fn result(trial: &Trial<'_>, judgement: &mut Judgement) -> Result<()> {
    let attached = trial.attached()?;
    let asked = Asked {
        version: trial.version,
        netns: attached.pod.netns.path(),
        ifname: attached.ifname(),
    };
    result_shape::judge(&attached.result, &asked, judgement);
    Ok(())
}

fn stdout(trial: &Trial<'_>, judgement: &mut Judgement) -> Result<()> {
    let output = trial.lab.run("ADD", &trial.pod()?)?;
    judgement.must(output.succeeded(), || output.summary());
    judgement.must(output.json().is_some_and(|json| json.is_object()), || {
        output.summary()
    });
    Ok(())
}

fn interface(trial: &Trial<'_>, judgement: &mut Judgement) -> Result<()> {
    let attached = trial.attached()?;
    let link = attached.pod.netns.link(attached.ifname())?;
    judgement.must(link.is_some(), || {
        format!("there is no {} in the container", attached.ifname())
    });
    judgement.should(link.is_none_or(|link| link.up), || {
        format!("{} is not up", attached.ifname())
    });
    Ok(())
}

fn interfaces_are_real(trial: &Trial<'_>, judgement: &mut Judgement) -> Result<()> {
    let attached = trial.attached()?;
    for interface in entries(&attached.result, "interfaces") {
        let namespace = if in_container(interface) {
            &*attached.pod.netns
        } else {
            &trial.lab.node
        };
        let Some(link) = namespace.link(interface["name"].as_str().unwrap_or_default())? else {
            judgement.must(false, || format!("does not exist: {interface}"));
            continue;
        };
        if let Some(mac) = interface["mac"].as_str().filter(|mac| !mac.is_empty()) {
            judgement.must(link.mac.eq_ignore_ascii_case(mac), || {
                format!("has the MAC {}: {interface}", link.mac)
            });
        }
        if let Some(mtu) = interface["mtu"].as_u64().filter(|mtu| *mtu != 0) {
            judgement.must(link.mtu == mtu, || {
                format!("has the MTU {}: {interface}", link.mtu)
            });
        }
    }
    Ok(())
}

fn addresses_are_real(trial: &Trial<'_>, judgement: &mut Judgement) -> Result<()> {
    let attached = trial.attached()?;
    let mut in_the_container = 0;
    for ip in entries(&attached.result, "ips") {
        let index = ip["interface"]
            .as_u64()
            .and_then(|index| usize::try_from(index).ok());
        let interface = &attached.result["interfaces"][index.unwrap_or(usize::MAX)];
        if !in_container(interface) {
            continue;
        }
        in_the_container += 1;
        let link = attached
            .pod
            .netns
            .link(interface["name"].as_str().unwrap_or_default())?;
        let held = link.map(|link| link.addresses).unwrap_or_default();
        judgement.must(
            cidr(&ip["address"]).is_some_and(|address| held.contains(&address)),
            || {
                format!(
                    "{} is not on {}, which has {held:?}",
                    ip["address"], interface["name"]
                )
            },
        );
    }
    if in_the_container == 0 {
        judgement.skip("the result has no address in the container");
    }
    Ok(())
}

fn routes_are_real(trial: &Trial<'_>, judgement: &mut Judgement) -> Result<()> {
    let attached = trial.attached()?;
    let routes = attached.pod.netns.routes()?;
    let mut count = 0;
    for route in entries(&attached.result, "routes") {
        count += 1;
        let gateway = route["gw"].as_str().and_then(|gw| gw.parse().ok());
        let found = routes.iter().any(|real| {
            Some(real.dst) == cidr(&route["dst"]) && (gateway.is_none() || real.gateway == gateway)
        });
        judgement.must(found, || format!("not in the container: {route}"));
    }
    if count == 0 {
        judgement.skip("the result has no routes");
    }
    Ok(())
}

fn existing_interface(trial: &Trial<'_>, judgement: &mut Judgement) -> Result<()> {
    let pod = trial.pod()?;
    pod.netns.add_link("eth0", "203.0.113.1/24")?;
    let output = trial.lab.run("ADD", &pod)?;
    judgement.must(!output.succeeded(), || "accepted although eth0 exists".into());
    let untouched = pod
        .netns
        .link("eth0")?
        .is_some_and(|link| link.addresses.iter().any(|a| a.ip().to_string() == "203.0.113.1"));
    judgement.must(untouched, || {
        "the interface that was there has lost its address or is gone".into()
    });
    Ok(())
}

fn repeated(trial: &Trial<'_>, judgement: &mut Judgement) -> Result<()> {
    let attached = trial.attached()?;
    let before = state_of(&attached)?;
    let output = trial.lab.run("ADD", &attached.pod)?;
    judgement.must(!output.succeeded(), || "accepted".into());
    let after = state_of(&attached)?;
    judgement.should(before == after, || {
        format!("the attachment changed: {before:?} became {after:?}")
    });
    Ok(())
}

/// The addresses of every link of the container, link-local ones aside (the kernel makes and removes those).
fn state_of(attached: &Attached) -> Result<BTreeMap<String, Vec<String>>> {
    let links = attached.pod.netns.links()?.into_iter();
    Ok(links
        .map(|link| {
            let addresses = link.addresses.iter().map(ToString::to_string);
            (
                link.name.clone(),
                addresses.filter(|address| !address.starts_with("fe80")).collect(),
            )
        })
        .collect())
}

fn second_interface(trial: &Trial<'_>, judgement: &mut Judgement) -> Result<()> {
    let attached = trial.attached()?;
    let second = attached.pod.with(|call| call.variable("CNI_IFNAME", "net1"));
    let output = trial.lab.run("ADD", &second)?;
    judgement.should(output.succeeded(), || output.summary());
    judgement.must(attached.pod.netns.link(attached.ifname())?.is_some(), || {
        "the first interface is gone".into()
    });
    if output.succeeded() {
        judgement.must(second.netns.link("net1")?.is_some(), || "there is no net1".into());
    }
    Ok(())
}

fn longest_interface_name(trial: &Trial<'_>, judgement: &mut Judgement) -> Result<()> {
    let name = "fifteen.letters";
    let pod = trial.pod()?.with(|call| call.variable("CNI_IFNAME", name));
    let output = trial.lab.run("ADD", &pod)?;
    if output.succeeded() {
        judgement.must(pod.netns.link(name)?.is_some(), || format!("there is no {name}"));
    } else {
        judgement.should(false, || output.summary());
    }
    Ok(())
}

fn failure_leaves_nothing(trial: &Trial<'_>, judgement: &mut Judgement) -> Result<()> {
    // What the first attachment makes once for all, such as a bridge, is not what is looked for.
    let first = trial.attached()?;
    trial.del(&first)?;
    let before = trial.lab.node.link_names()?;
    let pod = trial.pod()?;
    pod.netns.add_link("eth0", "203.0.113.1/24")?;
    let output = trial.lab.run("ADD", &pod)?;
    if output.succeeded() {
        judgement.skip("ADD did not fail");
        return Ok(());
    }
    let left =
        |names: std::collections::BTreeSet<String>| names.difference(&before).cloned().collect::<Vec<_>>();
    let after_add = left(trial.lab.node.link_names()?);
    judgement.should(after_add.is_empty(), || {
        format!("the failed ADD left {after_add:?} on the host")
    });
    let del = trial.lab.run("DEL", &pod)?;
    judgement.must(del.succeeded(), || {
        format!("DEL after the failed ADD: {}", del.summary())
    });
    let after_del = left(trial.lab.node.link_names()?);
    judgement.must(after_del.is_empty(), || {
        format!("its DEL left {after_del:?} on the host")
    });
    Ok(())
}

fn after_del(trial: &Trial<'_>, judgement: &mut Judgement) -> Result<()> {
    let attached = trial.attached()?;
    let del = trial.del(&attached)?;
    judgement.must(del.succeeded(), || format!("DEL: {}", del.summary()));
    let again = trial.lab.run("ADD", &attached.pod)?;
    judgement.must(again.succeeded(), || {
        format!("ADD after DEL: {}", again.summary())
    });
    Ok(())
}

fn without_args(trial: &Trial<'_>, judgement: &mut Judgement) -> Result<()> {
    let output = trial
        .lab
        .run("ADD", &trial.pod()?.with(|call| call.variable("CNI_ARGS", "")))?;
    judgement.must(output.succeeded(), || output.summary());
    Ok(())
}
