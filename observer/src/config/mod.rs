//! What a run of the agent is told: flags and the configuration file.
//!
//! [`RunOptions`] is the one definition of every option. The configuration file is turned into the same
//! arguments ([`file`]), placed before those of the command line, so that the command line wins.

mod api_server;
mod dns;
pub mod file;
mod nearest;
mod sources;
mod values;

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, ValueEnum};
use observer_common::abi::DEFAULT_EDGES;

pub(crate) use self::values::listen_address;
pub use self::{
    api_server::ApiServerOptions,
    dns::{DnsOptions, DnsPorts},
    sources::SourceOptions,
};
use crate::{
    identity::{NameSet, Selection, Selector},
    kernel::Accounting,
    sandbox::{DEFAULT_HANDLERS, Handlers},
    traffic::{Limits, PeerDetail},
};

/// The port of the agent's web side, when none is given.
pub const DEFAULT_PORT: u16 = 10836;

/// Everything that `observer run` is told.
#[derive(Debug, Clone, Args)]
#[command(args_override_self = true)]
pub struct RunOptions {
    /// How finely a pod at the other side is named: by its workload, by its own name too, or by its namespace alone.
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
    /// What is read of DNS.
    #[command(flatten)]
    pub dns: DnsOptions,
    /// What is logged and how.
    #[command(flatten)]
    pub log: LogOptions,
    /// A kubelet `/pods` document that names pods.
    ///
    /// For machines without an orchestrator: sandboxes are found from the cgroup tree as always, this file only
    /// tells their names.
    #[arg(long = "pods.file", value_name = "FILE", help_heading = "Pods")]
    pub pods_file: Option<PathBuf>,
    /// Namespaces whose pods are observed, like `shop,bank`; all when there is none.
    ///
    /// With any of the four options that select, programs are attached to a pod when its name, labels and annotations are
    /// known, not before its first packet. One that nobody names within two seconds counts as without any of them.
    #[arg(long = "pods.namespaces", value_name = "NAMES", default_value = "", help_heading = "Pods")]
    pods_namespaces: NameSet,
    /// Namespaces whose pods are not observed.
    #[arg(long = "pods.exclude-namespaces", value_name = "NAMES", default_value = "", help_heading = "Pods")]
    pods_exclude_namespaces: NameSet,
    /// Pods with these labels are observed, like `app=web,env in (prod,test),!legacy` (as `kubectl --selector`).
    #[arg(long = "pods.selector", value_name = "SELECTOR", default_value = "", help_heading = "Pods")]
    pods_selector: Selector,
    /// Pods with these annotations are observed; written like a selector of labels.
    #[arg(long = "pods.annotation-selector", value_name = "SELECTOR", default_value = "", help_heading = "Pods")]
    pods_annotation_selector: Selector,
    /// What else names pods.
    #[command(flatten)]
    pub sources: SourceOptions,
    /// How many edges (container, peer, port, protocol) are counted one by one; 16 to 1048576.
    ///
    /// What finds no place is counted all the same, folded into one series for each container with
    /// peer_kind="other".
    #[arg(
        long = "traffic.edges", value_name = "N", default_value_t = DEFAULT_EDGES, help_heading = "Traffic",
        value_parser = clap::value_parser!(u32).range(16..=1_048_576)
    )]
    pub traffic_edges: u32,
    /// How traffic is counted: every packet, or the payload of TCP connections by their sockets, at the least overhead.
    ///
    /// With `sockets` no program runs for a packet. Shown are the payload of TCP (observer_tcp_payload_bytes_total) and all
    /// that is told of TCP connections; packets, bytes at IP level, UDP, ICMP, every other protocol and DNS are not counted,
    /// and their series are absent. A node's counters begin anew when this is changed.
    #[arg(
        long = "traffic.accounting", value_name = "MODE", value_enum, default_value_t = AccountingOption::Packets,
        help_heading = "Traffic"
    )]
    accounting: AccountingOption,
    /// Count what containers say to each other over Unix sockets (kernel 6.3 and later).
    ///
    /// A program then runs at each send and receive of every socket of the node, and ends at once where that is no Unix
    /// socket. Requests and responses over TCP and UDP pay for it, too: docs/benchmarks.md has what was measured.
    #[arg(long = "traffic.unix-sockets", help_heading = "Traffic")]
    pub unix_sockets: bool,
    /// Runtime handlers and classes whose pods are counted at the host's end of their network interface: names, or parts of
    /// them (`kata` is in `kata-qemu`); none when empty.
    /// Packets of these meet no socket of the host. Such a pod is counted as a whole, without its containers and without what
    /// they say to each other over localhost.
    #[arg(
        long = "traffic.interface-handlers", value_name = "NAMES", default_value = DEFAULT_HANDLERS,
        help_heading = "Traffic"
    )]
    pub interface_handlers: Handlers,
    /// Measure how long threads of containers wait for a CPU.
    ///
    /// A program then runs at each switch from one thread to another on the node.
    #[arg(long = "resources.runqueue", help_heading = "Resources")]
    pub runqueue: bool,
    /// How many series of traffic there are, at most: four for each container, peer, port, protocol and role, and two
    /// more with TCP, as well as one for each kind of failure or reset that there was.
    ///
    /// What goes over is counted all the same, folded into series with peer_kind="other", which are never refused. Who
    /// came first stays.
    #[arg(long = "traffic.series", value_name = "N", default_value_t = 20_000, help_heading = "Traffic")]
    traffic_series: u32,
    /// How many peers one container's series name, at most; the rest is peer_kind="other".
    #[arg(long = "traffic.peers-per-container", value_name = "N", default_value_t = 100, help_heading = "Traffic")]
    traffic_peers: u32,
    /// How many ports one container's series name, at most, those of servers that it calls and its own each for
    /// themselves; the rest has an empty port.
    #[arg(long = "traffic.ports-per-container", value_name = "N", default_value_t = 100, help_heading = "Traffic")]
    traffic_ports: u32,
}

