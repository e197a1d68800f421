//! VERSION (§2 "VERSION", §5 "Version").

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::judgement::{Case, Judgement, Trial};

pub(super) const CASES: &[Case] = &[
    Case {
        name: "version.supported-versions",
        clause: "§5 Version: MUST print supportedVersions, a list of specification versions",
        since: "0.3.1",
        before: None,
        judge: supported_versions,
    },
    Case {
        name: "version.echo",
        clause: "§5 Version: cniVersion MUST be the value given on input",
        since: "0.3.1",
        before: None,
        judge: echo,
    },
    Case {
        name: "version.needs-only-command",
        clause: "§2 VERSION: CNI_COMMAND is the only required variable",
        since: "0.3.1",
        before: None,
        judge: needs_only_command,
    },
];

fn ask(trial: &Trial<'_>) -> Result<Value> {
    let stdin = json!({ "cniVersion": trial.version }).to_string();
    let output = trial
        .lab
        .execute("VERSION", &trial.lab.call(trial.version).stdin(stdin.as_bytes()))?;
    anyhow::ensure!(output.succeeded(), "VERSION failed: {}", output.summary());
    output
        .json()
        .with_context(|| format!("VERSION printed no JSON: {}", output.summary()))
}

fn supported_versions(trial: &Trial<'_>, judgement: &mut Judgement) -> Result<()> {
    let reply = ask(trial)?;
    let versions = reply["supportedVersions"].as_array().cloned().unwrap_or_default();
    judgement.must(!versions.is_empty(), || format!("no list of versions in {reply}"));
    for version in &versions {
        let numbers = version.as_str().unwrap_or_default().split('.');
        let valid =
            numbers.clone().count() == 3 && numbers.clone().all(|number| number.parse::<u32>().is_ok());
        judgement.must(valid, || format!("{version} is not a version"));
    }
    Ok(())
}

fn echo(trial: &Trial<'_>, judgement: &mut Judgement) -> Result<()> {
    let reply = ask(trial)?;
    judgement.must(reply["cniVersion"] == trial.version, || {
        format!(
            "asked in {}, answered cniVersion {}",
            trial.version, reply["cniVersion"]
        )
    });
    Ok(())
}

fn needs_only_command(trial: &Trial<'_>, judgement: &mut Judgement) -> Result<()> {
    let stdin = json!({ "cniVersion": trial.version }).to_string();
    let call = trial
        .lab
        .call(trial.version)
        .variable("CNI_PATH", "")
        .stdin(stdin.as_bytes());
    let output = trial.lab.execute("VERSION", &call)?;
    judgement.must(output.succeeded(), || output.summary());
    Ok(())
}
