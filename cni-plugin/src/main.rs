//! `calidris-cni`, the CNI plugin: environment and stdin in, one request to the agent, JSON on stdout out.
//!
//! Invariants: stdout carries nothing but one JSON object (a result, a version reply or an error) or nothing at all;
//! the exit code is 0 on success and 1 on failure; stderr is silent unless the configuration says `"log": "stderr"`.
//! VERSION is answered here, everything else by the agent. Under the name `calidris-ipam` it is the address management of
//! other plugins; with the `ipam.type` of another plugin that one manages ours.

mod delegate;
mod netns;

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;

use calidris_cni::contract::{
    AddressManagement, CONTRACT_VERSION, ContractError, MAX_MESSAGE, Operation, Reply, Request, Step,
};
use calidris_cni::error::{CniError, ErrorCode};
use calidris_cni::invocation::{Environment, Verb};
use calidris_cni::result::{AddResult, Dns};
use calidris_cni::socket;
use calidris_cni::spec::{AttachmentId, PluginLog, version_of_request};
use calidris_cni::version::{CniVersion, VersionReply};
use delegate::Delegate;
use serde_json::Value;

/// The other name of this program: a link to it.
const IPAM_PLUGIN: &str = "calidris-ipam";

fn main() -> ExitCode {
    if std::env::args()
        .nth(1)
        .is_some_and(|argument| argument == "--version")
    {
        let versions = CniVersion::list();
        let line = format!(
            "calidris-cni {} (CNI {versions}; contract {CONTRACT_VERSION})\n",
            env!("CARGO_PKG_VERSION")
        );
        return exit_code(io::stdout().write_all(line.as_bytes()).is_ok());
    }
    let mut stdin = Vec::new();
    match run(&mut stdin) {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(output)) => exit_code(print(&output).is_ok()),
        Err(error) => {
            // Nobody is left to tell if stdout is closed; the exit code says it all.
            let _ = print(&error_json(&error, &stdin));
            ExitCode::FAILURE
        }
    }
}

/// Serves one invocation; `stdin` keeps what was read, so that an error can be told in the caller's version.
fn run(stdin: &mut Vec<u8>) -> Result<Option<Value>, CniError> {
    let environment = Environment::read(|name| std::env::var_os(name))?;
    read_stdin(stdin)?;
    if environment.verb == Verb::Version {
        let version = version_of_request(stdin)?.unwrap_or_else(|| CniVersion::LATEST.as_str().to_owned());
        return Ok(Some(
            serde_json::to_value(VersionReply::new(version)).unwrap_or_default(),
        ));
    }
    let mut request = environment.into_request(stdin)?;
    let outcome = if is_called_for_addresses() {
        request.addresses = AddressManagement::Only;
        request.config.take_options_of_ipam()?;
        ask_agent(&request)
    } else {
        match Delegate::of(&request.config)? {
            Some(delegate) => delegate.serve(request.clone(), stdin, ask_agent),
            None => ask_agent(&request),
        }
    };
    if request.config.options.log == PluginLog::Stderr {
        log(&request, &outcome);
    }
    Ok(outcome?.map(|result| output(result, &request)))
}

/// Whether this program was run under its other name, as the `ipam.type` of another plugin.
fn is_called_for_addresses() -> bool {
    let program = std::env::args_os().next().unwrap_or_default();
    Path::new(&program)
        .file_name()
        .is_some_and(|name| name == IPAM_PLUGIN)
}

fn read_stdin(stdin: &mut Vec<u8>) -> Result<(), CniError> {
    let limit = u64::try_from(MAX_MESSAGE).unwrap_or(u64::MAX);
    let failed = |error: io::Error| {
        CniError::new(
            ErrorCode::IO_FAILURE,
            "cannot read the network configuration from stdin",
        )
        .with_details(error.to_string())
    };
    io::stdin()
        .lock()
        .take(limit.saturating_add(1))
        .read_to_end(stdin)
        .map_err(failed)?;
    if stdin.len() > MAX_MESSAGE {
        stdin.clear();
        return Err(CniError::new(
            ErrorCode::DECODING_FAILURE,
            format!("the network configuration on stdin exceeds the limit of {MAX_MESSAGE} bytes"),
        ));
    }
    Ok(())
}

