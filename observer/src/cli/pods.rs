//! `observer pods`.

use std::process::ExitCode;

use clap::{Args, ValueEnum};

use crate::config::PathOptions;

/// Options of `observer pods`.
#[derive(Debug, Args)]
pub struct PodsOptions {
    /// Text for people, or JSON for programs.
    #[arg(short = 'o', long = "output", value_enum, default_value_t = Output::Text)]
    output: Output,
    #[command(flatten)]
    paths: PathOptions,
}

/// How the pods are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// A tree for people.
    Text,
    /// One JSON document.
    Json,
}

/// Runs it.
///
/// # Errors
/// Always: this is not built yet.
pub(super) fn run(options: &PodsOptions) -> anyhow::Result<ExitCode> {
    anyhow::bail!(
        "`observer pods` is not built yet ({:?}; would look at {})",
        options.output,
        options.paths.cgroupfs.display()
    )
}
