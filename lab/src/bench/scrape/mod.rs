//! What a scrape costs: many pods that have talked to each other, one agent, scrapes in a row.

mod node;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use comfy_table::Table;
use comfy_table::presets::{ASCII_MARKDOWN, UTF8_FULL_CONDENSED};

use self::node::FullNode;
use super::ratios::Spread;
use super::usage::{self, Usage};
use crate::agent::Agent;

/// How to measure.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// How many pods the node has, one table row of each path for each number.
    #[arg(long, value_delimiter = ',', default_value = "110,500")]
    pods: Vec<usize>,
    /// Containers in each pod.
    #[arg(long, default_value_t = 3)]
    containers: usize,
    /// How often each path is scraped.
    #[arg(long, default_value_t = 100)]
    scrapes: u32,
    /// From a scrape to the next, in milliseconds.
    #[arg(long, default_value_t = 200)]
    every: u64,
    /// How long the agent is watched while nobody scrapes, in milliseconds.
    #[arg(long, default_value_t = 15_000)]
    idle: u64,
    /// Write the table as Markdown to this file too.
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Exit with status 1 when a node of 110 pods with 3 containers is over its budget.
    #[arg(long)]
    check: bool,
}

const PATHS: [&str; 3] = ["/metrics", "/metrics/cadvisor", "/metrics/resource"];

/// How often a Prometheus server scrapes in the budget.
const INTERVAL: Duration = Duration::from_secs(15);

/// The node that the budgets are for: pods, and containers in each.
const BUDGETED: (usize, usize) = (110, 3);
/// A scrape of `/metrics`, median.
const TIME_BUDGET: Duration = Duration::from_millis(10);
/// Resident memory of the agent, in bytes.
const MEMORY_BUDGET: u64 = 30 << 20;
/// The part of a core that the agent takes when `/metrics` is scraped each [`INTERVAL`], what it does in between
/// included.
const CORE_BUDGET: f64 = 0.003;

/// What the scrapes of one path cost.
struct Scraped {
    path: &'static str,
    /// Wall-clock time from the request to the last byte, in seconds.
    times: Spread,
    longest: f64,
    /// CPU time of the agent for each.
    cpu: Duration,
    bytes: usize,
    series: usize,
}

/// What one node costs.
struct Measured {
    pods: usize,
    containers: usize,
    paths: Vec<Scraped>,
    /// CPU time of the agent in a second in which nobody scrapes.
    idle: Duration,
    /// Resident at the end, in bytes.
    resident: u64,
    /// The most that was ever resident, in bytes.
    peak: u64,
}

impl Measured {
    /// The part of a core at one scrape of `/metrics` each [`INTERVAL`].
    fn core(&self) -> f64 {
        self.core_of(1)
    }

    /// The same at one scrape of each path: for who has turned cAdvisor off.
    fn core_of_all(&self) -> f64 {
        self.core_of(self.paths.len())
    }

    fn core_of(&self, paths: usize) -> f64 {
        let scrapes: Duration = self.paths.iter().take(paths).map(|path| path.cpu).sum();
        self.idle.as_secs_f64() + scrapes.as_secs_f64() / INTERVAL.as_secs_f64()
    }

    fn within_budget(&self) -> bool {
        (self.pods, self.containers) != BUDGETED
            || (self.paths.first().is_some_and(|path| path.times.median <= TIME_BUDGET.as_secs_f64())
                && self.resident <= MEMORY_BUDGET
                && self.core() <= CORE_BUDGET)
    }
}

/// Measures and prints.
///
/// # Errors
/// When the pods cannot be made, the agent does not start, or does not show all of them.
pub fn scrape(options: &Options) -> Result<ExitCode> {
    let measured: Vec<Measured> = options.pods.iter().map(|pods| measure(options, *pods)).collect::<Result<_>>()?;
    report(&measured, options)
}

