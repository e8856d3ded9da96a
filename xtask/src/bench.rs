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
/// response, connections, UDP, stream), medians with their spread. `interface`: the same of the programs at the interface of a
/// gVisor or Kata pod. `scrape`: time, CPU, size and memory of scrapes of
/// a node with 110 and with 500 pods. `edges`: how memory, scrapes and CPU grow with connections over the same edges and
/// with edges; the plot is written to docs/edges.svg. `resolver`: memory, messages and delays of a resolver of a simulated
/// cluster of 5,000 nodes with 500 agents. `churn`: 1,000 pods come and go in ten minutes, and what is left of them; it
/// fails when something is. `runtime`: what an agent and a real containerd take while nothing happens, asked over CRI and
/// not, and what is left of 300 of its pods. An idle machine gives the best numbers. What follows `--` goes to the benchmark
/// (`-- --help` lists it).
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
    /// What the programs at a sandbox's interface take from the traffic
    Interface,
    /// What a scrape costs on a node full of pods
    Scrape,
    /// How costs grow with connections, and with edges
    Edges,
    /// What a resolver needs for a large cluster and its agents
    Resolver,
    /// Whether anything is left, or has a wrong name, after a thousand pods
    Churn,
    /// What it costs to ask a real container runtime
    Runtime,
}

/// Runs the command.
pub fn command(args: &Args) -> Result<()> {
    machine::need_root("cargo xtask bench", "it makes pods, loads kernel programs and pins processes to a CPU")?;
    let workspace = Workspace::find()?;
    setup::ensure(&workspace, &Steps::quiet())?;
    build(&workspace)?;
    let what = match args.what {
        What::Overhead => "overhead",
        What::Interface => "interface",
        What::Scrape => "scrape",
        What::Edges => "edges",
        What::Resolver => "resolver",
        What::Churn => "churn",
        What::Runtime => "runtime",
    };
    let mut command = lab(&workspace);
    command.args(["bench", what]);
    if matches!(args.what, What::Edges) {
        command.arg("--plot").arg(workspace.root.join("docs/edges.svg"));
    }
    become_it(command.args(&args.rest))
}
