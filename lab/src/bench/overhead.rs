//! What the hooks take from the traffic: nothing attached, programs that do nothing, the real ones, and those that count by
//! sockets, in alternation on one processor.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use aya::programs::{CgroupAttachMode, CgroupSkb, CgroupSkbAttachType};
use clap::Args;
use comfy_table::Table;
use comfy_table::presets::{ASCII_MARKDOWN, UTF8_FULL_CONDENSED};
use observer::dns;
use observer::kernel::btf::Btf;
use observer::kernel::{Accounting, DEFAULT_EDGES, Kernel, LoadOptions, Pins};

use super::load::{End, Load, Measuring, Workload};
use super::pair::Pair;
use super::probe::{Probe, Running};
use super::ratios::{Spread, Verdict};
use crate::bpffs::BpfFs;
use crate::cgroup::{self, Cgroup};
use crate::launch::Launcher;
use crate::netns::NetNs;
use crate::node;

/// How to measure.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// How often each workload is measured with each variant.
    #[arg(long, default_value_t = 60)]
    rounds: usize,
    #[command(flatten)]
    measuring: Measuring,
    /// Run these probes too whenever the real programs are measured; empty for none.
    ///
    /// They see the whole machine, so they run only then. Those that the agent runs unless it is told not to are the
    /// default.
    #[arg(long = "with", value_name = "PROBE", value_delimiter = ',', num_args = 0.., default_value = "tcp,drops")]
    probes: Vec<Probe>,
    /// Let the traffic's programs not look for DNS, as with `--dns.ports=`.
    #[arg(long)]
    without_dns: bool,
    /// Write the table as Markdown to this file too.
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Write every measurement to this file, as comma-separated values: round, workload, variant, work per CPU-second.
    #[arg(long, value_name = "FILE")]
    raw: Option<PathBuf>,
    /// Exit with status 1 when a median is below its budget.
    #[arg(long)]
    check: bool,
}

/// What is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Variant {
    Off,
    Empty,
    On,
    /// `--traffic.accounting=sockets`: no program at the cgroup.
    Sockets,
}

const VARIANTS: [Variant; 4] = [Variant::Off, Variant::Empty, Variant::On, Variant::Sockets];

/// Each variant comes at each place equally often, and before and after each other one.
const ORDERS: [[usize; 4]; 4] = [[0, 1, 3, 2], [1, 2, 0, 3], [2, 3, 1, 0], [3, 0, 2, 1]];

/// Ports that the servers use in turn, below those that the kernel gives to clients.
const FIRST_PORT: u16 = 7_000;
const LAST_PORT: u16 = 30_000;

/// What the ratios of a workload may be at least.
struct Budget {
    workload: Workload,
    /// Of the real programs to the empty ones.
    on: f64,
    /// Of the socket mode to nothing at all. It has no programs for UDP.
    sockets: Option<f64>,
}

const BUDGETS: [Budget; 4] = [
    Budget { workload: Workload::Rr, on: 0.985, sockets: Some(0.99) },
    Budget { workload: Workload::Crr, on: 0.955, sockets: Some(0.98) },
    Budget { workload: Workload::UdpRr, on: 0.975, sockets: None },
    Budget { workload: Workload::Stream, on: 0.98, sockets: None },
];

impl Options {
    /// What is measured.
    fn budgets(&self) -> impl Iterator<Item = &'static Budget> {
        BUDGETS.iter().filter(|budget| self.measuring.workloads.contains(&budget.workload))
    }
}

impl Variant {
    const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Empty => "empty",
            Self::On => "on",
            Self::Sockets => "sockets",
        }
    }
}

/// Work per CPU-second by workload and variant, round by round.
type Rates = BTreeMap<(Workload, Variant), Vec<f64>>;

/// Measures and prints.
///
/// # Errors
/// When something cannot be made or attached; when the programs did not count what was sent.
pub fn overhead(options: &Options) -> Result<ExitCode> {
    let bench = Bench::new(options)?;
    let mut rates = Rates::new();
    let mut connections = BTreeMap::<Variant, u64>::new();
    for round in 0..options.rounds {
        for &Budget { workload, .. } in options.budgets() {
            eprint!("\rround {} of {}: {:40}", round + 1, options.rounds, workload.title());
            for at in ORDERS[round % ORDERS.len()] {
                let (rate, opened) = bench.measure(workload, VARIANTS[at])?;
                rates.entry((workload, VARIANTS[at])).or_default().push(rate);
                *connections.entry(VARIANTS[at]).or_default() += opened;
            }
        }
    }
    eprintln!();
    check_counts(&bench.kernel, connections[&Variant::On])?;
    check_counts(&bench.sockets.kernel, connections[&Variant::Sockets])?;
    if let Some(path) = &options.raw {
        std::fs::write(path, raw(&rates)).with_context(|| format!("writing {}", path.display()))?;
    }
    report(&rates, options)
}

