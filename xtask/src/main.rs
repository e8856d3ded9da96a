//! Everything around the code: set-up, demo, tests, kernels in a VM, benchmarks.
//!
//! It is the first thing compiled on a fresh machine, so it depends on next to nothing, and on the other
//! crates of the workspace not at all: it runs their binaries.

mod api_server;
mod apt;
mod bench;
mod demo;
mod deny;
mod fuzz;
mod machine;
mod mirror;
mod run;
mod setup;
mod steps;
mod test;
mod vm;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Everything around the code of observer: one command sets up, builds and runs.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", after_help = START_HERE)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const START_HERE: &str = "Start here, as root:
  cargo xtask demo     what containers of real pods say to each other, in a few minutes
  cargo xtask test     everything that proves the project

Logs of the tools it runs are in target/xtask/logs.";

#[derive(Subcommand)]
enum Command {
    Setup(setup::Args),
    Demo(demo::Args),
    Test(test::Args),
    Vm(vm::Args),
    Bench(bench::Args),
    Fuzz(fuzz::Args),
    ApiServer(api_server::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Setup(args) => setup::command(&args),
        Command::Demo(args) => demo::command(&args),
        Command::Test(args) => test::command(&args),
        Command::Vm(args) => vm::command(&args),
        Command::Bench(args) => bench::command(&args),
        Command::Fuzz(args) => fuzz::command(&args),
        Command::ApiServer(args) => api_server::command(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
