//! `observer uninstall`.

use std::process::ExitCode;

use clap::Args;

use crate::config::PathOptions;

/// Options of `observer uninstall`.
#[derive(Debug, Args)]
pub struct UninstallOptions {
    #[command(flatten)]
    paths: PathOptions,
}

/// Runs it.
///
/// # Errors
/// Always: this is not built yet.
pub(super) fn run(options: &UninstallOptions) -> anyhow::Result<ExitCode> {
    anyhow::bail!("`observer uninstall` is not built yet (would look at {})", options.paths.cgroupfs.display())
}
