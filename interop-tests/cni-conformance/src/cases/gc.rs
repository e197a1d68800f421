//! GC (§2 "GC").

use anyhow::Result;
use serde_json::{Value, json};

use crate::judgement::{Attached, Case, Judgement, Trial};
use crate::lab::{Call, Output};

pub(super) const CASES: &[Case] = &[
    Case {
        name: "gc.before-1.1.0",
        clause: "1.1.0 introduced GC; in an older version it is an error",
        since: "0.3.1",
        before: Some("1.1.0"),
        judge: before_1_1_0,
    },
    Case {
        name: "gc.keeps-valid",
        clause: "§2 GC: the attachments listed are still valid",
        since: "1.1.0",
        before: None,
        judge: keeps_valid,
    },
    Case {
        name: "gc.removes-stale",
        clause: "§2 GC: SHOULD remove the resources of attachments not listed (their reservations too)",
        since: "1.1.0",
        before: None,
        judge: removes_stale,
    },
    Case {
        name: "gc.interface-matters",
        clause: "§2 GC: an attachment is (containerID, ifname); another interface of a listed container is stale",
        since: "1.1.0",
        before: None,
        judge: interface_matters,
    },
    Case {
        name: "gc.prints-nothing",
        clause: "§2 GC: no output on success",
        since: "1.1.0",
        before: None,
        judge: prints_nothing,
    },
    Case {
        name: "gc.other-network",
        clause: "§2 GC is about the network it names; another network's attachments are not its business",
        since: "1.1.0",
        before: None,
        judge: other_network,
    },
    Case {
        name: "gc.then-del",
        clause: "§2 DEL: MUST succeed if things are missing, after GC too",
        since: "1.1.0",
        before: None,
        judge: then_del,
    },
];

fn gc(trial: &Trial<'_>, valid: &[&Attached], change: impl FnOnce(Call) -> Call) -> Result<Output> {
    let valid: Vec<Value> = valid
        .iter()
        .map(|attached| json!({"containerID": attached.pod.call.get("CNI_CONTAINERID"), "ifname": attached.ifname()}))
        .collect();
    trial.lab.execute(
        "GC",
        &change(
            trial
                .lab
                .call(trial.version)
                .key("cni.dev/valid-attachments", valid),
        ),
    )
}

fn before_1_1_0(trial: &Trial<'_>, judgement: &mut Judgement) -> Result<()> {
    let attached = trial.attached()?;
    let output = gc(trial, &[&attached], |call| call)?;
    judgement.must(!output.succeeded(), || "accepted".into());
    Ok(())
}

fn keeps_valid(trial: &Trial<'_>, judgement: &mut Judgement) -> Result<()> {
    let (one, other) = (trial.attached()?, trial.attached()?);
    let output = gc(trial, &[&one, &other], |call| call)?;
    judgement.must(output.succeeded(), || output.summary());
    for attached in [&one, &other] {
        let check = trial.check(attached)?;
        judgement.must(check.succeeded(), || {
            format!("CHECK of a valid attachment: {}", check.summary())
        });
    }
    Ok(())
}

fn removes_stale(trial: &Trial<'_>, judgement: &mut Judgement) -> Result<()> {
    let (valid, stale) = (trial.attached()?, trial.attached()?);
    let output = gc(trial, &[&valid], |call| call)?;
    judgement.must(output.succeeded(), || output.summary());
    let check = trial.check(&valid)?;
    judgement.must(check.succeeded(), || {
        format!("CHECK of the valid attachment: {}", check.summary())
    });
    let check = trial.check(&stale)?;
    judgement.should(!check.succeeded(), || {
        "the stale attachment is still whole: CHECK succeeds".into()
    });
    Ok(())
}

fn interface_matters(trial: &Trial<'_>, judgement: &mut Judgement) -> Result<()> {
    let first = trial.attached()?;
    let pod = first.pod.with(|call| call.variable("CNI_IFNAME", "net1"));
    let Ok(result) = trial.add(&pod) else {
        judgement.skip("a second interface cannot be added");
        return Ok(());
    };
    let second = Attached { pod, result };
    let output = gc(trial, &[&second], |call| call)?;
    judgement.must(output.succeeded(), || output.summary());
    let check = trial.check(&second)?;
    judgement.must(check.succeeded(), || {
        format!("CHECK of the valid attachment: {}", check.summary())
    });
    let check = trial.check(&first)?;
    judgement.should(!check.succeeded(), || {
        "the stale attachment is still whole: CHECK succeeds".into()
    });
    Ok(())
}

fn prints_nothing(trial: &Trial<'_>, judgement: &mut Judgement) -> Result<()> {
    let output = gc(trial, &[&trial.attached()?], |call| call)?;
    judgement.must(output.succeeded(), || output.summary());
    judgement.must(output.stdout.trim().is_empty(), || output.summary());
    Ok(())
}

fn other_network(trial: &Trial<'_>, judgement: &mut Judgement) -> Result<()> {
    let attached = trial.attached()?;
    let output = gc(trial, &[], |call| call.key("name", "another-network"))?;
    judgement.should(output.succeeded(), || output.summary());
    let check = trial.check(&attached)?;
    judgement.must(check.succeeded(), || {
        format!("GC of another network took it: {}", check.summary())
    });
    Ok(())
}

fn then_del(trial: &Trial<'_>, judgement: &mut Judgement) -> Result<()> {
    let attached = trial.attached()?;
    let output = gc(trial, &[], |call| call)?;
    judgement.must(output.succeeded(), || output.summary());
    let del = trial.del(&attached)?;
    judgement.must(del.succeeded(), || format!("DEL after GC: {}", del.summary()));
    Ok(())
}
