//! What a runtime passes to a plugin, checked: environment variables and the configuration on stdin, turned into the
//! request for the agent (CNI spec 1.1.0 §2 "Parameters" and the lists of required variables of each operation).
//!
//! Invariants: the environment is judged first and whole, so that one error names every variable that is wrong; DEL is
//! refused only for what makes it impossible (identity, configuration), since a runtime that cannot delete a sandbox
//! keeps it for ever. No I/O here.

use std::ffi::OsString;

use crate::args::CniArgs;
use crate::contract::{AddressManagement, Attachment, CONTRACT_VERSION, Operation, Request};
use crate::error::{CniError, ErrorCode};
use crate::spec::{AttachmentId, BadPrevResult, NetConf, is_valid_ifname, is_valid_name};
use crate::version::CniVersion;

/// The value of `CNI_COMMAND`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// `ADD`
    Add,
    /// `DEL`
    Del,
    /// `CHECK`
    Check,
    /// `STATUS`
    Status,
    /// `GC`
    Gc,
    /// `VERSION`
    Version,
}

/// The plugin's environment. Variables that an operation neither needs nor was given are empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Environment {
    /// `CNI_COMMAND`
    pub verb: Verb,
    /// `CNI_CONTAINERID`
    pub container_id: String,
    /// `CNI_IFNAME`
    pub ifname: String,
    /// `CNI_NETNS`
    pub netns_path: String,
    /// `CNI_ARGS`, not yet parsed.
    pub args: String,
    /// `TRACEPARENT`, if it is well formed (W3C Trace Context §3.2; anything else is to be ignored).
    pub trace_parent: Option<String>,
}

impl Verb {
    const ALL: [(&'static str, Self); 6] = [
        ("ADD", Self::Add),
        ("DEL", Self::Del),
        ("CHECK", Self::Check),
        ("STATUS", Self::Status),
        ("GC", Self::Gc),
        ("VERSION", Self::Version),
    ];

    /// The name of the operation.
    pub fn as_str(self) -> &'static str {
        Self::ALL
            .into_iter()
            .find(|(_, verb)| *verb == self)
            .map_or("", |(name, _)| name)
    }

    fn requires(self, variable: &str) -> bool {
        match variable {
            "CNI_CONTAINERID" | "CNI_IFNAME" => matches!(self, Self::Add | Self::Del | Self::Check),
            "CNI_NETNS" => matches!(self, Self::Add | Self::Check),
            "CNI_PATH" => matches!(self, Self::Gc),
            _ => false,
        }
    }

    /// The first version of the specification that has this operation.
    fn since(self) -> CniVersion {
        match self {
            Self::Add | Self::Del | Self::Version => CniVersion::V0_3_1,
            Self::Check => CniVersion::V0_4_0,
            Self::Status | Self::Gc => CniVersion::V1_1_0,
        }
    }
}

