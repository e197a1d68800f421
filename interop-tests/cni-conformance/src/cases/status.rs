//! STATUS (§2 "STATUS").

use anyhow::Result;

use crate::judgement::{Case, Judgement, Trial};

pub(super) const CASES: &[Case] = &[
    Case {
        name: "status.before-1.1.0",
        clause: "1.1.0 introduced STATUS; in an older version it is an error",
        since: "0.3.1",
        before: Some("1.1.0"),
        judge: before_1_1_0,
    },
    Case {
        name: "status.ready",
        clause: "§2 STATUS: MUST exit with 0 if ready to serve ADD, which it then serves",
        since: "1.1.0",
        before: None,
        judge: ready,
    },
];

fn before_1_1_0(trial: &Trial<'_>, judgement: &mut Judgement) -> Result<()> {
    let output = trial.lab.execute("STATUS", &trial.lab.call(trial.version))?;
    judgement.must(!output.succeeded(), || "accepted".into());
    Ok(())
}

fn ready(trial: &Trial<'_>, judgement: &mut Judgement) -> Result<()> {
    let output = trial.lab.execute("STATUS", &trial.lab.call(trial.version))?;
    judgement.must(output.succeeded(), || output.summary());
    judgement.should(output.stdout.trim().is_empty(), || {
        format!("prints something: {}", output.summary())
    });
    trial.attached()?;
    Ok(())
}
