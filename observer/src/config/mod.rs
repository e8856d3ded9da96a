//! What a run of the agent is told: flags and the configuration file.
//!
//! [`RunOptions`] is the one definition of every option. The configuration file is turned into the same
//! arguments ([`file`]), placed before those of the command line, so that the command line wins.

pub mod file;
mod nearest;
mod values;

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, ValueEnum};
use observer_common::abi::DEFAULT_EDGES;

use crate::traffic::PeerDetail;

/// The port of the agent's web side, when none is given.
pub const DEFAULT_PORT: u16 = 10836;

/// Everything that `observer run` is told.
#[derive(Debug, Clone, Args)]
#[command(args_override_self = true)]
pub struct RunOptions {
    /// How finely a pod at the other side is named: by its workload, or by its own name too.
    ///
    /// With `pod` every replica has series of its own.
    #[arg(
        long = "traffic.peer-detail", value_name = "DETAIL", value_enum, default_value_t = PeerDetailOption::Workload,
        help_heading = "Traffic"
    )]
    peer_detail: PeerDetailOption,
    /// A TOML file with any of these options; what the command line says wins.
    ///
    /// A key is a flag's name without the dashes. Dotted names nest: `[web]` with `listen-address = "…"` is
    /// `--web.listen-address`.
    #[arg(long = "config", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where the web side listens and what it serves.
    #[command(flatten)]
    pub web: WebOptions,
    /// Where the host's file systems are.
    #[command(flatten)]
    pub paths: PathOptions,
    /// What is logged and how.
    #[command(flatten)]
    pub log: LogOptions,
    /// A kubelet `/pods` document that names pods.
    ///
    /// For machines without an orchestrator: sandboxes are found from the cgroup tree as always, this file only
    /// tells their names.
    #[arg(long = "pods.file", value_name = "FILE", help_heading = "Pods")]
    pub pods_file: Option<PathBuf>,
    /// The name of this node [default: $NODE_NAME, then the host's name].
    #[arg(long = "node.name", value_name = "NAME", env = "NODE_NAME", hide_env = true, help_heading = "Pods")]
    node_name: Option<String>,
    /// How many edges (container, peer, port, protocol) are counted one by one; 16 to 1048576.
    ///
    /// What finds no place is counted all the same, folded into one series for each container with
    /// peer_kind="other".
    #[arg(
        long = "traffic.edges", value_name = "N", default_value_t = DEFAULT_EDGES, help_heading = "Traffic",
        value_parser = clap::value_parser!(u32).range(16..=1_048_576)
    )]
    pub traffic_edges: u32,
}

/// Values of `--traffic.peer-detail`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum PeerDetailOption {
    /// peer_workload.
    Workload,
    /// peer_workload and peer_pod.
    Pod,
}

impl RunOptions {
    /// How finely a pod at the other side is named.
    #[must_use]
    pub const fn peer_detail(&self) -> PeerDetail {
        match self.peer_detail {
            PeerDetailOption::Workload => PeerDetail::Workload,
            PeerDetailOption::Pod => PeerDetail::Pod,
        }
    }

    /// The node's name: the option or `NODE_NAME`, unless empty; else the host's name; else empty.
    #[must_use]
    pub fn node_name(&self) -> String {
        match self.node_name.as_deref().map(str::trim) {
            Some(name) if !name.is_empty() => name.to_owned(),
            _ => rustix::system::uname().nodename().to_string_lossy().into_owned(),
        }
    }
}

/// Options of the web side.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Web")]
pub struct WebOptions {
    /// Address and port to listen on; `:PORT` means every address.
    #[arg(
        id = "web.listen-address", long = "web.listen-address", value_name = "ADDRESS:PORT",
        default_value_t = SocketAddr::from(([0, 0, 0, 0], DEFAULT_PORT)), value_parser = values::listen_address
    )]
    pub listen_address: SocketAddr,
    /// The path that serves the metrics.
    #[arg(
        id = "web.telemetry-path", long = "web.telemetry-path", value_name = "PATH",
        default_value = "/metrics", value_parser = values::telemetry_path
    )]
    pub telemetry_path: String,
}

/// Where the host's file systems are seen by this process: the agent in a container has them mounted elsewhere.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Paths")]
pub struct PathOptions {
    /// The host's proc file system.
    #[arg(id = "path.procfs", long = "path.procfs", value_name = "DIR", default_value = "/proc")]
    pub procfs: PathBuf,
    /// The host's cgroup file system: v2, or the directory that holds the v1 hierarchies.
    #[arg(id = "path.cgroupfs", long = "path.cgroupfs", value_name = "DIR", default_value = "/sys/fs/cgroup")]
    pub cgroupfs: PathBuf,
    /// The BPF file system that keeps programs and counters while the agent is away.
    #[arg(id = "path.bpffs", long = "path.bpffs", value_name = "DIR", default_value = "/sys/fs/bpf")]
    pub bpffs: PathBuf,
}

/// Options of the log, which goes to standard error.
#[derive(Debug, Clone, Copy, Args)]
#[command(next_help_heading = "Log")]
pub struct LogOptions {
    /// The least important messages that are shown.
    #[arg(id = "log.level", long = "log.level", value_name = "LEVEL", value_enum, default_value_t = LogLevel::Info)]
    pub level: LogLevel,
    /// Lines for people, or one JSON object a line.
    #[arg(id = "log.format", long = "log.format", value_name = "FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub format: LogFormat,
}

/// How important a message must be to be shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogLevel {
    /// What went wrong and needs somebody.
    Error,
    /// What went wrong and was worked around.
    Warn,
    /// What the agent does.
    Info,
    /// How it does it, kernel programs included.
    Debug,
    /// Everything.
    Trace,
}

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}
