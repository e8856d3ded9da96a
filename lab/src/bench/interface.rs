//! What the programs at the host's ends of interfaces take from the traffic: nothing attached, programs that do nothing, and the
//! real ones, in alternation on one processor. Each has a client in a namespace of its own, and all have the same server, at
//! whose interface nothing is attached.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use aya::Ebpf;
use aya::programs::{SchedClassifier, TcAttachType, tc};
use clap::Args;
use comfy_table::Table;
use comfy_table::presets::UTF8_FULL_CONDENSED;
use observer::kernel::interface::Way;
use observer::kernel::links::HostLink;
use observer::kernel::{DEFAULT_EDGES, InterfaceHooks, Kernel, LoadOptions, Pins};

use super::load::{End, Load, MESSAGE, Measuring, Workload};
use super::pair::Pair;
use super::ratios::Spread;
use crate::bpffs::BpfFs;
use crate::cgroup::Cgroup;
use crate::netns::NetNs;
use crate::node::{self, Node};

/// How to measure.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// How often each workload is measured with each variant.
    #[arg(long, default_value_t = 24)]
    rounds: usize,
    #[command(flatten)]
    measuring: Measuring,
}

/// What is attached to the client's interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Variant {
    Off,
    Empty,
    On,
}

impl Variant {
    const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Empty => "empty",
            Self::On => "on",
        }
    }
}

/// Each comes at each place equally often, and after each other one.
const ORDERS: [[Variant; 3]; 6] = {
    use Variant::{Empty, Off, On};
    [[Off, Empty, On], [On, Empty, Off], [Empty, On, Off], [Off, On, Empty], [On, Off, Empty], [Empty, Off, On]]
};

/// The server's port: each measurement has one of its own, because connections in TIME_WAIT would slow the next one down.
const FIRST_PORT: u16 = 7_000;

/// Measures and prints.
///
/// # Errors
/// When something cannot be made or attached; when the programs did not count what was sent.
pub fn interface(options: &Options) -> Result<ExitCode> {
    let bench = Bench::new()?;
    let mut rates = BTreeMap::<_, Vec<f64>>::new();
    let mut port = FIRST_PORT;
    for round in 0..options.rounds {
        eprint!("\rround {} of {}", round + 1, options.rounds);
        for &workload in &options.measuring.workloads {
            for variant in ORDERS[round % ORDERS.len()] {
                port += 1;
                let rate = bench.measure(options, workload, variant, port);
                let rate = rate.with_context(|| format!("measuring {workload:?} with {}", variant.name()))?;
                rates.entry((workload, variant)).or_default().push(rate);
            }
        }
    }
    eprintln!();
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    table.set_header(["workload", "on / empty", "on / off", "empty / off"]);
    for &workload in &options.measuring.workloads {
        let ratio = |of, to| {
            let ratio = Spread::of_ratios(&rates[&(workload, of)], &rates[&(workload, to)]);
            ratio.context("no round was measured").map(|ratio| ratio.to_string())
        };
        table.add_row([
            workload.title().to_owned(),
            ratio(Variant::On, Variant::Empty)?,
            ratio(Variant::On, Variant::Off)?,
            ratio(Variant::Empty, Variant::Off)?,
        ]);
    }
    println!("{table}");
    println!(
        "Work per CPU-second of client and server, median of {} paired rounds of {} ms after {} ms (quartiles), attached by {}.",
        options.rounds,
        options.measuring.milliseconds,
        options.measuring.warm_up,
        bench.hooks.way().as_str()
    );
    Ok(ExitCode::SUCCESS)
}

struct Bench {
    clients: [NetNs; 3],
    server: NetNs,
    address: Ipv4Addr,
    cgroup: Cgroup,
    hooks: InterfaceHooks,
    kernel: Kernel,
    _empty: Ebpf,
    _bpffs: BpfFs,
    node: Node,
}

