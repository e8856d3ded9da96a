//! The lab's command line: the demo, and the launcher that containers are started with.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use observer_lab::launch::{self, Entry, Role};

/// Pod sandboxes without an orchestrator.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show the agent at work on three pods with real traffic.
    Demo {
        /// End by itself after so many seconds.
        #[arg(long)]
        seconds: Option<u64>,
        /// Where the agent listens.
        #[arg(long)]
        listen: Option<SocketAddr>,
    },
    /// Keep the demo's pods, with their traffic but without an agent.
    Pods {
        /// End by itself after so many seconds.
        #[arg(long)]
        seconds: Option<u64>,
        /// Write a kubelet's `/pods` document for the agent's --pods.file.
        #[arg(long)]
        pods_file: Option<PathBuf>,
    },
    /// Measure what the agent costs.
    Bench {
        #[command(subcommand)]
        what: Bench,
    },
    /// Remove what killed runs have left.
    Sweep,
    /// Become a process of a container (the lab starts this itself).
    #[command(hide = true)]
    Enter {
        #[command(flatten)]
        entry: Entry,
        #[command(subcommand)]
        role: Role,
    },
    /// Run a program that ends with its parent (the lab starts this itself).
    #[command(hide = true)]
    Guard {
        #[arg(long)]
        parent: u32,
        #[arg(last = true, required = true)]
        program: Vec<String>,
    },
}

#[derive(Subcommand)]
enum Bench {
    /// What the hooks take from the traffic, against nothing and against programs that do nothing.
    Overhead(observer_lab::bench::OverheadOptions),
    /// What the programs at a sandbox's interface take from the traffic, against nothing and against programs that do nothing.
    Interface(observer_lab::bench::InterfaceOptions),
    /// What a scrape costs on a node full of pods.
    Scrape(observer_lab::bench::ScrapeOptions),
    /// How costs grow with connections, and with edges.
    Edges(observer_lab::bench::EdgesOptions),
    /// What a resolver needs for a large cluster and its agents, by simulation.
    Resolver(observer_lab::bench::ResolverOptions),
    /// Whether anything is left, or has a wrong name, after a thousand pods have come and gone.
    Churn(observer_lab::bench::ChurnOptions),
    /// What it costs to ask a real container runtime, and whether its pods leave anything.
    Runtime(observer_lab::bench::RuntimeOptions),
}

fn main() -> ExitCode {
    if let Some(code) = observer_lab::vm_init::entry() {
        return code;
    }
    match run(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("observer-lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Demo { seconds, listen } => observer_lab::demo::run(seconds, listen),
        Command::Pods { seconds, pods_file } => observer_lab::demo::pods(seconds, pods_file.as_deref()),
        Command::Bench { what: Bench::Overhead(options) } => observer_lab::bench::overhead(&options),
        Command::Bench { what: Bench::Interface(options) } => observer_lab::bench::interface(&options),
        Command::Bench { what: Bench::Scrape(options) } => observer_lab::bench::scrape(&options),
        Command::Bench { what: Bench::Edges(options) } => observer_lab::bench::edges(&options),
        Command::Bench { what: Bench::Resolver(options) } => observer_lab::bench::resolver(&options),
        Command::Bench { what: Bench::Churn(options) } => observer_lab::bench::churn(&options),
        Command::Bench { what: Bench::Runtime(options) } => observer_lab::bench::runtime(&options),
        Command::Sweep => {
            let swept = observer_lab::sweep()?;
            println!(
                "removed {} cgroup directories, {} mounts and {} container nodes",
                swept.cgroups, swept.mounts, swept.nodes
            );
            Ok(ExitCode::SUCCESS)
        }
        Command::Enter { entry, role } => launch::enter(&entry, &role),
        Command::Guard { parent, program } => launch::guard(parent, &program),
    }
}
