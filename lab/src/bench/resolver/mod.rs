//! A resolver of a large cluster, and its agents. The cluster is generated and served over HTTP as its API would; the
//! resolver is a process of its own; agents are connections to it. At the end each agent must have been told the truth.

mod agents;
mod cache;
mod cluster;
mod server;
mod whole;

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use comfy_table::Table;
use comfy_table::presets::{ASCII_MARKDOWN, UTF8_FULL_CONDENSED};
use tokio::time::{MissedTickBehavior, interval, sleep};

use self::agents::{Agent, Shared};
use self::cluster::{Cluster, Kind, Size};
use self::server::Server;
use super::usage::{self, Usage};
use crate::agent::find_binary;
use crate::process;

/// How long the first lists may take.
const LISTS: Duration = Duration::from_secs(240);
/// How long answers may take to arrive when nothing happens any more.
const REST: Duration = Duration::from_secs(20);
/// How often an agent sees one new address in the place of another.
const NEW_PEER: Duration = Duration::from_secs(5);
/// What a resolver and an agent may need.
const BUDGETS: (u64, u64) = (500 << 20, 40 << 20);

/// Options of the benchmark.
#[derive(clap::Args, Debug)]
pub struct Options {
    /// Nodes of the cluster.
    #[arg(long, default_value_t = 5_000)]
    nodes: u32,
    /// Pods of the cluster.
    #[arg(long, default_value_t = 150_000)]
    pods: u32,
    /// Services of the cluster.
    #[arg(long, default_value_t = 10_000)]
    services: u32,
    /// Pods that come or go in a second.
    #[arg(long, default_value_t = 100)]
    changes: u32,
    /// Agents that are simulated.
    #[arg(long, default_value_t = 500)]
    agents: u32,
    /// Addresses that each agent wants to know, the whole one too.
    #[arg(long, default_value_t = 200)]
    peers: usize,
    /// How long it is measured for, in seconds.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Addresses in the cache of the agent whose memory is measured.
    #[arg(long, default_value_t = 50_000)]
    cached: u32,
    /// Write the table as Markdown to this file too.
    #[arg(long, value_name = "FILE")]
    markdown: Option<std::path::PathBuf>,
    /// Only fill the cache of an agent from this resolver, and say what memory it takes (the benchmark starts this itself).
    #[arg(long, hide = true)]
    cache_of: Option<String>,
}

