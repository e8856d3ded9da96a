//! `observer check`.

use std::process::ExitCode;

use clap::Args;

use crate::config::PathOptions;

/// Options of `observer check`.
#[derive(Debug, Args)]
pub struct CheckOptions {
    #[command(flatten)]
    paths: PathOptions,
}

/// Runs it.
///
/// # Errors
/// Always: this is not built yet.
pub(super) fn run(options: &CheckOptions) -> anyhow::Result<ExitCode> {
    anyhow::bail!("`observer check` is not built yet (would look at {})", options.paths.cgroupfs.display())
}
