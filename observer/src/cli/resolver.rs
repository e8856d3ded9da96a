//! `observer resolver`.

use std::process::ExitCode;

use super::logging;
use crate::resolver::ResolverOptions;

/// Runs the resolver until it is told to stop.
///
/// # Errors
/// Whatever keeps it from starting or from stopping cleanly.
pub(super) fn run(options: &ResolverOptions) -> anyhow::Result<ExitCode> {
    logging::init(options.log)?;
    crate::resolver::run(options)?;
    Ok(ExitCode::SUCCESS)
}
