//! Bad input (§2 "Errors", §5 "Error").

use anyhow::Result;
use serde_json::json;

use crate::judgement::{Case, Judgement, Trial};
use crate::lab::{Call, Output};

pub(super) const CASES: &[Case] = &[
    Case {
        name: "errors.object",
        clause: "§5 Error: on stdout, with cniVersion, code, msg; §2 Errors: exit code MUST not be 0",
        since: "0.3.1",
        before: None,
        judge: object,
    },
    Case {
        name: "errors.malformed-json",
        clause: "§5 Error code 6: content that cannot be decoded",
        since: "0.3.1",
        before: None,
        judge: malformed_json,
    },
    Case {
        name: "errors.version-string",
        clause: "§5 Error code 6: a version string that cannot be decoded",
        since: "0.3.1",
        before: None,
        judge: version_string,
    },
    Case {
        name: "errors.unknown-version",
        clause: "§5 Error code 1: an incompatible CNI version",
        since: "0.3.1",
        before: None,
        judge: unknown_version,
    },
    Case {
        name: "errors.no-name",
        clause: "§3 Deriving request configuration: name is always there; §5 Error code 7",
        since: "0.3.1",
        before: None,
        judge: no_name,
    },
    Case {
        name: "errors.bad-name",
        clause: "§1 name: starts alphanumeric, then also _ . -; §5 Error code 7",
        since: "0.3.1",
        before: None,
        judge: bad_name,
    },
    Case {
        name: "errors.unknown-command",
        clause: "§2 Parameters: CNI_COMMAND is one of the operations; §5 Error code 4",
        since: "0.3.1",
        before: None,
        judge: unknown_command,
    },
    Case {
        name: "errors.missing-variables",
        clause: "§2 ADD, DEL, CHECK: required variables; §5 Error code 4 names the invalid ones",
        since: "0.3.1",
        before: None,
        judge: missing_variables,
    },
    Case {
        name: "errors.container-id",
        clause: "§2 CNI_CONTAINERID: starts alphanumeric, then also _ . -; §5 Error code 4",
        since: "0.3.1",
        before: None,
        judge: container_id,
    },
    Case {
        name: "errors.interface-name",
        clause: "§2 CNI_IFNAME: an unusable name MUST be an error (0.4.0: not '.', '..', '/', ':', space, >15); code 4",
        since: "0.3.1",
        before: None,
        judge: interface_name,
    },
    Case {
        name: "errors.no-namespace",
        clause: "§2 ADD: CNI_NETNS names the container's namespace; one that does not exist cannot be served",
        since: "0.3.1",
        before: None,
        judge: no_namespace,
    },
];

/// The operation was refused; the error, if it is the specified kind, has the code and names the variable.
fn refused(judgement: &mut Judgement, what: &str, output: &Output, code: u64, names: Option<&str>) {
    judgement.must(!output.succeeded(), || format!("{what}: accepted"));
    if output.succeeded() {
        return;
    }
    judgement.should(output.error_code() == Some(code), || {
        format!("{what}: expected code {code}, got {}", output.summary())
    });
    if let Some(name) = names {
        judgement.should(output.stdout.contains(name), || {
            format!("{what}: the error does not name {name}: {}", output.summary())
        });
    }
}

/// ADD with the request changed by `change`, in a container of its own.
fn add_with(trial: &Trial<'_>, change: impl FnOnce(Call) -> Call) -> Result<Output> {
    trial.lab.run("ADD", &trial.pod()?.with(change))
}

fn object(trial: &Trial<'_>, judgement: &mut Judgement) -> Result<()> {
    let output = add_with(trial, |call| call.variable("CNI_CONTAINERID", ""))?;
    judgement.must(!output.succeeded(), || {
        "ADD without CNI_CONTAINERID was accepted".into()
    });
    let error = output.json().unwrap_or_default();
    judgement.should(error.is_object(), || {
        format!("no JSON object on stdout: {}", output.summary())
    });
    judgement.should(error["code"].is_u64(), || {
        format!("code is not a number: {error}")
    });
    judgement.should(error["msg"].as_str().is_some_and(|msg| !msg.is_empty()), || {
        format!("no msg: {error}")
    });
    judgement.should(error["cniVersion"].is_string(), || {
        format!("no cniVersion: {error}")
    });
    Ok(())
}

