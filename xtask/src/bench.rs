//! `cargo xtask bench`.

use anyhow::Result;
use clap::ValueEnum;

use crate::demo::{become_it, build, lab};
use crate::steps::Steps;
use crate::workspace::Workspace;
use crate::{machine, setup};

/// Measure what the agent costs
///
/// `overhead`: work per CPU-second with the hooks on, off and empty, in alternation on one CPU (request and
/// response, connections, UDP, stream), medians with their spread. An idle machine gives the best numbers. What
/// follows `--` goes to the benchmark (`-- --help` lists it).
#[derive(clap::Args)]
pub struct Args {
    /// What to measure
    what: What,
    /// Passed on to `observer-lab bench` as they are
    #[arg(last = true, value_name = "ARGS")]
    rest: Vec<String>,
}

#[derive(Clone, Copy, ValueEnum)]
enum What {
    /// What the hooks take from the traffic
    Overhead,
}

/// Runs the command.
pub fn command(args: &Args) -> Result<()> {
    machine::need_root("cargo xtask bench", "it makes pods, loads kernel programs and pins processes to a CPU")?;
    let workspace = Workspace::find()?;
    setup::ensure(&workspace, &Steps::quiet())?;
    build(&workspace)?;
    let what = match args.what {
        What::Overhead => "overhead",
    };
    become_it(lab(&workspace).args(["bench", what]).args(&args.rest))
}
