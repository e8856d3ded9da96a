//! `observer pods`.

mod document;
mod tree;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::{Args, ValueEnum};

use self::document::Document;
use crate::{
    config::PathOptions,
    kernel::attach::attached,
    sandbox::{Hierarchies, SandboxTable, process},
};

/// Options of `observer pods`.
#[derive(Debug, Args)]
pub struct PodsOptions {
    /// Text for people, or JSON for programs.
    #[arg(short = 'o', long = "output", value_enum, default_value_t = Output::Text)]
    output: Output,
    /// A kubelet `/pods` document that names pods.
    #[arg(long = "pods.file", value_name = "FILE", help_heading = "Pods")]
    pods_file: Option<PathBuf>,
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

/// Looks at the cgroup tree once and prints what is there. No agent needs to run.
///
/// # Errors
/// When there is no cgroup tree, or its root cannot be read.
pub(super) fn run(options: &PodsOptions) -> anyhow::Result<ExitCode> {
    let PathOptions { procfs, cgroupfs, .. } = &options.paths;
    let hierarchies = Hierarchies::detect(procfs, cgroupfs)?;
    let mut table = SandboxTable::new(&hierarchies, procfs, options.pods_file.clone(), String::new(), Vec::new());
    let outcome = table.scan(&[]).with_context(|| format!("cannot read the cgroup tree {}", table.root().display()))?;
    let node = process::read(procfs, process::INIT).map(|facts| facts.namespaces).unwrap_or_default();
    let document = Document::new(&outcome.snapshot, table.root(), &hierarchies, &node, attached);
    match options.output {
        Output::Text => print!("{}", tree::text(&document)),
        Output::Json => println!("{}", serde_json::to_string_pretty(&document)?),
    }
    Ok(ExitCode::SUCCESS)
}
