//! The CNI specification versions this plugin speaks, and which operation each of them has.
//!
//! Invariants: `CniVersion` is ordered by age; an operation asked for in a version that lacks it is refused with
//! code 1 (CNI spec 1.1.0 §2: CHECK since 0.4.0, STATUS and GC since 1.1.0).

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::{CniError, ErrorCode};

/// A supported version of the CNI specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum CniVersion {
    /// Rich results and chaining.
    #[serde(rename = "0.3.1")]
    V0_3_1,
    /// Adds CHECK and `prevResult` on DEL.
    #[serde(rename = "0.4.0")]
    V0_4_0,
    /// Drops `ips[].version`.
    #[serde(rename = "1.0.0")]
    V1_0_0,
    /// Adds STATUS, GC and more fields of interfaces and routes.
    #[serde(rename = "1.1.0")]
    V1_1_0,
}

impl CniVersion {
    /// Every supported version, oldest first.
    pub const ALL: [Self; 4] = [Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];
    /// The newest supported version.
    pub const LATEST: Self = Self::V1_1_0;

    /// The version as it is written in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// Reads a `cniVersion` string.
    ///
    /// # Errors
    /// Code 6 if it is not three numbers with dots, code 1 if it is but we do not speak that version.
    pub fn parse(text: &str) -> Result<Self, CniError> {
        if !is_semantic_version(text) {
            return Err(CniError::new(
                ErrorCode::DECODING_FAILURE,
                "cniVersion is not a semantic version",
            )
            .with_details(format!(
                "found {text:?}, expected MAJOR.MINOR.PATCH such as \"1.0.0\""
            )));
        }
        Self::ALL
            .into_iter()
            .find(|version| version.as_str() == text)
            .ok_or_else(|| {
                CniError::new(
                    ErrorCode::INCOMPATIBLE_VERSION,
                    format!("CNI version {text} is not supported"),
                )
                .with_details(format!("supported versions: {}", Self::list()))
            })
    }

    /// The supported versions separated by commas, for messages.
    pub fn list() -> String {
        Self::ALL.map(Self::as_str).join(", ")
    }
}

impl fmt::Display for CniVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Whether `text` is MAJOR.MINOR.PATCH in decimal numbers without a pre-release part (no CNI version has one).
pub fn is_semantic_version(text: &str) -> bool {
    let parts: Vec<&str> = text.split('.').collect();
    parts.len() == 3
        && parts.iter().all(|part| {
            (1..=6).contains(&part.len())
                && part.bytes().all(|byte| byte.is_ascii_digit())
                && (part.len() == 1 || !part.starts_with('0'))
        })
}

/// The answer to VERSION (CNI spec 1.1.0 §5 "Version").
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VersionReply {
    /// The version the request was made in.
    pub cni_version: String,
    /// All versions the plugin speaks, oldest first.
    pub supported_versions: Vec<String>,
}

impl VersionReply {
    /// Our answer to a request made in `cni_version`.
    pub fn new(cni_version: impl Into<String>) -> Self {
        Self {
            cni_version: cni_version.into(),
            supported_versions: CniVersion::ALL
                .map(|version| version.as_str().to_owned())
                .to_vec(),
        }
    }
}
