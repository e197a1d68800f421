//! Secrets in files of their own: the configuration can then be shown to anybody.

use std::path::{Path, PathBuf};

/// A secret that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// It should be in a file.
    #[error("{}: {why}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why it cannot.
        why: String,
    },
    /// It should be in the environment.
    #[error("the environment variable {name} is {state}; expected the password")]
    Environment {
        /// Which variable.
        name: String,
        /// `empty` or `not set`.
        state: &'static str,
    },
}

/// The value of an environment variable.
///
/// # Errors
/// It is not set, not UTF-8, or empty.
pub(crate) fn secret_of_environment(name: &str) -> Result<String, SecretError> {
    match std::env::var(name) {
        Ok(value) if !value.is_empty() => Ok(value),
        other => Err(SecretError::Environment {
            name: name.to_owned(),
            state: if other.is_ok() { "empty" } else { "not set" },
        }),
    }
}

/// The first line of a file.
///
/// # Errors
/// The file cannot be read, or its first line is empty.
pub(crate) fn read_secret(path: &Path) -> Result<String, SecretError> {
    let refuse = |why: String| SecretError::File {
        path: path.to_owned(),
        why,
    };
    let text = std::fs::read_to_string(path)
        .map_err(|error| refuse(format!("cannot read the password: {error}")))?;
    match text.lines().next() {
        Some(line) if !line.is_empty() => Ok(line.to_owned()),
        _ => Err(refuse(
            "the first line is empty; expected the password".to_owned(),
        )),
    }
}