fn malformed_json(trial: &Trial<'_>, judgement: &mut Judgement) -> Result<()> {
    for bytes in ["", "{", "[]", "not json"] {
        let output = add_with(trial, |call| call.stdin(bytes.as_bytes()))?;
        refused(judgement, &format!("stdin {bytes:?}"), &output, 6, None);
    }
    Ok(())
}

fn version_string(trial: &Trial<'_>, judgement: &mut Judgement) -> Result<()> {
    for version in [json!("one"), json!("1"), json!(1)] {
        let output = add_with(trial, |call| call.key("cniVersion", version.clone()))?;
        refused(judgement, &format!("cniVersion {version}"), &output, 6, None);
    }
    Ok(())
}

fn unknown_version(trial: &Trial<'_>, judgement: &mut Judgement) -> Result<()> {
    let output = add_with(trial, |call| call.key("cniVersion", "99.0.0"))?;
    refused(judgement, "cniVersion 99.0.0", &output, 1, None);
    Ok(())
}

fn no_name(trial: &Trial<'_>, judgement: &mut Judgement) -> Result<()> {
    refused(
        judgement,
        "no name",
        &add_with(trial, |call| call.without_key("name"))?,
        7,
        None,
    );
    Ok(())
}

fn bad_name(trial: &Trial<'_>, judgement: &mut Judgement) -> Result<()> {
    for name in ["../../tmp/x", "-net", "a b"] {
        refused(
            judgement,
            &format!("name {name:?}"),
            &add_with(trial, |call| call.key("name", name))?,
            7,
            None,
        );
    }
    Ok(())
}

fn unknown_command(trial: &Trial<'_>, judgement: &mut Judgement) -> Result<()> {
    for command in ["UPDATE", "add", ""] {
        let output = trial.lab.execute(command, &trial.pod()?.call)?;
        refused(
            judgement,
            &format!("CNI_COMMAND {command:?}"),
            &output,
            4,
            Some("CNI_COMMAND"),
        );
    }
    Ok(())
}

fn missing_variables(trial: &Trial<'_>, judgement: &mut Judgement) -> Result<()> {
    let both: &[&str] = &["CNI_CONTAINERID", "CNI_IFNAME"];
    let all: &[&str] = &["CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS"];
    for (command, variables) in [("ADD", all), ("DEL", both), ("CHECK", all)] {
        if command == "CHECK" && trial.version < "0.4.0" {
            continue;
        }
        for variable in variables {
            let pod = trial.pod()?.with(|call| call.variable(variable, ""));
            let output = trial.lab.run(command, &pod)?;
            refused(
                judgement,
                &format!("{command} without {variable}"),
                &output,
                4,
                Some(variable),
            );
        }
    }
    Ok(())
}

fn container_id(trial: &Trial<'_>, judgement: &mut Judgement) -> Result<()> {
    for id in ["-abc", ".", "a/b", "a b"] {
        let output = add_with(trial, |call| call.variable("CNI_CONTAINERID", id))?;
        refused(
            judgement,
            &format!("CNI_CONTAINERID {id:?}"),
            &output,
            4,
            Some("CNI_CONTAINERID"),
        );
    }
    Ok(())
}

fn interface_name(trial: &Trial<'_>, judgement: &mut Judgement) -> Result<()> {
    for name in [".", "..", "a/b", "a:b", "a b", "sixteen-letters-"] {
        let output = add_with(trial, |call| call.variable("CNI_IFNAME", name))?;
        refused(judgement, &format!("CNI_IFNAME {name:?}"), &output, 4, None);
    }
    Ok(())
}

fn no_namespace(trial: &Trial<'_>, judgement: &mut Judgement) -> Result<()> {
    let file = trial.lab.scratch().join("not-a-namespace");
    std::fs::write(&file, "")?;
    for path in ["/proc/0/ns/net", &file.to_string_lossy()] {
        let output = add_with(trial, |call| call.variable("CNI_NETNS", path))?;
        judgement.must(!output.succeeded(), || format!("CNI_NETNS {path}: accepted"));
    }
    Ok(())
}
