//! `cargo xtask demo`.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::{Result, bail};

use crate::steps::Steps;
use crate::workspace::Workspace;
use crate::{machine, run, setup};

/// Make three demo pods, observe them and show who talks to whom, until Ctrl-C
///
/// Sets up the toolchain if needed, builds the agent and the lab in release mode, then makes real pod
/// sandboxes (cgroups and network namespaces, no orchestrator), starts the agent, drives traffic and
/// prints a summary with the address of /metrics. Everything it made is removed at the end.
#[derive(clap::Args)]
pub struct Args {
    /// End by itself after so many seconds, with exit status 0
    #[arg(long, value_name = "N")]
    seconds: Option<u64>,
    /// Passed on to `observer-lab demo` as they are
    #[arg(last = true, value_name = "ARGS")]
    rest: Vec<String>,
}

/// Runs the command.
pub fn command(args: &Args) -> Result<()> {
    machine::need_root("cargo xtask demo", "it makes cgroups and network namespaces and loads kernel programs")?;
    let workspace = Workspace::find()?;
    let steps = Steps::quiet();
    setup::ensure(&workspace, &steps)?;
    build(&workspace)?;
    let mut lab = lab(&workspace);
    lab.arg("demo");
    if let Some(seconds) = args.seconds {
        lab.args(["--seconds", &seconds.to_string()]);
    }
    become_it(lab.args(&args.rest))
}

/// Builds the agent and the lab in release mode; cargo shows its progress.
pub fn build(workspace: &Workspace) -> Result<()> {
    run::aloud(run::cargo(workspace).args(["build", "--release", "--package", "observer", "--package", "observer-lab"]))
}

/// The lab's binary, told where the agent's is.
pub fn lab(workspace: &Workspace) -> Command {
    let mut lab = Command::new(workspace.release("observer-lab"));
    lab.env("OBSERVER_BIN", workspace.release("observer")).current_dir(&workspace.root);
    lab
}

/// Replaces this process: signals reach the program itself, its exit status is ours, and whoever waits
/// for us waits for its cleanup.
pub fn become_it(command: &mut Command) -> Result<()> {
    let error = command.exec();
    bail!("start {}: {error}; was it built for this machine?", run::shown(command))
}
