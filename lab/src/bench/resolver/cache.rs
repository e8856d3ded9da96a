//! What the addresses that an agent has asked for take of its memory: the agent's own code, in a process of its own.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use observer::identity::cluster::{Known, PeerBook, Resolver, ResolverOptions};
use observer::metrics::{AgentMetrics, BuildInfo, ProbeState};
use procfs::process::Process;

use super::cluster::{Cluster, Size};

/// How long all answers may take.
const ANSWERS: Duration = Duration::from_secs(60);

/// Starts [`memory`] in another process.
pub(super) fn measure(url: &str, addresses: u32) -> Result<u64> {
    let me = std::env::current_exe().context("asking for the path of this program")?;
    let output = Command::new(me)
        .args(["bench", "resolver", "--cache-of", url, "--cached", &addresses.to_string()])
        .stderr(Stdio::inherit())
        .output()
        .context("starting an agent's cache")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "the agent's cache ended with {}: {text}", output.status);
    text.trim().parse().with_context(|| format!("reading its answer {text:?}"))
}

/// By how much this process's own memory (`RssAnon`, proc_pid_status(5)) grows with so many addresses of pods, in bytes.
pub(super) fn memory(url: &str, addresses: u32) -> Result<u64> {
    let all = Cluster::new(Size { nodes: 1, pods: addresses, services: 1 });
    let all: Vec<_> = (0..addresses).filter_map(|at| all.pod_address(at)).collect();
    let book = Arc::new(PeerBook::default());
    let metrics = Arc::new(AgentMetrics::new(BuildInfo::default()));
    let options = ResolverOptions {
        url: url.parse().map_err(anyhow::Error::msg)?,
        ca_file: "/nonexistent".into(),
        token_file: None,
    };
    let deadline = Instant::now() + ANSWERS;
    let (_source, resolver) = Resolver::start(options, Arc::clone(&book), Arc::clone(&metrics))?;
    while !metrics.probes().iter().any(|probe| probe.state == ProbeState::Ok) {
        ensure!(Instant::now() < deadline, "not connected to the resolver: {:?}", metrics.probes());
        std::thread::sleep(Duration::from_millis(1));
    }
    let before = anonymous()?;
    resolver.see(all.iter().copied(), deadline);
    let unknown = all.iter().filter(|address| book.who(**address, u64::MAX) == Known::Unknown).count();
    ensure!(unknown == 0, "{unknown} addresses have no answer");
    Ok(anonymous()?.saturating_sub(before))
}

fn anonymous() -> Result<u64> {
    let status = Process::myself()?.status().context("reading /proc/self/status")?;
    status.rssanon.map(|kibibytes| kibibytes << 10).context("the kernel does not tell RssAnon")
}
