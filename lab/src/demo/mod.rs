//! The agent at work on three pods with real traffic.

mod scene;
mod summary;

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use signal_hook::consts::{SIGINT, SIGTERM};

pub use scene::Scene;
pub use summary::render;

use crate::agent::{self, Agent, AgentOptions};
use crate::bpffs::BpfFs;
use crate::node::Node;
use crate::pod::Pod;
use crate::podsfile;
use crate::samples::Samples;

const PORT: u16 = 10836;
const BETWEEN_SUMMARIES: Duration = Duration::from_secs(5);

/// Shows the demo until Ctrl-C, or for so many seconds; then removes everything that it made.
pub fn run(seconds: Option<u64>, listen: Option<SocketAddr>) -> Result<ExitCode> {
    let stop = stop_on_signal()?;
    let binary = agent::find_binary()?;
    let scene = make_scene()?;
    let bpffs = BpfFs::create()?;
    let directory = tempfile::tempdir().context("making a directory for the pods file")?;
    let pods_file = directory.path().join("pods.json");
    podsfile::write(&pods_file, scene.pods())?;

    let listen = listen.map_or_else(default_address, Ok)?;
    let options = AgentOptions {
        binary: Some(binary.clone()),
        listen: Some(listen),
        pods_file: Some(pods_file),
        bpffs: Some(bpffs.path().to_owned()),
        ..AgentOptions::default()
    };
    say(&format!("Starting the agent {}", binary.display()));
    let agent = Agent::start(scene.node().launcher(), &options)?;
    say(&format!("Metrics: http://{listen}/metrics"));
    scene.start_traffic()?;
    let shown = show(&agent, seconds.map(Duration::from_secs), &stop)
        .with_context(|| format!("watching the agent, whose log is:\n{}", agent.log()));

    say("Removing the agent, its pins and the pods");
    let ended = agent.terminate();
    let uninstalled = agent::uninstall(&binary, bpffs.path());
    shown.and(ended).and(uninstalled)?;
    Ok(ExitCode::SUCCESS)
}

/// Keeps the demo's pods, with their traffic but without an agent, until Ctrl-C or for so many seconds.
/// Writes the pods file there when a path is given.
pub fn pods(seconds: Option<u64>, pods_file: Option<&Path>) -> Result<ExitCode> {
    let stop = stop_on_signal()?;
    let scene = make_scene()?;
    if let Some(path) = pods_file {
        podsfile::write(path, scene.pods())?;
        say(&format!("Pods file: {}", path.display()));
    }
    scene.start_traffic()?;
    say("Ready");
    let end = seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    while !stop.load(Ordering::SeqCst) && end.is_none_or(|end| Instant::now() < end) {
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(ExitCode::SUCCESS)
}

fn make_scene() -> Result<Scene> {
    let start = Instant::now();
    let scene = Scene::create(Node::create()?)?;
    say(&format!("Made three pods in {} ms:", start.elapsed().as_millis()));
    scene.pods().into_iter().for_each(introduce);
    Ok(scene)
}

fn introduce(pod: &Pod) {
    let containers: Vec<String> = pod
        .containers()
        .iter()
        .map(|container| format!("{} (process {})", container.name(), container.pid()))
        .collect();
    say(&format!(
        "  {}/{}  {}  {}: {}",
        pod.spec().namespace,
        pod.spec().name,
        pod.ipv4(),
        pod.ipv6(),
        containers.join(", ")
    ));
}

/// Prints a summary every few seconds and one at the end.
fn show(agent: &Agent, time: Option<Duration>, stop: &AtomicBool) -> Result<()> {
    let end = time.map(|time| Instant::now() + time);
    let mut last: Option<(Samples, Instant)> = None;
    let mut next = Instant::now() + BETWEEN_SUMMARIES;
    loop {
        let over = stop.load(Ordering::SeqCst) || end.is_some_and(|end| Instant::now() >= end);
        if over || Instant::now() >= next {
            let now = (agent.scrape()?, Instant::now());
            let before = last.as_ref().map(|(samples, at)| (samples, now.1 - *at));
            say(&format!("\n{}", render(&now.0, before)));
            let how = if time.is_some() { "ends by itself" } else { "Ctrl-C ends it" };
            say(&format!("All of it: http://{}/metrics ({how})", agent.address()));
            last = Some(now);
            next = Instant::now() + BETWEEN_SUMMARIES;
        }
        if over {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A flag that Ctrl-C and SIGTERM set, so that everything is removed in order.
fn stop_on_signal() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stop)).with_context(|| format!("catching signal {signal}"))?;
    }
    Ok(stop)
}

/// The usual port, else a free one.
fn default_address() -> Result<SocketAddr> {
    let usual = SocketAddr::from((Ipv4Addr::LOCALHOST, PORT));
    if TcpListener::bind(usual).is_ok() {
        return Ok(usual);
    }
    let free = agent::free_address()?;
    say(&format!("Port {PORT} is taken, so the agent listens on port {}", free.port()));
    Ok(free)
}

/// Prints a line. Whoever closed the pipe does not want it; what was made is removed all the same.
fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}