fn ask_agent(request: &Request) -> Result<Option<AddResult>, CniError> {
    let netns = netns::open_for(&request.operation)?;
    let options = &request.config.options;
    let reply = socket::call(
        &options.socket,
        request,
        netns.as_ref().map(AsFd::as_fd),
        options.timeout,
    )
    .map_err(|error| contract_failure(&error, request))?;
    match (reply, &request.operation) {
        (Reply::Failed { error }, _) => Err(error),
        (Reply::Added { result }, Operation::Add(_)) => Ok(Some(result)),
        (Reply::Done, operation) if !matches!(operation, Operation::Add(_)) => Ok(None),
        (_, operation) => Err(CniError::new(
            ErrorCode::INTERNAL,
            format!("the agent's answer is not one to {}", operation.command()),
        )),
    }
}

fn contract_failure(error: &ContractError, request: &Request) -> CniError {
    let socket = request.config.options.socket.display();
    let absent_code = if request.operation == Operation::Status {
        ErrorCode::UNAVAILABLE
    } else {
        ErrorCode::TRY_AGAIN_LATER
    };
    match error {
        ContractError::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
            CniError::new(ErrorCode::IO_FAILURE, format!("no permission to use the agent's socket {socket}"))
        }
        ContractError::Io { step: Step::Connect, .. } => {
            CniError::new(absent_code, format!("the Calidris agent is not running on this node (socket {socket})"))
        }
        ContractError::Io { .. } => CniError::new(absent_code, "the Calidris agent went away during the request"),
        ContractError::TimedOut(_) => CniError::new(
            absent_code,
            format!("the Calidris agent did not answer within {} seconds", request.config.options.timeout.as_secs()),
        ),
        ContractError::Version { theirs } => CniError::new(
            ErrorCode::CONTRACT_MISMATCH,
            format!("the Calidris agent speaks contract version {theirs}, this plugin {CONTRACT_VERSION}: install the plugin that came with the agent"),
        ),
        ContractError::TooLong { .. } => CniError::new(ErrorCode::INVALID_CONFIG, "request or answer is too long"),
        ContractError::Malformed(_) | ContractError::Descriptor(_) => {
            CniError::new(ErrorCode::INTERNAL, "plugin and agent do not understand each other")
        }
    }
    .with_details(error.to_string())
}

/// What ADD prints: the agent's result behind `prevResult`, in the version of the request. Addresses alone are told
/// without any interface (CNI spec 1.1.0 §4).
fn output(mut result: AddResult, request: &Request) -> Value {
    let config = &request.config;
    if request.addresses == AddressManagement::Only {
        let mut json = result.to_json(config.cni_version);
        if let Some(keys) = json.as_object_mut() {
            keys.remove("interfaces");
        }
        return json;
    }
    if result.dns == Dns::default() {
        result.dns = config.dns.clone();
    }
    match &config.prev_result {
        Some(previous) => result.appended_to(previous),
        None => result,
    }
    .to_json(config.cni_version)
}

/// The error object, in the caller's version if that is one we speak, else in our newest.
fn error_json(error: &CniError, stdin: &[u8]) -> Value {
    let version = version_of_request(stdin)
        .ok()
        .flatten()
        .and_then(|text| CniVersion::parse(&text).ok());
    let mut json = serde_json::to_value(error).unwrap_or_default();
    json["cniVersion"] = Value::from(version.unwrap_or(CniVersion::LATEST).as_str());
    json
}

fn print(json: &Value) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{json}")?;
    stdout.flush()
}

fn log(request: &Request, outcome: &Result<Option<AddResult>, CniError>) {
    let command = request.operation.command();
    let network = &request.config.name;
    let attachment = request
        .operation
        .attachment()
        .map_or_else(String::new, |attachment| {
            let AttachmentId { container_id, ifname } = &attachment.id;
            format!(
                " container={container_id} ifname={ifname} netns={:?}",
                attachment.netns_path
            )
        });
    let outcome = match outcome {
        Ok(_) => "done".to_owned(),
        Err(error) => format!("failed: {error}: {}", error.details),
    };
    // A closed stderr is no reason to fail.
    let _ = writeln!(
        io::stderr(),
        "calidris-cni {command} network={network}{attachment}: {outcome}"
    );
}

fn exit_code(success: bool) -> ExitCode {
    if success {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
