//! `observer check`.

use std::process::ExitCode;

use clap::Args;
use comfy_table::{ContentArrangement, Table, presets::UTF8_FULL_CONDENSED};

use super::check_sources;
use crate::{
    config::{PathOptions, SourceOptions},
    kernel::check::{Check, Facts, State, can_run, judge},
};

/// Options of `observer check`.
#[derive(Debug, Args)]
pub struct CheckOptions {
    #[command(flatten)]
    sources: SourceOptions,
    #[command(flatten)]
    paths: PathOptions,
}

/// Prints a line for each requirement. Status 1 when the main job cannot run.
///
/// # Errors
/// None; what is wrong is what it prints.
pub(super) fn run(options: &CheckOptions) -> anyhow::Result<ExitCode> {
    let paths = &options.paths;
    let mut checks = judge(&Facts::gather(&paths.procfs, &paths.cgroupfs, &paths.bpffs));
    checks.extend(check_sources::judge(&check_sources::Facts::gather(&options.sources)));
    println!("{}", table(&checks));
    let runs = can_run(&checks);
    if runs {
        println!("The agent can count the traffic of this node's pods.");
    } else {
        println!("The agent cannot count traffic here: see the lines that say {}.", State::Missing.as_str());
    }
    Ok(if runs { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn table(checks: &[Check]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(["what", "state", "found", "what it is for", "how to get it"]);
    for check in checks {
        table.add_row([check.name, check.state.as_str(), &check.found, check.purpose, &check.remedy]);
    }
    table
}
