//! Reading a configuration file: what goes wrong is told with file, line and column.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A variable of the environment is not what it should be.
    #[error("{what}")]
    Environment {
        /// Which one, and what is wrong.
        what: String,
    },
    /// The file cannot be read.
    #[error("{}: cannot read the configuration: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is not what it should be.
    #[error("{}{}: {what}", path.display(), Position(*position))]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Line and column, both from 1, where they are known.
        position: Option<(usize, usize)>,
        /// What is wrong and what was expected.
        what: String,
    },
}

/// Reads and checks a file.
///
/// # Errors
/// The first thing that is wrong with it.
pub(super) fn load<T: DeserializeOwned>(path: &Path) -> Result<T, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
        path: path.to_owned(),
        source,
    })?;
    parse(&text, path)
}

/// Checks `text`, which came from `path`.
///
/// # Errors
/// The first thing that is wrong with it.
pub(super) fn parse<T: DeserializeOwned>(text: &str, path: &Path) -> Result<T, ConfigError> {
    toml::from_str(text).map_err(|error| ConfigError::Invalid {
        path: path.to_owned(),
        position: error.span().map(|span| position_of(text, span.start)),
        what: error.message().trim_end().replace('\n', "; "),
    })
}

struct Position(Option<(usize, usize)>);

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some((line, column)) => write!(f, ":{line}:{column}"),
            None => Ok(()),
        }
    }
}

fn position_of(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |at| at.saturating_add(1));
    let column = before.get(line_start..).unwrap_or_default().chars().count();
    (
        before.matches('\n').count().saturating_add(1),
        column.saturating_add(1),
    )
}
