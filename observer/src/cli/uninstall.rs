//! `observer uninstall`.

use std::process::ExitCode;

use clap::Args;

use crate::{config::PathOptions, kernel::Pins};

/// Options of `observer uninstall`.
#[derive(Debug, Args)]
pub struct UninstallOptions {
    #[command(flatten)]
    paths: PathOptions,
}

/// Removes all pins; the kernel then detaches the programs and frees the counters.
///
/// # Errors
/// While an agent runs, and when the BPF filesystem cannot be written to.
pub(super) fn run(options: &UninstallOptions) -> anyhow::Result<ExitCode> {
    let bpffs = &options.paths.bpffs;
    match Pins::uninstall(bpffs)? {
        0 => println!("nothing of observer is installed below {}", bpffs.display()),
        pins => {
            println!("removed {pins} pinned maps and links below {}; no program is attached any more", bpffs.display());
        }
    }
    Ok(ExitCode::SUCCESS)
}
