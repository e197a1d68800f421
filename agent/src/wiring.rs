//! The composition root: builds every part and connects them. No logic.

use crate::config::Config;

/// Runs the agent until it is told to end.
///
/// # Errors
/// What kept it from starting.
pub fn run(config: Config) -> anyhow::Result<()> {
    anyhow::bail!(
        "{}: this build cannot run an agent yet",
        config.node_name.as_str()
    )
}
