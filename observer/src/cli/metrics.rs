//! `observer metrics`: the catalogue, for people and for `docs/metrics.md`.

use std::{io::Write, process::ExitCode};

use clap::Args;

use crate::metrics::{compat, describe};

/// Options of `observer metrics`.
#[derive(Debug, Args)]
pub struct MetricsOptions {
    /// Print the Markdown that docs/metrics.md consists of.
    #[arg(long)]
    markdown: bool,
    /// Print the Markdown that docs/compatibility.md consists of: the families of /metrics/cadvisor and /metrics/resource.
    #[arg(long, conflicts_with = "markdown")]
    compatibility: bool,
}

/// Prints the catalogue to standard output. A reader that goes away early (`| head`) is no error.
///
/// # Errors
/// When standard output cannot be written.
pub(super) fn run(options: &MetricsOptions) -> anyhow::Result<ExitCode> {
    let text = match (options.markdown, options.compatibility) {
        (_, true) => compat::describe::markdown(),
        (true, false) => describe::markdown(),
        (false, false) => describe::table(),
    };
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(e.into()),
        _ => Ok(ExitCode::SUCCESS),
    }
}
