//! The CNI error object and its codes (CNI spec 1.1.0 §5 "Error").
//!
//! Invariants: codes 0–99 mean what the specification says; 100 and above are ours and are listed here and nowhere
//! else. An error says what was wrong, where, and what was expected: `msg` is one line for a pod's event, `details`
//! is for the person who looks closer.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A CNI error code. Unknown numbers are kept, so that a newer agent's code reaches the runtime unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ErrorCode(pub u32);

impl ErrorCode {
    /// 1: the configuration's `cniVersion` is not one we speak, or does not have this operation.
    pub const INCOMPATIBLE_VERSION: Self = Self(1);
    /// 2: a field of the configuration is not supported; the message holds key and value.
    pub const UNSUPPORTED_FIELD: Self = Self(2);
    /// 3: the container is unknown or does not exist; the runtime need not clean up.
    pub const UNKNOWN_CONTAINER: Self = Self(3);
    /// 4: a necessary environment variable is missing or invalid; the message names it.
    pub const INVALID_ENVIRONMENT: Self = Self(4);
    /// 5: input or output failed, such as reading stdin.
    pub const IO_FAILURE: Self = Self(5);
    /// 6: bytes could not be decoded (JSON, version string).
    pub const DECODING_FAILURE: Self = Self(6);
    /// 7: the network configuration decodes but is not valid.
    pub const INVALID_CONFIG: Self = Self(7);
    /// 11: a passing condition; the runtime should try the same operation again later.
    pub const TRY_AGAIN_LATER: Self = Self(11);
    /// 50 (STATUS): ADD cannot be served.
    pub const UNAVAILABLE: Self = Self(50);
    /// 51 (STATUS): ADD cannot be served, and existing containers may have limited connectivity.
    pub const UNAVAILABLE_LIMITED: Self = Self(51);
    /// 100 (ours): plugin and agent speak different versions of the contract.
    pub const CONTRACT_MISMATCH: Self = Self(100);
    /// 101 (ours): the interface `CNI_IFNAME` exists in the container already, or the attachment has been added.
    pub const ALREADY_ATTACHED: Self = Self(101);
    /// 102 (ours): no address of a requested family is left in the pools that the pod may use.
    pub const ADDRESSES_EXHAUSTED: Self = Self(102);
    /// 103 (ours): CHECK found something missing or altered; `details` lists every finding.
    pub const CHECK_FAILED: Self = Self(103);
    /// 104 (ours): the kernel refused a link, address, route or rule.
    pub const DATAPLANE: Self = Self(104);
    /// 110 (ours): a defect in Calidris.
    pub const INTERNAL: Self = Self(110);
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Why a CNI operation failed, as the runtime will be told. The plugin adds `cniVersion` when it prints it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{msg} (code {code})")]
pub struct CniError {
    /// The reserved or own code.
    pub code: ErrorCode,
    /// One line; what failed.
    pub msg: String,
    /// What was found and what was expected; may be empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub details: String,
}

impl CniError {
    /// An error without details.
    pub fn new(code: ErrorCode, msg: impl Into<String>) -> Self {
        Self {
            code,
            msg: msg.into(),
            details: String::new(),
        }
    }

    /// The same error with `details`.
    #[must_use]
    pub fn with_details(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }
}
