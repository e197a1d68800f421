//! `CNI_ARGS` (CNI conventions, "CNI_ARGS"): `KEY=value` pairs separated by semicolons.
//!
//! Invariants: a key we do not know is an error unless `IgnoreUnknown` is true, as in every reference plugin; unknown
//! keys are kept all the same, for logs.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::{CniError, ErrorCode};

/// The parsed pairs. Absent ones are empty.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CniArgs {
    /// `K8S_POD_NAMESPACE`
    pub pod_namespace: String,
    /// `K8S_POD_NAME`
    pub pod_name: String,
    /// `K8S_POD_UID`: tells apart two pods that bear one name after another.
    pub pod_uid: String,
    /// `K8S_POD_INFRA_CONTAINER_ID`
    pub infra_container_id: String,
    /// `IP`: an address asked for, with or without prefix length, uninterpreted.
    pub ip: String,
    /// `MAC`: a hardware address asked for, uninterpreted.
    pub mac: String,
    /// Every other pair.
    pub other: BTreeMap<String, String>,
}

impl CniArgs {
    /// Reads the variable's value.
    ///
    /// # Errors
    /// Code 4, naming `CNI_ARGS`, for a pair without `=`, an `IgnoreUnknown` that is not a boolean, and unknown keys
    /// without `IgnoreUnknown`.
    pub fn parse(text: &str) -> Result<Self, CniError> {
        let mut args = Self::default();
        let mut ignore_unknown = false;
        for pair in text.split(';').filter(|pair| !pair.is_empty()) {
            let Some((key, value)) = pair.split_once('=') else {
                return Err(invalid(&format!("{pair:?} is not KEY=value")));
            };
            let value = value.to_owned();
            match key {
                "K8S_POD_NAMESPACE" => args.pod_namespace = value,
                "K8S_POD_NAME" => args.pod_name = value,
                "K8S_POD_UID" => args.pod_uid = value,
                "K8S_POD_INFRA_CONTAINER_ID" => args.infra_container_id = value,
                "IP" => args.ip = value,
                "MAC" => args.mac = value,
                "IgnoreUnknown" => ignore_unknown = parse_bool(&value)?,
                _ => {
                    args.other.insert(key.to_owned(), value);
                }
            }
        }
        if !ignore_unknown && !args.other.is_empty() {
            let unknown: Vec<&str> = args.other.keys().map(String::as_str).collect();
            return Err(invalid(&format!(
                "unknown keys {unknown:?} without IgnoreUnknown=1"
            )));
        }
        Ok(args)
    }
}

fn parse_bool(value: &str) -> Result<bool, CniError> {
    match value {
        "1" | "true" | "True" | "TRUE" => Ok(true),
        "0" | "false" | "False" | "FALSE" => Ok(false),
        _ => Err(invalid(&format!(
            "IgnoreUnknown={value}: expected 1, 0, true or false"
        ))),
    }
}

fn invalid(why: &str) -> CniError {
    CniError::new(
        ErrorCode::INVALID_ENVIRONMENT,
        format!("invalid environment variable CNI_ARGS: {why}"),
    )
}
