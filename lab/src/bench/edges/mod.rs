//! How costs grow: with who talks to whom, and not with how often.

mod crowd;
mod plot;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use comfy_table::Table;
use comfy_table::presets::{ASCII_MARKDOWN, UTF8_FULL_CONDENSED};

use self::crowd::{Crowd, FEW_EDGES};
use super::ratios::Spread;
use super::usage::{self, Usage};

/// How to measure.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// How many connections are made over 50 edges, an agent for each number.
    #[arg(long, value_delimiter = ',', default_value = "1000,10000,100000")]
    connections: Vec<usize>,
    /// How many edges there are, two agents for each number: one whose budgets have room for all, one with the defaults.
    #[arg(long, value_delimiter = ',', default_value = "10,1000,50000")]
    edges: Vec<usize>,
    /// How often each agent is scraped.
    #[arg(long, default_value_t = 30)]
    scrapes: u32,
    /// From the end of a scrape to the next, in milliseconds.
    #[arg(long, default_value_t = 200)]
    every: u64,
    /// Write the table as Markdown to this file too.
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Draw the figures into this SVG file.
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
}

/// What is varied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Size {
    /// TCP connections over [`FEW_EDGES`] edges.
    Connections(usize),
    /// Edges, of one datagram each.
    Edges(usize),
}

/// How many edges and series there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Budgets {
    /// Room for all edges.
    Wide,
    Default,
}

impl Budgets {
    fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Wide => {
                &["--traffic.edges", "65536", "--traffic.series", "1000000", "--traffic.ports-per-container", "65535"]
            }
            Self::Default => &[],
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Wide => "wide",
            Self::Default => "default",
        }
    }
}

/// What one agent costs.
struct Measured {
    size: Size,
    budgets: Budgets,
    /// Samples on the page.
    series: usize,
    /// Bytes of the page.
    bytes: usize,
    /// Wall-clock time of a scrape from the request to the last byte, in seconds.
    times: Spread,
    /// CPU time of the agent from a scrape to the next, in seconds.
    cpu: Spread,
    /// Resident memory of the agent after the scrapes, and the most that it ever was, in bytes.
    resident: (u64, u64),
    /// Memory of the kernel's maps, in bytes.
    maps: u64,
}

/// Measures and prints.
///
/// # Errors
/// When the pods cannot be made, the agent does not start, or did not count what was sent.
pub fn edges(options: &Options) -> Result<ExitCode> {
    let connections = options.connections.iter().map(|number| (Size::Connections(*number), Budgets::Default));
    let edges = |budgets| options.edges.iter().map(move |number| (Size::Edges(*number), budgets));
    let runs: Vec<_> = connections.chain(edges(Budgets::Wide)).chain(edges(Budgets::Default)).collect();
    let mut measured = Vec::new();
    for (size, budgets) in runs {
        eprintln!("{size:?}, {} budgets", budgets.name());
        measured.push(measure(size, budgets, options).with_context(|| format!("measuring {size:?}"))?);
    }
    report(&measured, options)?;
    Ok(ExitCode::SUCCESS)
}

fn measure(size: Size, budgets: Budgets, options: &Options) -> Result<Measured> {
    let crowd = Crowd::create()?;
    let agent = crowd.agent(budgets.arguments())?;
    crowd.talk(&agent, size)?;
    let pid = agent.pid();
    let text = agent.fetch("/metrics")?;
    let (mut times, mut cpu) = (Vec::new(), Vec::new());
    for _ in 0..options.scrapes {
        // With the pause behind it, in which the agent lets go of what the scrape took.
        let usage = Usage::during(pid, || {
            let begin = Instant::now();
            agent.fetch("/metrics")?;
            times.push(begin.elapsed().as_secs_f64());
            std::thread::sleep(Duration::from_millis(options.every));
            Ok(())
        })?;
        cpu.push(usage.cpu.as_secs_f64());
    }
    let measured = Measured {
        size,
        budgets,
        series: text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).count(),
        bytes: text.len(),
        times: Spread::of(times).context("nothing was scraped")?,
        cpu: Spread::of(cpu).context("nothing was scraped")?,
        resident: usage::memory(pid)?,
        maps: usage::maps(pid)?,
    };
    agent.terminate()?;
    Ok(measured)
}

fn report(measured: &[Measured], options: &Options) -> Result<()> {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    table.set_header([
        "connections",
        "edges",
        "budgets",
        "series",
        "page",
        "scrape (quartiles)",
        "CPU of a scrape (quartiles)",
        "resident (peak)",
        "maps",
    ]);
    for one in measured {
        let (connections, edges) = match one.size {
            Size::Connections(connections) => (connections.to_string(), FEW_EDGES),
            Size::Edges(edges) => (String::new(), edges),
        };
        table.add_row([
            connections,
            edges.to_string(),
            one.budgets.name().to_owned(),
            one.series.to_string(),
            format!("{:.2} MB", one.bytes as f64 / 1e6),
            milliseconds(one.times),
            milliseconds(one.cpu),
            format!("{:.1} MiB ({:.1})", mebibytes(one.resident.0), mebibytes(one.resident.1)),
            format!("{:.1} MiB", mebibytes(one.maps)),
        ]);
    }
    println!("{table}");
    println!("Each agent: {} scrapes, {} ms apart.", options.scrapes, options.every);
    if let Some(path) = &options.markdown {
        table.load_style(ASCII_MARKDOWN);
        std::fs::write(path, format!("{table}\n")).with_context(|| format!("writing {}", path.display()))?;
    }
    if let Some(path) = &options.plot {
        plot::draw(measured, path)?;
        println!("The plot is in {}.", path.display());
    }
    Ok(())
}

fn milliseconds(Spread { median, low, high, .. }: Spread) -> String {
    format!("{:.1} ms ({:.1}–{:.1})", median * 1e3, low * 1e3, high * 1e3)
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