/// Every measurement, a line each.
fn raw(rates: &Rates) -> String {
    let lines = rates.iter().flat_map(|((workload, variant), rates)| {
        let line = move |(round, rate)| format!("{},{workload:?},{},{rate}\n", round + 1, variant.name());
        rates.iter().enumerate().map(line)
    });
    std::iter::once("round,workload,variant,rate\n".to_owned()).chain(lines).collect()
}

fn report(rates: &Rates, options: &Options) -> Result<ExitCode> {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    table.set_header(["workload", "on / empty", "95 % sure", "budget", "verdict", "on / off", "empty / off"]);
    let mut met = true;
    for &Budget { workload, on: budget, .. } in options.budgets() {
        let of = |variant| rates.get(&(workload, variant)).map(Vec::as_slice).unwrap_or_default();
        let ratio = |of_variant, to| Spread::of_ratios(of(of_variant), of(to)).context("no round was measured");
        let on = ratio(Variant::On, Variant::Empty)?;
        let verdict = on.against(budget);
        met &= verdict.is_good();
        table.add_row([
            workload.title().to_owned(),
            on.to_string(),
            sure(&on),
            format!("≥ {budget}"),
            verdict.to_string(),
            ratio(Variant::On, Variant::Off)?.to_string(),
            ratio(Variant::Empty, Variant::Off)?.to_string(),
        ]);
    }
    let (sockets, sockets_met) = sockets_table(rates, options)?;
    met &= sockets_met;
    println!("{table}\n{sockets}");
    println!(
        "Work per CPU-second of client and server, median of {} paired rounds of {} ms after {} ms (quartiles); between which values \
         the median is at 95 %.",
        options.rounds, options.measuring.milliseconds, options.measuring.warm_up
    );
    if !options.probes.is_empty() {
        let names: Vec<&str> = options.probes.iter().map(|probe| probe.name()).collect();
        println!("With these probes as well when on: {}.", names.join(", "));
    }
    if let Some(path) = &options.markdown {
        let tables = [table, sockets].map(|mut table| {
            table.load_style(ASCII_MARKDOWN);
            table.to_string()
        });
        std::fs::write(path, format!("{}\n", tables.join("\n\n")))
            .with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(if met || !options.check { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The mode that counts by sockets, against nothing at all; and whether it is within its budget.
fn sockets_table(rates: &Rates, options: &Options) -> Result<(Table, bool)> {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    table.set_header(["workload", "sockets / off", "95 % sure", "budget", "verdict"]);
    let mut met = true;
    for &Budget { workload, sockets: budget, .. } in options.budgets() {
        let of = |variant| rates.get(&(workload, variant)).map(Vec::as_slice).unwrap_or_default();
        let ratio = Spread::of_ratios(of(Variant::Sockets), of(Variant::Off)).context("no round was measured")?;
        let verdict = budget.map(|budget| ratio.against(budget));
        met &= verdict.is_none_or(Verdict::is_good);
        let (budget, verdict) =
            (budget.map(|budget| format!("≥ {budget}")), verdict.map(|verdict| verdict.to_string()));
        let (budget, verdict) = (budget.unwrap_or_default(), verdict.unwrap_or_default());
        table.add_row([workload.title().to_owned(), ratio.to_string(), sure(&ratio), budget, verdict]);
    }
    Ok((table, met))
}

/// Where the median is, as far as the rounds can tell.
fn sure(ratio: &Spread) -> String {
    let (low, high) = ratio.sure;
    format!("{low:.3}–{high:.3}")
}

/// Cgroups in one network namespace, each with its programs.
struct Bench {
    options: Options,
    launcher: Launcher,
    netns: NetNs,
    cgroups: [Cgroup; 4],
    port: Cell<u16>,
    kernel: Kernel,
    _empty: aya::Ebpf,
    pins: Pins,
    _bpffs: BpfFs,
    sockets: BySockets,
    _parent: Cgroup,
}

/// What the agent has with `--traffic.accounting=sockets`.
struct BySockets {
    kernel: Kernel,
    pins: Pins,
    _bpffs: BpfFs,
}

impl BySockets {
    fn new(cgroup: &Path) -> Result<Self> {
        let bpffs = BpfFs::create()?;
        let pins = Pins::open_for(bpffs.path(), Accounting::Sockets)?;
        let mut kernel = Kernel::load(&pins, LoadOptions { edges: DEFAULT_EDGES, debug: false, dns_ports: 0 })?;
        kernel.attacher.attach(&cgroup::attach_point(cgroup)?)?;
        Ok(Self { kernel, pins, _bpffs: bpffs })
    }
}

impl Bench {
    fn new(options: &Options) -> Result<Self> {
        let launcher = Launcher::find()?;
        let netns = NetNs::create(node::set_up_pod)?;
        let hierarchies: Arc<[cgroup::Hierarchy]> = cgroup::detect()?.into();
        let top = PathBuf::from(format!("/observer-bench-{}", std::process::id()));
        let parent = Cgroup::create(&hierarchies, &top)?;
        let make = |variant: Variant| Cgroup::create(&hierarchies, &top.join(variant.name()));
        let cgroups = [make(Variant::Off)?, make(Variant::Empty)?, make(Variant::On)?, make(Variant::Sockets)?];
        let directory = |variant: Variant| {
            cgroups[variant as usize].unified().context("this machine has no cgroup v2 tree to attach programs to")
        };
        let empty = attach_empty(&directory(Variant::Empty)?)?;
        let bpffs = BpfFs::create()?;
        let pins = Pins::open(bpffs.path())?;
        let dns_ports = if options.without_dns { 0 } else { dns::default_ports() };
        let mut kernel = Kernel::load(&pins, LoadOptions { edges: DEFAULT_EDGES, debug: false, dns_ports })?;
        kernel.attacher.attach(&cgroup::attach_point(&directory(Variant::On)?)?)?;
        let sockets = BySockets::new(&directory(Variant::Sockets)?)?;
        Ok(Self {
            options: options.clone(),
            launcher,
            netns,
            cgroups,
            port: Cell::new(FIRST_PORT),
            kernel,
            _empty: empty,
            pins,
            _bpffs: bpffs,
            sockets,
            _parent: parent,
        })
    }

    /// Runs one load; gives work per CPU-second and the number of connections.
    fn measure(&self, workload: Workload, variant: Variant) -> Result<(f64, u64)> {
        let what = || format!("measuring {workload:?} with {}", variant.name());
        // A port of its own: connections that wait in TIME_WAIT would make the next measurement's slower.
        self.port.set(if self.port.get() == LAST_PORT { FIRST_PORT } else { self.port.get() + 1 });
        let probes = self.probes(variant).with_context(what)?;
        let pair = Pair {
            launcher: &self.launcher,
            name: format!("load-{}", variant.name()),
            cgroup: self.cgroups[variant as usize].path(),
            server: &self.netns,
            client: &self.netns,
        };
        let Measuring { warm_up, milliseconds, cpu, .. } = self.options.measuring;
        let (end, address) = (End::Client, SocketAddr::from((Ipv4Addr::LOCALHOST, self.port.get())));
        let outcome = pair.run(&Load { end, workload, address, warm_up, milliseconds, cpu }).with_context(what)?;
        probes.iter().try_for_each(Running::check).with_context(what)?;
        Ok((outcome.rate, outcome.connections))
    }

    fn probes(&self, variant: Variant) -> Result<Vec<Running<'_>>> {
        let (pins, kernel) = match variant {
            Variant::Off | Variant::Empty => return Ok(Vec::new()),
            Variant::On => (&self.pins, &self.kernel),
            Variant::Sockets => (&self.sockets.pins, &self.sockets.kernel),
        };
        let mut probes = self.options.probes.clone();
        // The TCP probe is what counts there.
        if variant == Variant::Sockets && !probes.contains(&Probe::Tcp) {
            probes.push(Probe::Tcp);
        }
        let types = Btf::of_this_kernel().context("reading the kernel's types")?;
        let cgroup = self.cgroups[variant as usize].unified().context("this machine has no cgroup v2 tree")?;
        probes.iter().map(|probe| probe.start(&types, &cgroup, (pins, &kernel.table))).collect()
    }
}

/// A program that does not count costs little: both ends of every connection must have been counted.
fn check_counts(kernel: &Kernel, connections: u64) -> Result<()> {
    let opened: u64 = kernel.table.read().iter().map(|reading| reading.tcp.events.opened).sum();
    ensure!(opened == connections * 2, "{opened} ends of connections were counted, {connections} were made");
    Ok(())
}

fn attach_empty(directory: &Path) -> Result<aya::Ebpf> {
    let mut ebpf = Kernel::load_empty()?;
    let cgroup = File::open(directory).with_context(|| format!("opening {}", directory.display()))?;
    for (name, hook) in [("empty_ingress", CgroupSkbAttachType::Ingress), ("empty_egress", CgroupSkbAttachType::Egress)]
    {
        let program: &mut CgroupSkb =
            ebpf.program_mut(name).with_context(|| format!("there is no program {name}"))?.try_into()?;
        program.attach(&cgroup, hook, CgroupAttachMode::Single).with_context(|| format!("attaching {name}"))?;
    }
    Ok(ebpf)
}
