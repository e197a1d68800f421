//! Secrets in files of their own: the configuration can then be shown to anybody.

use std::path::{Path, PathBuf};

/// A secret that cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("{}: {why}", path.display())]
pub struct SecretError {
    path: PathBuf,
    why: String,
}

/// The first line of a file.
///
/// # Errors
/// The file cannot be read, or its first line is empty.
pub(crate) fn read_secret(path: &Path) -> Result<String, SecretError> {
    let refuse = |why: String| SecretError {
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
