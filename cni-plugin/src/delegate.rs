//! Another plugin's address management under ours: `ipam.type` names a program in `CNI_PATH`, which is run as the
//! specification says of delegated plugins (CNI spec 1.1.0 §4), with the environment and the configuration as they came.
//!
//! Invariants: the other plugin goes first at ADD and last at all else, so that an address is in use only while it is
//! reserved; an ADD that fails after it has answered is undone with DEL. Its errors are told as it told them.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use calidris_cni::contract::{AddressManagement, Operation, Request};
use calidris_cni::error::{CniError, ErrorCode};
use calidris_cni::result::AddResult;
use calidris_cni::spec::NetConf;
use serde_json::Value;

/// Another plugin.
pub(crate) struct Delegate {
    program: PathBuf,
    name: String,
}

impl Delegate {
    /// The plugin that manages addresses for `config`, if it is not ours.
    ///
    /// # Errors
    /// Code 7 for a type that is no file name, 4 if `CNI_PATH` has no such program.
    pub(crate) fn of(config: &NetConf) -> Result<Option<Self>, CniError> {
        let Some(name) = config.ipam_delegate()? else {
            return Ok(None);
        };
        let path = std::env::var_os("CNI_PATH").unwrap_or_default();
        let program = std::env::split_paths(&path)
            .map(|folder| folder.join(name))
            .find(|program| program.is_file());
        match program {
            Some(program) => Ok(Some(Self {
                program,
                name: name.to_owned(),
            })),
            None => Err(CniError::new(
                ErrorCode::INVALID_ENVIRONMENT,
                format!("CNI_PATH has no plugin {name:?}, which ipam.type names"),
            )
            .with_details(format!("CNI_PATH is {}", path.display()))),
        }
    }

    /// Serves `request` with `ask`, the agent, and this plugin.
    ///
    /// # Errors
    /// The first one; of a failed ADD what could not be undone is among the details.
    pub(crate) fn serve(
        &self,
        mut request: Request,
        stdin: &[u8],
        ask: impl Fn(&Request) -> Result<Option<AddResult>, CniError>,
    ) -> Result<Option<AddResult>, CniError> {
        if !matches!(request.operation, Operation::Add(_)) {
            request.addresses = AddressManagement::Delegated(AddResult::default());
            // What the agent has goes in any case, and so does what the plugin has.
            let ours = ask(&request);
            let theirs = self.run(request.operation.command(), stdin);
            return ours.and_then(|_| theirs.map(|_| None));
        }
        let given = self.run("ADD", stdin)?;
        let attached = AddResult::from_json(&given)
            .map_err(|error| {
                CniError::new(
                    ErrorCode::DECODING_FAILURE,
                    format!("plugin {} gave no result", self.name),
                )
                .with_details(error.details)
            })
            .and_then(|given| {
                request.addresses = AddressManagement::Delegated(given);
                ask(&request)
            });
        attached.map_err(|error| match self.run("DEL", stdin) {
            Ok(_) => error,
            Err(undo) => {
                let details = format!("{}; not undone: {undo}", error.details);
                error.with_details(details.trim_start_matches("; "))
            }
        })
    }

    /// Runs the plugin and returns what it printed.
    fn run(&self, command: &str, stdin: &[u8]) -> Result<Value, CniError> {
        let failed = |error: std::io::Error| {
            CniError::new(ErrorCode::IO_FAILURE, format!("cannot run plugin {}", self.name))
                .with_details(error.to_string())
        };
        let mut child = Command::new(&self.program)
            .env("CNI_COMMAND", command)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        if let Some(mut pipe) = child.stdin.take() {
            // A plugin that refuses early does not read everything: its answer says why.
            let _ = pipe.write_all(stdin);
        }
        let output = child.wait_with_output().map_err(failed)?;
        if output.status.success() {
            return Ok(serde_json::from_slice(&output.stdout).unwrap_or(Value::Null));
        }
        Err(match serde_json::from_slice::<CniError>(&output.stdout) {
            Ok(error) => CniError {
                msg: format!("plugin {}: {}", self.name, error.msg),
                ..error
            },
            Err(_) => {
                let said = String::from_utf8_lossy(&output.stderr);
                CniError::new(
                    ErrorCode::IO_FAILURE,
                    format!("plugin {} failed ({})", self.name, output.status),
                )
                .with_details(said.trim())
            }
        })
    }
}
