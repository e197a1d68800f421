//! The contract between plugin and agent: one request and one reply over a unix stream socket.
//!
//! On the wire each message is a `u32` in network byte order, the length of what follows, and that many bytes of JSON;
//! never more than [`MAX_MESSAGE`]. The container's network namespace travels beside the request's first byte as an
//! open file descriptor (`SCM_RIGHTS`), so that the agent needs to look up no path, in no mount namespace, that may
//! name something else by then. One connection carries one request and one reply.
//!
//! Invariants: both messages begin with the contract version, which is compared before anything else is read, so that
//! an old plugin and a new agent say clearly what is wrong. Results travel in the form of CNI 1.1.0 whatever the
//! runtime speaks; the plugin converts, and merges into `prevResult` when it is chained. The agent answers with what
//! it made itself, only.
//!
//! This module is bytes ⇄ values; `socket` moves the bytes. An agent that frames with something else uses
//! [`body_length`], [`Request::decode`] and [`Reply::encode`].

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::args::CniArgs;
use crate::error::{CniError, ErrorCode};
use crate::result::AddResult;
use crate::spec::{AttachmentId, NetConf};

/// The version of this contract. It changes when a message's meaning does; new optional fields do not change it.
pub const CONTRACT_VERSION: u32 = 1;
/// The longest body of a message, in bytes: about 9,000 attachments in a GC.
pub const MAX_MESSAGE: usize = 1 << 20;
/// The length of the header, in bytes.
pub const HEADER_LENGTH: usize = 4;

/// What the plugin asks of the agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// The sender's [`CONTRACT_VERSION`].
    pub contract: u32,
    /// What to do, and to which attachment.
    pub operation: Operation,
    /// The network configuration.
    pub config: NetConf,
    /// How long the plugin will wait for the reply, in milliseconds. After that nobody reads it: an ADD that takes
    /// longer must be undone.
    pub timeout_ms: u64,
    /// W3C `traceparent` of the runtime's span, from the environment variable `TRACEPARENT`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace_parent: Option<String>,
    /// Who manages addresses.
    #[serde(default, skip_serializing_if = "AddressManagement::is_the_agents")]
    pub addresses: AddressManagement,
}

/// Who manages the addresses of an attachment, and who makes the rest of it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AddressManagement {
    /// The agent does both.
    #[default]
    Agent,
    /// Another plugin manages addresses. What it gave (ADD; empty otherwise).
    Delegated(AddResult),
    /// The agent manages addresses and does nothing else: the request was made to `calidris-ipam`.
    Only,
}

impl AddressManagement {
    fn is_the_agents(&self) -> bool {
        *self == Self::Agent
    }
}

/// A CNI operation and its parameters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "UPPERCASE")]
pub enum Operation {
    /// Attach a container; answered by [`Reply::Added`]. Comes with the namespace's descriptor.
    Add(Attachment),
    /// Detach it; answered by [`Reply::Done`], also when nothing is there (any more). Comes with the descriptor if
    /// the namespace still exists and is not the host's own.
    Del(Attachment),
    /// Compare `config.prev_result` (always present) with what is there; answered by [`Reply::Done`]. Comes with the
    /// descriptor.
    Check(Attachment),
    /// Could an ADD be served now? Answered by [`Reply::Done`] or an error 50 or 51.
    Status,
    /// Free everything of the network `config.name` that is not listed; answered by [`Reply::Done`].
    Gc {
        /// What to keep.
        valid_attachments: Vec<AttachmentId>,
    },
}

/// Which container and interface an operation is about. Its identity is (`config.name`, container ID, interface name),
/// never the namespace's path nor the pod's name: runtimes reuse both.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// `CNI_CONTAINERID` and `CNI_IFNAME`, both valid.
    #[serde(flatten)]
    pub id: AttachmentId,
    /// `CNI_NETNS`, empty if it was not given. For `interfaces[].sandbox` and for logs; to enter it use the descriptor.
    pub netns_path: String,
    /// `CNI_ARGS`.
    pub args: CniArgs,
}

/// What the agent answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "lowercase")]
pub enum Reply {
    /// ADD succeeded, and this is what the agent made.
    Added {
        /// Interfaces, addresses and routes, without those of `prevResult`.
        result: AddResult,
    },
    /// DEL, CHECK, STATUS or GC succeeded.
    Done,
    /// The operation failed.
    Failed {
        /// Why, in the runtime's terms.
        error: CniError,
    },
}

/// Why a message could not be sent, received or understood.
#[derive(Debug, thiserror::Error)]
pub enum ContractError {
    /// The other side speaks another version.
    #[error("the other side speaks contract version {theirs}, this side {CONTRACT_VERSION}")]
    Version {
        /// What the other side speaks.
        theirs: u32,
    },
    /// A message of this length is not accepted or cannot be sent.
    #[error("a message of {length} bytes exceeds the limit of {MAX_MESSAGE}")]
    TooLong {
        /// Its length in bytes.
        length: usize,
    },
    /// The body is not the JSON expected.
    #[error("malformed message: {0}")]
    Malformed(String),
    /// A descriptor is missing, superfluous, or not a namespace.
    #[error("network namespace descriptor: {0}")]
    Descriptor(&'static str),
    /// The time allowed is over.
    #[error("{0} did not finish in time")]
    TimedOut(Step),
    /// The socket failed.
    #[error("{step}: {source}")]
    Io {
        /// What was being done.
        step: Step,
        /// What the kernel said.
        source: std::io::Error,
    },
}

/// The part of an exchange in which an error happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Connecting to the agent's socket.
    Connect,
    /// Sending a message.
    Send,
    /// Receiving a message.
    Receive,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connect => "connecting",
            Self::Send => "sending",
            Self::Receive => "receiving",
        })
    }
}