impl Environment {
    /// Reads and checks the variables of the operation that `CNI_COMMAND` names.
    ///
    /// # Errors
    /// Code 4; the message names every variable that is missing or invalid.
    pub fn read(lookup: impl Fn(&str) -> Option<OsString>) -> Result<Self, CniError> {
        let mut problems = Vec::new();
        let mut text = |name: &'static str| match lookup(name).unwrap_or_default().into_string() {
            Ok(text) => text,
            Err(_) => {
                problems.push(format!("{name} is not UTF-8"));
                String::new()
            }
        };
        let command = text("CNI_COMMAND");
        let (container_id, ifname) = (text("CNI_CONTAINERID"), text("CNI_IFNAME"));
        let (netns_path, path, args) = (text("CNI_NETNS"), text("CNI_PATH"), text("CNI_ARGS"));
        let Some(verb) = Verb::ALL
            .into_iter()
            .find(|(name, _)| *name == command)
            .map(|(_, verb)| verb)
        else {
            return Err(invalid_environment(&[if command.is_empty() {
                "CNI_COMMAND is missing".to_owned()
            } else {
                format!("CNI_COMMAND is {command:?}, expected ADD, DEL, CHECK, STATUS, GC or VERSION")
            }]));
        };
        for (name, value) in [
            ("CNI_CONTAINERID", &container_id),
            ("CNI_NETNS", &netns_path),
            ("CNI_IFNAME", &ifname),
            ("CNI_PATH", &path),
        ] {
            if value.is_empty()
                && verb.requires(name)
                && !problems.iter().any(|known| known.starts_with(name))
            {
                problems.push(format!("{name} is missing"));
            }
        }
        if !container_id.is_empty() && !is_valid_name(&container_id) {
            problems.push(format!("CNI_CONTAINERID is {container_id:?}, expected letters, digits, '_', '.', '-', first a letter or digit"));
        }
        if !ifname.is_empty() && !is_valid_ifname(&ifname) {
            problems.push(format!("CNI_IFNAME is {ifname:?}, expected 1 to 15 bytes, not '.' or '..', without '/', ':' and white space"));
        }
        if !problems.is_empty() && verb != Verb::Version {
            return Err(invalid_environment(&problems));
        }
        let trace_parent = lookup("TRACEPARENT")
            .and_then(|value| value.into_string().ok())
            .filter(|value| is_trace_parent(value));
        Ok(Self {
            verb,
            container_id,
            ifname,
            netns_path,
            args,
            trace_parent,
        })
    }

    /// The request for the agent: this environment with the configuration on `stdin`.
    ///
    /// # Errors
    /// Code 4 for `CNI_ARGS`, 6 for undecodable bytes, 1 for a version we do not speak or that lacks the operation,
    /// 7 for an invalid configuration.
    pub fn into_request(self, stdin: &[u8]) -> Result<Request, CniError> {
        let bad_prev_result = if self.verb == Verb::Del {
            BadPrevResult::Ignore
        } else {
            BadPrevResult::Refuse
        };
        let config = NetConf::parse(stdin, bad_prev_result)?;
        if config.cni_version < self.verb.since() {
            return Err(CniError::new(
                ErrorCode::INCOMPATIBLE_VERSION,
                format!("CNI version {} has no {}", config.cni_version, self.verb.as_str()),
            )
            .with_details(format!(
                "{} exists since {}",
                self.verb.as_str(),
                self.verb.since()
            )));
        }
        if self.verb == Verb::Check && config.prev_result.is_none() {
            return Err(CniError::new(
                ErrorCode::INVALID_CONFIG,
                "invalid network configuration: prevResult: missing, and CHECK needs it",
            ));
        }
        let timeout_ms = u64::try_from(config.options.timeout.as_millis()).unwrap_or(u64::MAX);
        let trace_parent = self.trace_parent.clone();
        let operation = self.into_operation(&config)?;
        Ok(Request {
            contract: CONTRACT_VERSION,
            operation,
            config,
            timeout_ms,
            trace_parent,
            addresses: AddressManagement::Agent,
        })
    }

    fn into_operation(self, config: &NetConf) -> Result<Operation, CniError> {
        let args = match (self.verb, CniArgs::parse(&self.args)) {
            (Verb::Add | Verb::Check, parsed) => parsed?,
            (_, parsed) => parsed.unwrap_or_default(),
        };
        let attachment = Attachment {
            id: AttachmentId {
                container_id: self.container_id,
                ifname: self.ifname,
            },
            netns_path: self.netns_path,
            args,
        };
        match self.verb {
            Verb::Add => Ok(Operation::Add(attachment)),
            Verb::Del => Ok(Operation::Del(attachment)),
            Verb::Check => Ok(Operation::Check(attachment)),
            Verb::Status => Ok(Operation::Status),
            Verb::Gc => Ok(Operation::Gc {
                valid_attachments: config.valid_attachments()?,
            }),
            Verb::Version => Err(CniError::new(
                ErrorCode::INTERNAL,
                "VERSION is answered without asking the agent",
            )),
        }
    }
}

fn invalid_environment(problems: &[String]) -> CniError {
    CniError::new(
        ErrorCode::INVALID_ENVIRONMENT,
        format!("invalid environment variables: {}", problems.join("; ")),
    )
}

/// Whether `text` is `version-trace-parent-flags` in lower-case hexadecimal.
fn is_trace_parent(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    parts.iter().map(|part| part.len()).eq([2, 32, 16, 2])
        && text
            .bytes()
            .all(|byte| matches!(byte, b'-' | b'0'..=b'9' | b'a'..=b'f'))
}
