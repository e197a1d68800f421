//! Why a call to the kernel failed.

use std::io;
use std::time::Duration;

/// Why a call to the kernel failed.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The kernel answered no.
    #[error("kernel refused to {action}: {} ({errno}){}", errno_text(*errno), message.as_deref().map(|m| format!(": {m}")).unwrap_or_default())]
    Refused {
        /// What was asked.
        action: String,
        /// Error number of the kernel.
        errno: i32,
        /// The kernel's own words (extended acknowledgement), if it had any.
        message: Option<String>,
    },
    /// A system call failed, so that it is not known what the kernel has done.
    #[error("could not {action}: {source}")]
    Io {
        /// What was attempted.
        action: String,
        /// The error.
        source: io::Error,
    },
    /// No answer in time, so that it is not known what the kernel has done.
    #[error("no answer within {limit:?} to: {action}")]
    Timeout {
        /// What was attempted.
        action: String,
        /// How long was waited.
        limit: Duration,
    },
    /// The answer could not be understood.
    #[error("answer to \"{action}\" not understood: {reason}")]
    Malformed {
        /// What was asked.
        action: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The tables changed during each of several attempts to read them whole.
    #[error("could not {action}: the kernel's table changed during each of {attempts} attempts")]
    Interrupted {
        /// What was attempted.
        action: String,
        /// How often.
        attempts: u32,
    },
    /// A link that is needed is not there.
    #[error("there is no link {name}")]
    NoSuchLink {
        /// Its name.
        name: String,
    },
    /// A nexthop object is to go, and a route that could not be changed refers to it or to a group with it: the kernel would take
    /// that route along.
    #[error("routes still refer to nexthop object {id}")]
    StillReferredTo {
        /// The object's number.
        id: u32,
    },
    /// Something else depends on it as it is, for now.
    #[error("not now: {reason}")]
    Held {
        /// What does.
        reason: String,
    },
    /// `nft` did not accept or deliver a ruleset.
    #[error("nft failed to {action}: {stderr}")]
    Nft {
        /// What was asked.
        action: String,
        /// What it said.
        stderr: String,
    },
}

impl KernelError {
    /// Error number of the kernel's refusal.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { errno, .. } => Some(*errno),
            Self::Io { source, .. } => source.raw_os_error(),
            Self::NoSuchLink { .. } => Some(libc::ENODEV),
            Self::Timeout { .. }
            | Self::Malformed { .. }
            | Self::Interrupted { .. }
            | Self::StillReferredTo { .. }
            | Self::Held { .. }
            | Self::Nft { .. } => None,
        }
    }

    /// The same error for another change that needs the link `name`.
    #[must_use]
    pub fn again(&self, name: &str) -> Self {
        match self {
            Self::Io { action, source } => Self::Io {
                action: action.clone(),
                source: source
                    .raw_os_error()
                    .map_or_else(|| io::Error::from(source.kind()), io::Error::from_raw_os_error),
            },
            _ => Self::NoSuchLink {
                name: name.to_owned(),
            },
        }
    }

    /// The same failure for another object that shared the call.
    #[must_use]
    pub fn repeated(&self) -> Self {
        Self::Io {
            action: "do it with others in one call".to_owned(),
            source: io::Error::other(self.to_string()),
        }
    }

    /// Whether what the kernel has must be read back before anything else is decided.
    #[must_use]
    pub fn leaves_doubt(&self) -> bool {
        match self {
            Self::Io { .. } | Self::Timeout { .. } | Self::Malformed { .. } | Self::Nft { .. } => true,
            Self::Refused { errno, .. } => {
                matches!(*errno, libc::EEXIST | libc::ESRCH | libc::ENOENT | libc::ENODEV)
            }
            Self::NoSuchLink { .. } | Self::Interrupted { .. } => true,
            Self::StillReferredTo { .. } | Self::Held { .. } => false,
        }
    }
}

fn errno_text(errno: i32) -> String {
    // "File exists (os error 17)": the number is printed apart.
    let text = io::Error::from_raw_os_error(errno).to_string();
    text.split(" (os error").next().unwrap_or(&text).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_what_was_asked_and_what_the_kernel_said() {
        let error = KernelError::Refused {
            action: "create 10.0.0.0/8".into(),
            errno: libc::ENETUNREACH,
            message: Some("Nexthop has invalid gateway".into()),
        };
        assert_eq!(
            error.to_string(),
            "kernel refused to create 10.0.0.0/8: Network is unreachable (101): Nexthop has invalid gateway"
        );
    }
}