impl Operation {
    /// The value of `CNI_COMMAND`.
    pub fn command(&self) -> &'static str {
        match self {
            Self::Add(_) => "ADD",
            Self::Del(_) => "DEL",
            Self::Check(_) => "CHECK",
            Self::Status => "STATUS",
            Self::Gc { .. } => "GC",
        }
    }

    /// The attachment, for the operations that have one.
    pub fn attachment(&self) -> Option<&Attachment> {
        match self {
            Self::Add(attachment) | Self::Del(attachment) | Self::Check(attachment) => Some(attachment),
            Self::Status | Self::Gc { .. } => None,
        }
    }
}

impl Request {
    /// The whole message, header included.
    ///
    /// # Errors
    /// `TooLong`, `Malformed`.
    pub fn encode(&self) -> Result<Vec<u8>, ContractError> {
        encode(self)
    }

    /// Reads a body (the message without its header).
    ///
    /// # Errors
    /// `Version` before all else, then `Malformed`.
    pub fn decode(body: &[u8]) -> Result<Self, ContractError> {
        compare_version(body)?;
        serde_json::from_slice(body).map_err(|error| ContractError::Malformed(error.to_string()))
    }
}

impl Reply {
    /// The whole message, header included.
    ///
    /// # Errors
    /// `TooLong`, `Malformed`.
    pub fn encode(&self) -> Result<Vec<u8>, ContractError> {
        encode(&VersionedReply {
            contract: CONTRACT_VERSION,
            reply: self,
        })
    }

    /// Reads a body (the message without its header).
    ///
    /// # Errors
    /// `Version` before all else, then `Malformed`.
    pub fn decode(body: &[u8]) -> Result<Self, ContractError> {
        compare_version(body)?;
        serde_json::from_slice(body).map_err(|error| ContractError::Malformed(error.to_string()))
    }

    /// What an agent answers to a request that it could not read. A plugin of another version will not read past the
    /// version number, which is what it needs.
    pub fn to_unreadable_request(error: &ContractError) -> Self {
        let code = match error {
            ContractError::Version { .. } => ErrorCode::CONTRACT_MISMATCH,
            ContractError::TimedOut(_) | ContractError::Io { .. } => ErrorCode::IO_FAILURE,
            _ => ErrorCode::DECODING_FAILURE,
        };
        Self::Failed {
            error: CniError::new(code, "the agent could not read the plugin's request")
                .with_details(error.to_string()),
        }
    }
}

impl From<Result<AddResult, CniError>> for Reply {
    fn from(outcome: Result<AddResult, CniError>) -> Self {
        match outcome {
            Ok(result) => Self::Added { result },
            Err(error) => Self::Failed { error },
        }
    }
}

impl From<Result<(), CniError>> for Reply {
    fn from(outcome: Result<(), CniError>) -> Self {
        match outcome {
            Ok(()) => Self::Done,
            Err(error) => Self::Failed { error },
        }
    }
}

/// The length of the body that a header announces.
///
/// # Errors
/// `TooLong`, so that nobody reserves memory for it.
pub fn body_length(header: [u8; HEADER_LENGTH]) -> Result<usize, ContractError> {
    let length = usize::try_from(u32::from_be_bytes(header)).unwrap_or(usize::MAX);
    if length > MAX_MESSAGE {
        Err(ContractError::TooLong { length })
    } else {
        Ok(length)
    }
}

#[derive(Serialize)]
struct VersionedReply<'a> {
    contract: u32,
    #[serde(flatten)]
    reply: &'a Reply,
}

fn encode(message: &impl Serialize) -> Result<Vec<u8>, ContractError> {
    let mut bytes = vec![0; HEADER_LENGTH];
    serde_json::to_writer(&mut bytes, message)
        .map_err(|error| ContractError::Malformed(error.to_string()))?;
    let length = bytes.len().saturating_sub(HEADER_LENGTH);
    let announced = u32::try_from(length).ok().filter(|_| length <= MAX_MESSAGE);
    let header = announced.ok_or(ContractError::TooLong { length })?.to_be_bytes();
    bytes.splice(..HEADER_LENGTH, header);
    Ok(bytes)
}

fn compare_version(body: &[u8]) -> Result<(), ContractError> {
    #[derive(Deserialize)]
    struct Envelope {
        contract: u32,
    }
    let envelope: Envelope =
        serde_json::from_slice(body).map_err(|error| ContractError::Malformed(error.to_string()))?;
    match envelope.contract {
        CONTRACT_VERSION => Ok(()),
        theirs => Err(ContractError::Version { theirs }),
    }
}