/// Values of `--traffic.accounting`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum AccountingOption {
    /// Every packet of every protocol, at IP level.
    Packets,
    /// TCP payload from the sockets' own counters.
    Sockets,
}

/// Values of `--traffic.peer-detail`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum PeerDetailOption {
    /// peer_workload.
    Workload,
    /// peer_workload and peer_pod.
    Pod,
    /// peer_namespace alone.
    Namespace,
}

impl RunOptions {
    /// How finely a pod at the other side is named.
    #[must_use]
    pub const fn peer_detail(&self) -> PeerDetail {
        match self.peer_detail {
            PeerDetailOption::Workload => PeerDetail::Workload,
            PeerDetailOption::Pod => PeerDetail::Pod,
            PeerDetailOption::Namespace => PeerDetail::Namespace,
        }
    }

    /// How traffic is counted.
    #[must_use]
    pub const fn accounting(&self) -> Accounting {
        match self.accounting {
            AccountingOption::Packets => Accounting::Packets,
            AccountingOption::Sockets => Accounting::Sockets,
        }
    }

    /// Which pods are observed.
    #[must_use]
    pub fn selection(&self) -> Selection {
        Selection {
            namespaces: self.pods_namespaces.clone(),
            exclude_namespaces: self.pods_exclude_namespaces.clone(),
            labels: self.pods_selector.clone(),
            annotations: self.pods_annotation_selector.clone(),
        }
    }

    /// How many series there may be.
    #[must_use]
    pub const fn limits(&self) -> Limits {
        Limits {
            series: self.traffic_series as u64,
            peers_per_container: self.traffic_peers as usize,
            ports_per_container: self.traffic_ports as usize,
        }
    }

    /// See [`SourceOptions::node_name`].
    #[must_use]
    pub fn node_name(&self) -> String {
        self.sources.node_name()
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
