//! The command line: one file for each subcommand.

mod check;
mod check_sources;
pub mod logging;
mod metrics;
mod pods;
mod resolver;
mod run;
mod shares;
mod uninstall;

use std::{ffi::OsString, process::ExitCode};

use clap::{CommandFactory, Parser, Subcommand};

use crate::{
    config::{self, RunOptions},
    resolver::ResolverOptions,
};

/// Sees what the containers of this node's pods say to each other, over localhost too, and what they use.
///
/// Traffic is counted by kernel programs on the cgroup of each pod; CPU and memory are read from cgroup files.
/// Everything is served as Prometheus metrics. Nothing is installed in pods, nothing is sampled.
#[derive(Debug, Parser)]
#[command(
    name = "observer",
    version,
    max_term_width = 110,
    subcommand_required = true,
    after_help = "\
First steps:
  observer check                     what this kernel and these permissions allow
  observer pods                      the pods that are seen, as a tree
  observer run                       serve http://localhost:10836/metrics
  observer metrics                   every metric family, with labels and meaning

For clusters of hundreds of nodes:
  observer resolver                  watch the cluster once, for all agents"
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Observe the pods of this node and serve metrics until SIGTERM or SIGINT.
    #[command(after_help = "\
Examples:
  observer run --web.listen-address 127.0.0.1:10836
  observer run --config /etc/observer.toml --log.level debug
  observer run --path.procfs /host/proc --path.cgroupfs /host/cgroup

Needs root, or the capabilities that `observer check` lists.
The kernel goes on counting when the agent stops; `observer uninstall` ends that.")]
    Run(Box<RunOptions>),
    /// Show what this kernel and these permissions allow; status 1 when the main job cannot run.
    Check(Box<check::CheckOptions>),
    /// Show the pods of this node as a tree: containers, cgroups, namespaces, hooks.
    Pods(Box<pods::PodsOptions>),
    /// Tell agents of large clusters who has which address: watches the cluster once, in place of each agent.
    #[command(after_help = "\
Examples:
  observer resolver
  observer resolver --resolver.listen-address :10837 --resolver.token-file /etc/observer/token
  observer resolver --kubernetes https://10.96.0.1:443 --log.level debug

Runs as a Deployment with one replica behind a Service. Agents are told of it:
  observer run --kubernetes.peers resolver=http://observer-resolver.observer:10837

An agent asks for the addresses alone that its node's pods talk to, and is told when one of them changes hands. No
agent gets an answer before the resolver's first lists are complete, and then /readyz says ok. While it is away agents
go on with what they know; addresses that are new to them are peer_kind=\"other\".

Needs list and watch for pods, services, nodes and endpointslices.discovery.k8s.io, and get for replicasets.apps and
jobs.batch, in the whole cluster. No capabilities, nothing of the host.")]
    Resolver(Box<ResolverOptions>),
    /// Remove every program and counter that the agent left in the kernel.
    Uninstall(uninstall::UninstallOptions),
    /// List every metric family that the agent can expose.
    Metrics(metrics::MetricsOptions),
}

/// Runs the command line `arguments` (the program's name first) and tells the exit status.
///
/// # Errors
/// What the subcommand could not do, the configuration file's errors included. Errors of the command line
/// itself are printed by clap, which exits with status 2.
pub fn main(arguments: &[OsString]) -> anyhow::Result<ExitCode> {
    match parse(arguments)?.command {
        Command::Run(options) => run::run(&options),
        Command::Check(options) => check::run(&options),
        Command::Pods(options) => pods::run(&options),
        Command::Resolver(options) => resolver::run(&options),
        Command::Uninstall(options) => uninstall::run(&options),
        Command::Metrics(options) => metrics::run(&options),
    }
}

/// Parses the command line; with `run --config FILE` a second time, the file's options before its own.
fn parse(arguments: &[OsString]) -> anyhow::Result<Cli> {
    let cli = Cli::parse_from(arguments);
    let Command::Run(options) = &cli.command else { return Ok(cli) };
    let Some(path) = &options.config else { return Ok(cli) };
    let mut root = Cli::command();
    root.build();
    let Some(command) = root.find_subcommand("run") else { return Ok(cli) };
    let from_file = config::file::arguments(path, command)?;
    // The program has no options before its subcommand, so the second argument is `run`.
    let (head, tail) = arguments.split_at(arguments.len().min(2));
    Ok(Cli::parse_from(head.iter().chain(&from_file).chain(tail)))
}

#[cfg(test)]
mod manifest_tests;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_file_comes_before_the_command_line() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("o.toml");
        std::fs::write(&file, "[traffic]\nedges = 20\n[web]\ntelemetry-path = \"/m\"\n").unwrap();
        let line: Vec<OsString> =
            ["observer", "run", "--traffic.edges=30", "--traffic.edges=40", "--config"].map(Into::into).to_vec();
        let cli = parse(&[line, vec![file.into()]].concat()).unwrap();
        let Command::Run(options) = cli.command else { panic!("not run") };
        assert_eq!((options.traffic_edges, options.web.telemetry_path.as_str()), (40, "/m"));
    }
}
