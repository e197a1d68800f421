//! DEL (§2 "DEL", §3 "Lifecycle").

use anyhow::Result;

use crate::judgement::{Case, Judgement, Trial};
use crate::lab::kubernetes_args;

pub(super) const CASES: &[Case] = &[
    Case {
        name: "del.interface",
        clause: "§2 DEL: deletes the interface CNI_IFNAME inside the container",
        since: "0.3.1",
        before: None,
        judge: interface,
    },
    Case {
        name: "del.prints-nothing",
        clause: "§5 Result Types: DEL has no result (nothing on stdout)",
        since: "0.3.1",
        before: None,
        judge: prints_nothing,
    },
    Case {
        name: "del.host-side",
        clause: "§2 DEL: undoes what ADD did, on the host too",
        since: "0.3.1",
        before: None,
        judge: host_side,
    },
    Case {
        name: "del.twice",
        clause: "§2 DEL: MUST accept multiple calls and succeed if the interface is missing",
        since: "0.3.1",
        before: None,
        judge: twice,
    },
    Case {
        name: "del.never-added",
        clause: "§2 DEL: MUST succeed if the interface is missing (ADD never came)",
        since: "0.3.1",
        before: None,
        judge: never_added,
    },
    Case {
        name: "del.without-netns",
        clause: "§2 DEL: CNI_NETNS is optional; 0.4.0: clean up as much as possible and succeed",
        since: "0.3.1",
        before: None,
        judge: without_netns,
    },
    Case {
        name: "del.without-prevresult",
        clause: "0.4.0 DEL: without prevResult clean up as much as possible and succeed",
        since: "0.4.0",
        before: None,
        judge: without_prevresult,
    },
    Case {
        name: "del.namespace-gone",
        clause: "§2 DEL: SHOULD complete without error if the namespace no longer exists",
        since: "0.3.1",
        before: None,
        judge: namespace_gone,
    },
    Case {
        name: "del.namespace-replaced",
        clause: "§2 DEL: SHOULD complete without error if the path is no namespace any more (reboot, unmounted)",
        since: "0.3.1",
        before: None,
        judge: namespace_replaced,
    },
    Case {
        name: "del.leaves-others",
        clause: "§3: an attachment is identified by (CNI_CONTAINERID, CNI_IFNAME); DEL of one MUST leave others alone",
        since: "0.3.1",
        before: None,
        judge: leaves_others,
    },
    Case {
        name: "del.older-sandbox",
        clause: "§3: identity is not the pod's name: DEL of an older sandbox MUST leave the newer one alone",
        since: "0.3.1",
        before: None,
        judge: older_sandbox,
    },
    Case {
        name: "del.recycled-path",
        clause: "§3: identity is not the path: runtimes have passed one that names another container by now (cri-o#2849)",
        since: "0.3.1",
        before: None,
        judge: recycled_path,
    },
];

fn interface(trial: &Trial<'_>, judgement: &mut Judgement) -> Result<()> {
    let attached = trial.attached()?;
    let output = trial.del(&attached)?;
    judgement.must(output.succeeded(), || output.summary());
    judgement.must(attached.pod.netns.link(attached.ifname())?.is_none(), || {
        format!("{} is still in the container", attached.ifname())
    });
    Ok(())
}

fn prints_nothing(trial: &Trial<'_>, judgement: &mut Judgement) -> Result<()> {
    let output = trial.del(&trial.attached()?)?;
    judgement.should(output.stdout.trim().is_empty(), || output.summary());
    Ok(())
}

fn host_side(trial: &Trial<'_>, judgement: &mut Judgement) -> Result<()> {
    // What the first attachment makes once for all, such as a bridge, may stay.
    let first = trial.attached()?;
    trial.del(&first)?;
    let before = trial.lab.node.link_names()?;
    let second = trial.attached()?;
    trial.del(&second)?;
    let after = trial.lab.node.link_names()?;
    let left: Vec<&String> = after.difference(&before).collect();
    judgement.must(left.is_empty(), || format!("left on the host: {left:?}"));
    Ok(())
}

fn twice(trial: &Trial<'_>, judgement: &mut Judgement) -> Result<()> {
    let attached = trial.attached()?;
    for count in ["first", "second", "third"] {
        let output = trial.del(&attached)?;
        judgement.must(output.succeeded(), || {
            format!("{count} DEL: {}", output.summary())
        });
    }
    Ok(())
}