fn measure(options: &Options, pods: usize) -> Result<Measured> {
    let containers = options.containers;
    let node = FullNode::create(pods, containers)?;
    let agent = node.agent()?;
    node.talk()?;
    node.wait_until_shown(&agent)?;
    eprintln!("watching the agent for {} ms", options.idle);
    let idle = Usage::during(agent.pid(), || {
        std::thread::sleep(Duration::from_millis(options.idle));
        Ok(())
    })?;
    let idle = idle.cpu.div_f64(idle.time.as_secs_f64());
    let paths = PATHS.into_iter().map(|path| measure_path(&agent, path, idle, options)).collect::<Result<_>>()?;
    let (resident, peak) = usage::memory(agent.pid())?;
    agent.terminate()?;
    Ok(Measured { pods, containers, paths, idle, resident, peak })
}

fn measure_path(agent: &Agent, path: &'static str, idle: Duration, options: &Options) -> Result<Scraped> {
    eprintln!("scraping {path} {} times", options.scrapes);
    let text = agent.fetch(path)?;
    let series = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).count();
    ensure!(series > 0, "{path} is empty");
    let mut times = Vec::new();
    let usage = Usage::during(agent.pid(), || {
        for _ in 0..options.scrapes {
            let begin = Instant::now();
            agent.fetch(path)?;
            times.push(begin.elapsed().as_secs_f64());
            std::thread::sleep(Duration::from_millis(options.every).saturating_sub(begin.elapsed()));
        }
        Ok(())
    })?;
    let cpu = usage.cpu.saturating_sub(idle.mul_f64(usage.time.as_secs_f64())) / options.scrapes.max(1);
    let longest = times.iter().copied().fold(0.0, f64::max);
    let times = Spread::of(times).context("nothing was scraped")?;
    Ok(Scraped { path, times, longest, cpu, bytes: text.len(), series })
}

fn report(measured: &[Measured], options: &Options) -> Result<ExitCode> {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    table.set_header([
        "pods × containers",
        "path",
        "series",
        "size",
        "time (quartiles)",
        "longest",
        "CPU",
        "resident (peak)",
        "of a core",
    ]);
    for node in measured {
        for (at, path) in node.paths.iter().enumerate() {
            let once = |text: String| if at == 0 { text } else { String::new() };
            table.add_row([
                once(format!("{} × {}", node.pods, node.containers)),
                path.path.to_owned(),
                path.series.to_string(),
                format!("{:.2} MB", path.bytes as f64 / 1e6),
                format!("{:.1} ms ({:.1}–{:.1})", path.times.median * 1e3, path.times.low * 1e3, path.times.high * 1e3),
                format!("{:.1} ms", path.longest * 1e3),
                format!("{:.1} ms", path.cpu.as_secs_f64() * 1e3),
                once(format!("{:.1} MiB ({:.1})", mebibytes(node.resident), mebibytes(node.peak))),
                once(format!(
                    "{:.3} %, idle {:.3} %, all paths {:.3} %",
                    node.core() * 100.0,
                    node.idle.as_secs_f64() * 100.0,
                    node.core_of_all() * 100.0
                )),
            ]);
        }
    }
    println!("{table}");
    println!(
        "Each path {} times, {} ms apart. \"Of a core\": idle, and /metrics every {} s; all \
         paths: each of them as often. Budget for {} × {}: {} ms \
         (median), {} MiB, {} %.",
        options.scrapes,
        options.every,
        INTERVAL.as_secs(),
        BUDGETED.0,
        BUDGETED.1,
        TIME_BUDGET.as_millis(),
        MEMORY_BUDGET >> 20,
        CORE_BUDGET * 100.0,
    );
    if let Some(path) = &options.markdown {
        table.load_style(ASCII_MARKDOWN);
        std::fs::write(path, format!("{table}\n")).with_context(|| format!("writing {}", path.display()))?;
    }
    let met = measured.iter().all(Measured::within_budget);
    println!("{}", if met { "Within budget." } else { "OVER BUDGET." });
    Ok(if met || !options.check { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
