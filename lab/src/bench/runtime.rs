//! What it costs to ask a real container runtime, and whether its pods leave anything: containerd over CRI.

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use comfy_table::Table;
use comfy_table::presets::ASCII_MARKDOWN;

use super::ratios::Spread;
use super::usage;
use crate::agent::{Agent, AgentOptions};
use crate::bpffs::BpfFs;
use crate::cri_node::{CriContainerSpec, CriNode, CriPodSpec};
use crate::holdings::Holdings;
use crate::launch::Launcher;

const NAMESPACE: &str = "bench";
const CONTAINER: &str = "app";
/// How long the agent may take to name a pod, and to give back what it had.
const PATIENCE: Duration = Duration::from_secs(60);
/// Pods that come and go before anything is compared: so that what is made once is there.
const WARM: u32 = 5;

/// How to measure.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Pods that are there while nothing happens.
    #[arg(long, default_value_t = 30)]
    pods: u32,
    /// How often each variant is measured.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// How long one measurement takes, in milliseconds.
    #[arg(long, default_value_t = 6_000)]
    milliseconds: u64,
    /// Pods that come and go afterwards, one after another.
    #[arg(long, default_value_t = 300)]
    passing: u32,
}

/// Parts of a core, in one measurement of each round.
#[derive(Default)]
struct Parts {
    agent: Vec<f64>,
    containerd: Vec<f64>,
}

/// Measures and prints. The exit status tells whether anything is left.
///
/// # Errors
/// When containerd, a pod or the agent cannot be run, or a pod is not named.
pub fn runtime(options: &Options) -> Result<ExitCode> {
    let node = CriNode::create(Launcher::find()?)?;
    let bpffs = BpfFs::create()?;
    let pods = (0..options.pods).map(|number| pod(&node, &format!("stays-{number}"))).collect::<Result<Vec<_>>>()?;
    idle(&node, &bpffs, options)?;
    let left = passing(&node, &bpffs, options)?;
    drop(pods);
    for line in &left {
        println!("LEFT: {line}");
    }
    Ok(if left.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn pod<'a>(node: &'a CriNode, name: &str) -> Result<(crate::cri_node::CriPod<'a>, crate::cri_node::CriContainer<'a>)> {
    let pod = node.pod(&CriPodSpec::new(NAMESPACE, name))?;
    let container = pod.container(&CriContainerSpec::new(CONTAINER, &[]))?;
    Ok((pod, container))
}

fn start(node: &CriNode, bpffs: &BpfFs, endpoint: &str) -> Result<Agent> {
    let arguments = ["--cri.endpoint", endpoint].map(std::ffi::OsString::from).to_vec();
    let options = AgentOptions { bpffs: Some(bpffs.path().to_owned()), arguments, ..AgentOptions::default() };
    Agent::start(node.launcher(), &options)
}

/// While nothing happens: an agent that asks the runtime, and one that does not, in alternation.
fn idle(node: &CriNode, bpffs: &BpfFs, options: &Options) -> Result<()> {
    let (mut asking, mut silent) = (Parts::default(), Parts::default());
    let containerd = node.containerd().context("containerd does not run")?;
    for round in 0..options.rounds {
        eprint!("\rnothing happens, round {} of {}", round + 1, options.rounds);
        let mut both = [(node.endpoint(), &mut asking), ("none".to_owned(), &mut silent)];
        if round % 2 == 1 {
            both.reverse();
        }
        for (endpoint, parts) in both {
            let agent = start(node, bpffs, &endpoint)?;
            let wanted = options.pods as usize;
            let seen = |all: &crate::samples::Samples| all.select("observer_sandbox_info", &[]).count() >= wanted;
            agent.wait_until(PATIENCE, "all pods to be seen", seen)?;
            // Its first lists are over.
            std::thread::sleep(Duration::from_secs(2));
            let (begin, before) = (Instant::now(), (usage::cpu(agent.pid())?, usage::cpu(containerd)?));
            std::thread::sleep(Duration::from_millis(options.milliseconds));
            let time = begin.elapsed().as_secs_f64();
            let part = |now: Duration, before: Duration| now.saturating_sub(before).as_secs_f64() / time;
            parts.agent.push(part(usage::cpu(agent.pid())?, before.0));
            parts.containerd.push(part(usage::cpu(containerd)?, before.1));
            agent.terminate()?;
        }
    }
    eprintln!();
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN);
    table.set_header(["of a core, in percent", "asked over CRI", "not asked"]);
    for (who, asked, not) in
        [("agent", asking.agent, silent.agent), ("containerd", asking.containerd, silent.containerd)]
    {
        let percent = |parts: Vec<f64>| {
            let spread = Spread::of(parts.into_iter().map(|part| part * 100.0).collect());
            spread.map_or_else(|| "nothing was measured".to_owned(), |spread| spread.to_string())
        };
        table.add_row([who.to_owned(), percent(asked), percent(not)]);
    }
    println!("{} pods, nothing happens, median and quartiles of {} measurements:", options.pods, options.rounds);
    println!("{table}");
    Ok(())
}

/// Pods come, are named, and go. What is there afterwards that was not there before.
fn passing(node: &CriNode, bpffs: &BpfFs, options: &Options) -> Result<Vec<String>> {
    let agent = start(node, bpffs, &node.endpoint())?;
    for number in 0..WARM {
        pass(node, &agent, number)?;
    }
    let before = calm(&agent, bpffs.path(), options.pods, None)?;
    let begin = Instant::now();
    for number in 0..options.passing {
        eprint!("\rpod {} of {}", number + 1, options.passing);
        pass(node, &agent, number)?;
    }
    eprintln!();
    let took = begin.elapsed();
    let after = calm(&agent, bpffs.path(), options.pods, Some(&before))?;
    agent.terminate()?;
    println!("{} pods came, were named and went in {:.0} s:", options.passing, took.as_secs_f64());
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN);
    table.set_header(["", "before", "after"]);
    for ((what, then), (_, now)) in before.parts().into_iter().zip(after.parts()) {
        table.add_row([what.to_owned(), then.to_string(), now.to_string()]);
    }
    println!("{table}");
    Ok(after.left_since(&before, options.passing))
}

fn pass(node: &CriNode, agent: &Agent, number: u32) -> Result<()> {
    let name = format!("passing-{number}");
    let (pod, container) = pod(node, &name)?;
    let labels = [("namespace", NAMESPACE), ("pod", name.as_str()), ("container", CONTAINER)];
    let named = |all: &crate::samples::Samples| all.get("observer_container_restarts_total", &labels).is_some();
    agent.wait_until(PATIENCE, &name, named)?;
    drop(container);
    pod.remove()
}

/// Waits until only the pods that stay are there, and until no more is given back than was before.
fn calm(agent: &Agent, bpffs: &Path, pods: u32, before: Option<&Holdings>) -> Result<Holdings> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let samples = agent.scrape()?;
        std::thread::sleep(Duration::from_millis(500));
        let now = Holdings::of(agent, bpffs)?;
        // Two links for each pod.
        let alone =
            samples.select("observer_sandbox_info", &[]).count() == pods as usize && now.links == 2 * pods as usize;
        let given_back = before.is_none_or(|before| {
            now.descriptors <= before.descriptors
                && now.threads <= before.threads
                && now.watches <= before.watches
                && now.map_memory <= before.map_memory
        });
        if alone && given_back || before.is_some() && Instant::now() > deadline {
            return Ok(now);
        }
        ensure!(Instant::now() < deadline, "the pods that went are still shown, or their links are there");
    }
}
