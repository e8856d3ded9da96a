//! `observer run`.

use std::process::ExitCode;

use super::logging;
use crate::config::RunOptions;

/// Runs the agent until it is told to stop.
///
/// # Errors
/// Whatever keeps the agent from starting or from stopping cleanly.
pub(super) fn run(options: &RunOptions) -> anyhow::Result<ExitCode> {
    logging::init(options.log)?;
    crate::agent::run(options)?;
    Ok(ExitCode::SUCCESS)
}