impl Bench {
    fn new() -> Result<Self> {
        let node = Node::create()?;
        let top = PathBuf::from(format!("/observer-bench-{}", std::process::id()));
        let cgroup = Cgroup::create(node.hierarchies(), &top)?;
        let (server, at) = namespace(&node)?;
        let (off, _) = namespace(&node)?;
        let (with_empty, empty_at) = namespace(&node)?;
        let (on, on_at) = namespace(&node)?;
        let bpffs = BpfFs::create()?;
        let pins = Pins::open(bpffs.path())?;
        let kernel = Kernel::load(&pins, LoadOptions { edges: DEFAULT_EDGES, debug: false, dns_ports: 0 })?;
        let owner = owner(&cgroup)?;
        let (hooks, empty) = node.netns().run(|| {
            let mut hooks = InterfaceHooks::start(&pins, &kernel.table).context("loading the programs")?;
            let (index, name) = on_at.interface();
            hooks.attach(&HostLink { index, name, peer_netns: None, ethernet: true }, owner)?;
            let empty = attach_empty(&empty_at.interface().1, hooks.way())?;
            Ok((hooks, empty))
        })?;
        Ok(Self {
            clients: [off, with_empty, on],
            server,
            address: at.v4,
            cgroup,
            hooks,
            kernel,
            _empty: empty,
            _bpffs: bpffs,
            node,
        })
    }

    /// Runs one load; gives work per CPU-second.
    fn measure(&self, options: &Options, workload: Workload, variant: Variant, port: u16) -> Result<f64> {
        let pair = Pair {
            launcher: self.node.launcher(),
            name: format!("load-{}", variant.name()),
            cgroup: self.cgroup.path(),
            server: &self.server,
            client: &self.clients[variant as usize],
        };
        let &Measuring { warm_up, milliseconds, cpu, .. } = &options.measuring;
        let (sent, received) = self.counted();
        let address = SocketAddr::from((self.address, port));
        let outcome = pair.run(&Load { end: End::Client, workload, address, warm_up, milliseconds, cpu })?;
        let now = self.counted();
        let (sent, received) = (now.0 - sent, now.1 - received);
        // Payload alone. A program that does not count costs little.
        let (asked, answered) = match workload {
            Workload::Stream => (outcome.work, 1),
            _ => (outcome.work * MESSAGE as u64, outcome.work * MESSAGE as u64),
        };
        if variant == Variant::On {
            ensure!(
                sent > asked && received > answered,
                "of more than {asked} bytes that were sent and {answered} that came back, {sent} and {received} were counted"
            );
        } else {
            ensure!(
                (sent + received) * 100 < asked,
                "{} bytes were counted at an interface that nobody used",
                sent + received
            );
        }
        Ok(outcome.rate)
    }

    /// Bytes of all edges, sent and received.
    fn counted(&self) -> (u64, u64) {
        let readings = self.kernel.table.read();
        let packets = || readings.iter().map(|reading| &reading.packets);
        (packets().map(|packets| packets.tx_bytes).sum(), packets().map(|packets| packets.rx_bytes).sum())
    }
}

/// A namespace on the node's bridge.
fn namespace(node: &Node) -> Result<(NetNs, node::Port)> {
    let (netns, port) = (NetNs::create(node::set_up_pod)?, node.allocate(None)?);
    node.connect(&netns, port)?;
    Ok((netns, port))
}

/// The id of a cgroup, for the edges to have an owner.
fn owner(cgroup: &Cgroup) -> Result<u64> {
    let directory: &Path = &cgroup.unified().context("this machine has no cgroup v2 tree")?;
    Ok(std::fs::metadata(directory).with_context(|| format!("looking at {}", directory.display()))?.ino())
}

fn attach_empty(interface: &str, way: Way) -> Result<Ebpf> {
    const NAME: &str = "empty_interface";
    let what = || format!("attaching {NAME} to {interface}");
    if way == Way::Clsact {
        tc::qdisc_add_clsact(interface).with_context(what)?;
    }
    let mut ebpf = Kernel::load_empty_at_interface()?;
    let program: &mut SchedClassifier =
        ebpf.program_mut(NAME).with_context(|| format!("there is no {NAME}"))?.try_into()?;
    for direction in [TcAttachType::Ingress, TcAttachType::Egress] {
        program.attach(interface, direction).with_context(what)?;
    }
    Ok(ebpf)
}