/// Measures and prints.
///
/// # Errors
/// When the resolver does not start, or an agent was not told the truth.
pub fn resolver(options: &Options) -> Result<ExitCode> {
    if let Some(url) = &options.cache_of {
        println!("{}", cache::memory(url, options.cached)?);
        return Ok(ExitCode::SUCCESS);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let rows = runtime.block_on(measure(options))?;
    runtime.shutdown_background();
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    table.set_header(["what", "measured", "budget"]);
    table.add_rows(rows);
    println!("{table}");
    if let Some(path) = &options.markdown {
        table.load_style(ASCII_MARKDOWN);
        std::fs::write(path, format!("{table}\n")).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A resolver process.
struct Resolver {
    child: Child,
    agents: SocketAddr,
    web: SocketAddr,
}

impl Resolver {
    fn start(api: SocketAddr) -> Result<Self> {
        let (agents, web) = (free_address()?, free_address()?);
        let mut command = Command::new(find_binary()?);
        command
            .args(["resolver", "--log.level", "warn", "--kubernetes"])
            .arg(format!("http://{api}"))
            .args(["--resolver.listen-address", &agents.to_string(), "--web.listen-address", &web.to_string()])
            .stdin(Stdio::null());
        Ok(Self { child: process::spawn(command)?, agents, web })
    }

    async fn wait_ready(&mut self) -> Result<()> {
        let began = Instant::now();
        let url = format!("http://{}/readyz", self.web);
        loop {
            let asked = url.clone();
            if tokio::task::spawn_blocking(move || ureq::get(asked).call().is_ok()).await? {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait().context("asking for the resolver")? {
                bail!("the resolver has ended: {status}");
            }
            anyhow::ensure!(began.elapsed() < LISTS, "the resolver is not ready after {} s", LISTS.as_secs());
            sleep(Duration::from_millis(100)).await;
        }
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn measure(options: &Options) -> Result<Vec<[String; 3]>> {
    let size = Size { nodes: options.nodes, pods: options.pods, services: options.services };
    let (server, api) = Server::start(Cluster::new(size)).await?;
    eprintln!("the resolver lists {} pods, {} Services, {} nodes", size.pods, size.services, size.nodes);
    let began = Instant::now();
    let mut resolver = Resolver::start(api)?;
    resolver.wait_ready().await?;
    let (listed, listing) = (server.listed.load(Relaxed), began.elapsed());
    let pid = resolver.child.id();
    let (alone, _) = usage::memory(pid)?;

    eprintln!("{} agents connect", options.agents);
    let url = format!("http://{}", resolver.agents);
    let shared = Arc::new(Shared::default());
    let mut wishes = Wishes::new(size, server.cluster().workloads());
    let mut agents = Vec::new();
    let began = Instant::now();
    for _ in 0..options.agents {
        let wanted = wishes.some(options.peers, &server);
        agents.push(Agent::connect(url.clone(), wanted, Arc::clone(&shared)).await?);
    }
    while !agents.iter().all(Agent::is_answered) {
        anyhow::ensure!(began.elapsed() < REST, "not all agents have answers to what they asked");
        sleep(Duration::from_millis(5)).await;
    }
    let connected = began.elapsed();

    eprintln!("{} pods come or go in each of {} seconds", options.changes, options.seconds);
    let before = Counts::of(&server, &shared);
    let begin = (Instant::now(), usage::cpu(pid)?);
    churn(options, &server, &shared, &mut wishes, &mut agents).await?;
    let usage = Usage { time: begin.0.elapsed(), cpu: usage::cpu(pid)?.saturating_sub(begin.1) };
    let counts = Counts::of(&server, &shared).since(&before);
    check(&server, &agents).await?;
    let (resident, peak) = usage::memory(pid)?;

    eprintln!("an agent's cache is filled with {} addresses", options.cached);
    let cache = cache::measure(&url, options.cached)?;
    drop(agents);
    eprintln!("a whole agent with pods that talk to {} addresses", options.peers);
    let wanted = wishes.some(options.peers, &server);
    let whole = tokio::task::spawn_blocking(move || whole::measure(&url, &wanted)).await??;
    let measured = Measured { listed, listing, alone, connected, counts, usage, resident, peak, cache, whole };
    Ok(rows(options, &measured, &shared))
}

/// What was measured.
struct Measured {
    listed: u64,
    listing: Duration,
    /// Memory of the resolver before there were agents.
    alone: u64,
    connected: Duration,
    counts: Counts,
    usage: Usage,
    resident: u64,
    peak: u64,
    cache: u64,
    /// Of a whole agent, now and at its peak.
    whole: (u64, u64),
}

/// Pods come and go, and agents see new addresses, for as long as it is measured.
async fn churn(
    options: &Options,
    server: &Server,
    shared: &Shared,
    wishes: &mut Wishes,
    agents: &mut [Agent],
) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(options.seconds);
    let mut pods = interval(Duration::from_secs(1) / options.changes.max(1));
    let mut peers = interval(NEW_PEER / options.agents.max(1));
    // kubelets report every five minutes.
    let mut nodes = interval(Duration::from_secs(300) / options.nodes.max(1));
    for ticks in [&mut pods, &mut peers, &mut nodes] {
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    }
    let mut turn = 0;
    while Instant::now() < end {
        tokio::select! {
            _ = pods.tick() => {
                let change = server.cluster().change();
                shared.changed(change.address, change.pod);
                server.tell(change.events);
            }
            _ = nodes.tick() => {
                let event = server.cluster().heartbeat();
                server.tell(vec![event]);
            }
            _ = peers.tick() => {
                let at = turn % agents.len();
                turn += 1;
                let address = wishes.one(server);
                if !agents[at].wanted.contains(&address) {
                    agents[at].replace(turn % options.peers, address).await?;
                }
            }
        }
    }
    Ok(())
}

/// Waits until all agents were told what is so.
///
/// # Errors
/// When one was not.
async fn check(server: &Server, agents: &[Agent]) -> Result<()> {
    let truth = {
        let cluster = server.cluster();
        let pods =
            (0..cluster.count(Kind::Pods)).filter_map(|at| Some((cluster.pod_address(at)?, cluster.pod_name(at)?)));
        let services =
            (0..cluster.count(Kind::Services)).map(|at| (Cluster::service_address(at), format!("workload-{at}")));
        let nodes = (0..cluster.count(Kind::Nodes)).map(|at| (Cluster::node_address(at), format!("node-{at}")));
        pods.chain(services).chain(nodes).collect::<std::collections::HashMap<IpAddr, String>>()
    };
    let deadline = Instant::now() + REST;
    loop {
        let told = agents.iter().try_for_each(|agent| agent.check(|address| truth.get(&address).cloned()));
        if told.is_ok() || Instant::now() > deadline {
            return told;
        }
        sleep(Duration::from_millis(50)).await;
    }
}

/// Which addresses agents see: those of popular workloads more often than others, as 1 by rank (Zipf).
struct Wishes {
    size: Size,
    /// For each workload the sum of all weights up to it.
    weights: Vec<f64>,
}

impl Wishes {
    fn new(size: Size, workloads: u32) -> Self {
        let mut sum = 0.0;
        let weights = (0..workloads).map(|rank| {
            sum += 1.0 / f64::from(rank + 1);
            sum
        });
        Self { size, weights: weights.collect() }
    }

    fn some(&self, number: usize, server: &Server) -> Vec<IpAddr> {
        let mut wanted = HashSet::new();
        while wanted.len() < number {
            wanted.insert(self.one(server));
        }
        wanted.into_iter().collect()
    }

    /// Six in ten are pods, three Services, one a node.
    fn one(&self, server: &Server) -> IpAddr {
        let mut cluster = server.cluster();
        let share =
            f64::from(cluster.random(1 << 30)) / f64::from(1 << 30) * self.weights.last().copied().unwrap_or(1.0);
        let rank = self.weights.partition_point(|sum| *sum < share).min(self.weights.len().saturating_sub(1));
        // There are fewer workloads than pods, whose number is a u32.
        let workload = rank as u32;
        match cluster.random(10) {
            0..6 => {
                let replica = cluster.random(1 << 16);
                let place = cluster.place(workload, replica);
                cluster.pod_address(place).unwrap_or_else(|| Cluster::service_address(workload % self.size.services))
            }
            6..9 => Cluster::service_address(workload % self.size.services),
            _ => Cluster::node_address(cluster.random(self.size.nodes)),
        }
    }
}

/// What went over the network.
struct Counts {
    watched: u64,
    messages: u64,
    bytes: u64,
    answers: u64,
    requests: u64,
    request_bytes: u64,
}

impl Counts {
    fn of(server: &Server, shared: &Shared) -> Self {
        let load = |number: &AtomicU64| number.load(Relaxed);
        Self {
            watched: load(&server.watched),
            messages: load(&shared.messages),
            bytes: load(&shared.bytes),
            answers: load(&shared.answers),
            requests: load(&shared.requests),
            request_bytes: load(&shared.request_bytes),
        }
    }

    fn since(self, before: &Self) -> Self {
        Self {
            watched: self.watched - before.watched,
            messages: self.messages - before.messages,
            bytes: self.bytes - before.bytes,
            answers: self.answers - before.answers,
            requests: self.requests - before.requests,
            request_bytes: self.request_bytes - before.request_bytes,
        }
    }
}

fn rows(options: &Options, measured: &Measured, shared: &Shared) -> Vec<[String; 3]> {
    let Measured { listed, listing, alone, connected, counts, usage, resident, peak, cache, whole } = measured;
    let seconds = usage.time.as_secs_f64();
    let rate = |number: u64| number as f64 / seconds;
    let mebibytes = |bytes: u64| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
    let megabytes = |bytes: f64| match bytes {
        1e12.. => format!("{:.2} TB", bytes / 1e12),
        1e9.. => format!("{:.2} GB", bytes / 1e9),
        _ => format!("{:.2} MB", bytes / 1e6),
    };
    let verdict = |bytes: u64, budget: u64| {
        let word = if bytes < budget { "met" } else { "MISSED" };
        format!("< {} MiB: {word}", budget >> 20)
    };
    let delays = shared.delays();
    let delay = |share: f64| {
        let last = delays.len().saturating_sub(1);
        // A position in the list.
        let at = (last as f64 * share).round() as usize;
        delays.get(at).map_or_else(|| "none".to_owned(), |delay| format!("{:.1} ms", delay.as_secs_f64() * 1e3))
    };
    let nodes = f64::from(options.nodes);
    let plain = |what: &str, value: String| [what.to_owned(), value, String::new()];
    vec![
        plain("cluster", format!("{} nodes, {} pods, {} Services", options.nodes, options.pods, options.services)),
        plain("the resolver's first lists", format!("{} in {:.1} s", megabytes(*listed as f64), listing.as_secs_f64())),
        plain("resolver's memory without agents", mebibytes(*alone)),
        [
            format!("resolver's memory with {} agents (peak)", options.agents),
            format!("{} ({})", mebibytes(*resident), mebibytes(*peak)),
            verdict(*peak, BUDGETS.0),
        ],
        [
            format!("memory of a whole agent whose pods talk to {} addresses (peak)", options.peers),
            format!("{} ({})", mebibytes(whole.0), mebibytes(whole.1)),
            verdict(whole.0, BUDGETS.1),
        ],
        plain(
            &format!("memory that {} cached addresses take of an agent (it keeps 50,000 at most)", options.cached),
            mebibytes(*cache),
        ),
        plain(
            &format!("time until {} agents have {} answers each", options.agents, options.peers),
            format!("{:.0} ms", connected.as_secs_f64() * 1e3),
        ),
        plain("resolver's CPU", format!("{:.1} % of a core", usage.cpu.as_secs_f64() / seconds * 100.0)),
        plain(
            "resolver to agents, all together",
            format!(
                "{:.1} messages, {:.1} answers, {:.2} kB a second",
                rate(counts.messages),
                rate(counts.answers),
                rate(counts.bytes) / 1e3
            ),
        ),
        plain(
            "agents to resolver, all together",
            format!("{:.1} messages, {:.2} kB a second", rate(counts.requests), rate(counts.request_bytes) / 1e3),
        ),
        plain(
            "time until a change is known to a subscriber (median, 99 %, longest)",
            format!("{}, {}, {} of {}", delay(0.5), delay(0.99), delay(1.0), delays.len()),
        ),
        plain("API server to the resolver", format!("{} a second", megabytes(rate(counts.watched)))),
        plain(
            &format!("API server to {} agents that watch by themselves", options.nodes),
            format!(
                "{} a second, {} for lists after a restart",
                megabytes(rate(counts.watched) * nodes),
                megabytes(*listed as f64 * nodes)
            ),
        ),
    ]
}

fn free_address() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").context("looking for a free port")?;
    listener.local_addr().context("asking for the port")
}