fn never_added(trial: &Trial<'_>, judgement: &mut Judgement) -> Result<()> {
    let output = trial.lab.run("DEL", &trial.pod()?)?;
    judgement.must(output.succeeded(), || output.summary());
    Ok(())
}

fn without_netns(trial: &Trial<'_>, judgement: &mut Judgement) -> Result<()> {
    let attached = trial.attached()?;
    let pod = trial
        .follow_up(&attached)
        .with(|call| call.variable("CNI_NETNS", ""));
    let output = trial.lab.run("DEL", &pod)?;
    judgement.must(output.succeeded(), || output.summary());
    Ok(())
}

fn without_prevresult(trial: &Trial<'_>, judgement: &mut Judgement) -> Result<()> {
    let attached = trial.attached()?;
    let output = trial.lab.run("DEL", &attached.pod)?;
    judgement.must(output.succeeded(), || output.summary());
    judgement.should(attached.pod.netns.link(attached.ifname())?.is_none(), || {
        format!("{} is still in the container", attached.ifname())
    });
    Ok(())
}

fn namespace_gone(trial: &Trial<'_>, judgement: &mut Judgement) -> Result<()> {
    let attached = trial.attached()?;
    attached.pod.netns.destroy();
    let output = trial.del(&attached)?;
    judgement.should(output.succeeded(), || output.summary());
    Ok(())
}

fn namespace_replaced(trial: &Trial<'_>, judgement: &mut Judgement) -> Result<()> {
    let attached = trial.attached()?;
    attached.pod.netns.destroy();
    let file = trial.lab.scratch().join("left-over-mount-point");
    std::fs::write(&file, "")?;
    let pod = trial
        .follow_up(&attached)
        .with(|call| call.variable("CNI_NETNS", &file.to_string_lossy()));
    let output = trial.lab.run("DEL", &pod)?;
    judgement.should(output.succeeded(), || output.summary());
    Ok(())
}

fn leaves_others(trial: &Trial<'_>, judgement: &mut Judgement) -> Result<()> {
    let (one, other) = (trial.attached()?, trial.attached()?);
    trial.del(&one)?;
    let link = other.pod.netns.link(other.ifname())?;
    judgement.must(
        link.is_some_and(|link| {
            link.addresses
                .iter()
                .any(|a| !a.ip().to_string().starts_with("fe80"))
        }),
        || "the other container has lost its interface or its addresses".into(),
    );
    if trial.version >= "0.4.0" {
        let check = trial.check(&other)?;
        judgement.must(check.succeeded(), || {
            format!("CHECK of the other container: {}", check.summary())
        });
    }
    Ok(())
}

fn older_sandbox(trial: &Trial<'_>, judgement: &mut Judgement) -> Result<()> {
    let name = format!("same-name-{}", std::process::id());
    let mut sandboxes = Vec::new();
    for _ in 0..2 {
        let pod = trial.pod()?;
        let args = kubernetes_args(&name, pod.call.get("CNI_CONTAINERID"));
        let pod = pod.with(|call| call.variable("CNI_ARGS", &args));
        let result = trial.add(&pod)?;
        sandboxes.push(crate::judgement::Attached { pod, result });
    }
    let [older, newer] = sandboxes.as_slice() else {
        return Ok(());
    };
    let del = trial.del(older)?;
    judgement.must(del.succeeded(), || {
        format!("DEL of the older sandbox: {}", del.summary())
    });
    judgement.must(newer.pod.netns.link(newer.ifname())?.is_some(), || {
        "the newer sandbox has lost its interface".into()
    });
    if trial.version >= "0.4.0" {
        let check = trial.check(newer)?;
        judgement.must(check.succeeded(), || {
            format!("CHECK of the newer sandbox: {}", check.summary())
        });
    }
    Ok(())
}

fn recycled_path(trial: &Trial<'_>, judgement: &mut Judgement) -> Result<()> {
    let (gone, living) = (trial.attached()?, trial.attached()?);
    gone.pod.netns.destroy();
    let pod = trial
        .follow_up(&gone)
        .with(|call| call.variable("CNI_NETNS", living.pod.netns.path()));
    let output = trial.lab.run("DEL", &pod)?;
    judgement.should(output.succeeded(), || output.summary());
    judgement.should(living.pod.netns.link(living.ifname())?.is_some(), || {
        "the container that lives at this path now has lost its interface".into()
    });
    Ok(())
}
