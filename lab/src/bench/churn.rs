//! Pods that come and go for ten minutes: every byte has the right name, and nothing is left of them.
//!
//! Names and addresses are few and go round at different paces, so that each address had another name's pod a moment ago,
//! and each name has another address each time. One pod stays and calls each of them. The agent is scraped meanwhile, and
//! killed twice.

use std::collections::{BTreeMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use comfy_table::Table;
use comfy_table::presets::ASCII_MARKDOWN;

use crate::actor::{Command, Pace, Sizes};
use crate::agent::Agent;
use crate::cases::Stage;
use crate::holdings::Holdings;
use crate::pod::{Pod, PodSpec};
use crate::samples::Samples;

const PORT: u16 = 7_000;
/// The payload of a datagram, and what it is at IP level.
const SIZE: (u32, u32) = (100, 128);
/// What the caller has sent to a pod, at least; which pod it was adds up to so many more.
const DATAGRAMS: (u32, u32) = (3, 7);
/// How long what is gone may take to be given back.
const PATIENCE: Duration = Duration::from_secs(90);

/// How to run.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// How many pods.
    #[arg(long, default_value_t = 1_000)]
    pods: u32,
    /// In how many seconds.
    #[arg(long, default_value_t = 600)]
    seconds: u32,
    /// How many names they have. No divisor of it must be one of `--addresses`.
    #[arg(long, default_value_t = 20)]
    names: u32,
    /// How many addresses they have.
    #[arg(long, default_value_t = 7)]
    addresses: u32,
    /// How long a pod lives, in milliseconds, unless its address is needed before.
    #[arg(long, default_value_t = 2_000)]
    life: u64,
    /// How often the agent is killed (SIGKILL) and started again.
    #[arg(long, default_value_t = 2)]
    kills: u32,
    /// From scrape to scrape, in milliseconds.
    #[arg(long, default_value_t = 1_000)]
    every: u64,
}

/// Runs it. The exit status tells whether all is as it should be.
///
/// # Errors
/// When something cannot be run, a byte is missing or has a wrong name, or something is left.
pub fn churn(options: &Options) -> Result<ExitCode> {
    ensure!(options.names > 0 && options.addresses > 0 && options.pods > 0, "there is nobody to come and go");
    let mut run = Run::new(options.clone())?;
    // So that the caller's series and the allocator's memory are there.
    let warm = options.names * 2;
    for number in 0..warm {
        run.pod(number)?;
        run.scrape_until(Instant::now() + Duration::from_millis(600))?;
    }
    let before = run.calm(None)?;
    let begin = Instant::now();
    let mut killed = Vec::new();
    for number in 0..options.pods {
        let due = Duration::from_secs(options.seconds.into()) * number / options.pods;
        run.scrape_until(begin + due)?;
        run.pod(warm + number)?;
        let part = options.pods / (options.kills + 1);
        if part > 0 && (number + 1).is_multiple_of(part) && killed.len() < options.kills as usize {
            killed.push((number + 1, run.measure()?));
            run.kill()?;
        }
    }
    let took = begin.elapsed();
    let after = run.calm(Some(&before))?;
    println!("{} pods in {:.0} s, {} scrapes, {} kills", options.pods, took.as_secs_f64(), run.scrapes, killed.len());
    print_table(&before, &killed, &after);
    let wrong = run.check(&after.samples)?;
    for line in &wrong {
        println!("WRONG: {line}");
    }
    let left = left(&before, &after, options);
    for line in &left {
        println!("LEFT: {line}");
    }
    run.agent.terminate()?;
    Ok(if wrong.is_empty() && left.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A moment.
struct Measured {
    holdings: Holdings,
    edges: f64,
    samples: Samples,
}

struct Run {
    options: Options,
    stage: Stage,
    agent: Agent,
    here: Pod,
    addresses: Vec<Ipv4Addr>,
    /// Pods that live, the oldest first.
    alive: VecDeque<(Instant, Pod)>,
    /// Bytes to each name, which are as many as came back.
    sent: BTreeMap<String, u64>,
    /// What the pods' own counters have grown by.
    own: Increase,
    scrapes: u32,
}

impl Run {
    fn new(options: Options) -> Result<Self> {
        let stage = Stage::new(None)?;
        let agent = stage.agent_with(None, &["--log.level", "info"])?;
        let here = Pod::create(&stage.node, PodSpec::new("churn", "here", &["client"]))?;
        stage.announce(&[&here])?;
        // Addresses that the node gives out, to be given again.
        let first: Vec<Pod> = (0..options.addresses)
            .map(|number| Pod::create(&stage.node, PodSpec::new("churn", &format!("first-{number}"), &["c"])))
            .collect::<Result<_>>()?;
        let addresses = first.iter().map(Pod::ipv4).collect();
        drop(first);
        let (alive, sent, own) = (VecDeque::new(), BTreeMap::new(), Increase::default());
        Ok(Self { options, stage, agent, here, addresses, alive, sent, own, scrapes: 0 })
    }

    fn scrape(&mut self) -> Result<Samples> {
        let samples = self.agent.scrape()?;
        self.own.see(&samples);
        self.scrapes += 1;
        Ok(samples)
    }

    /// Scrapes at its pace until a moment.
    fn scrape_until(&mut self, moment: Instant) -> Result<()> {
        let every = Duration::from_millis(self.options.every);
        loop {
            self.end(Duration::from_millis(self.options.life))?;
            if self.own.last.is_none_or(|last| last.elapsed() >= every) {
                self.scrape()?;
            }
            let Some(left) = moment.checked_duration_since(Instant::now()) else { return Ok(()) };
            std::thread::sleep(left.min(Duration::from_millis(20)));
        }
    }

    /// Those that have lived for so long go.
    fn end(&mut self, life: Duration) -> Result<()> {
        let before = self.alive.len();
        while self.alive.pop_front_if(|(began, _)| began.elapsed() >= life).is_some() {}
        if self.alive.len() == before { Ok(()) } else { self.announce() }
    }

    fn announce(&self) -> Result<()> {
        let pods: Vec<&Pod> = std::iter::once(&self.here).chain(self.alive.iter().map(|(_, pod)| pod)).collect();
        self.stage.announce(&pods)
    }

    /// A pod comes and is called at once, before the agent knows it. Who has its name or its address goes first.
    fn pod(&mut self, number: u32) -> Result<()> {
        let name = format!("pod-{}", number % self.options.names);
        let address = self.addresses[(number % self.options.addresses) as usize];
        while self.alive.iter().any(|(_, pod)| pod.ipv4() == address || pod.spec().name == name) {
            self.alive.pop_front();
        }
        let spec = PodSpec { address: Some(address), ..PodSpec::new("churn", &name, &["server"]) };
        let pod = Pod::create(&self.stage.node, spec)?;
        self.here.introduce(&pod)?;
        self.alive.push_back((Instant::now(), pod));
        self.announce()?;
        let (_, pod) = self.alive.back().context("no pod lives")?;
        pod.container("server")?.serve_udp(SocketAddr::new(address.into(), PORT), true)?;
        let count = DATAGRAMS.0 + number % DATAGRAMS.1;
        let sent = self.here.container("client")?.traffic(&Command::UdpSend {
            to: (address, PORT).into(),
            sizes: Sizes::List(vec![SIZE.0; count as usize]),
            connected: number.is_multiple_of(2),
            pace: Pace::Echoed { window: 1 },
        })?;
        ensure!(sent.received_datagrams == u64::from(count), "{count} datagrams to {address}: {sent:?}");
        let uid = pod.uid().to_owned();
        self.wait_known(&name, &uid)?;
        *self.sent.entry(name).or_default() += u64::from(count * SIZE.1);
        Ok(())
    }

    /// Waits until the agent has read who the pod is: it looks at the pods file from time to time, where a runtime would
    /// have told it before the pod's first process. Not by a scrape, which would decide what is not decided yet.
    fn wait_known(&self, name: &str, uid: &str) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let page = self.agent.fetch("/")?;
            if page.contains(name) && !page.contains(uid) {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "the agent does not know {name}; its log:\n{}", self.agent.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn kill(&mut self) -> Result<()> {
        let (address, arguments) = (self.agent.address(), ["--log.level", "info"]);
        let next = || self.stage.agent_with(Some(address), &arguments);
        // The old one is gone before the new one listens.
        crate::process::kill(self.agent.pid())?;
        self.agent.wait_end()?;
        self.agent = next()?;
        Ok(())
    }

    fn measure(&mut self) -> Result<Measured> {
        let samples = self.scrape()?;
        let edges = samples.sum("observer_agent_edges_used", &[]);
        Ok(Measured { holdings: Holdings::of(&self.agent, self.stage.bpffs())?, edges, samples })
    }

    /// Waits until no pod but the caller is there, and until what they had is given back: as much as there was, or all
    /// that is given back at all.
    fn calm(&mut self, before: Option<&Measured>) -> Result<Measured> {
        self.end(Duration::ZERO)?;
        let deadline = Instant::now() + PATIENCE;
        let mut steady = 0;
        let mut last = self.measure()?;
        loop {
            std::thread::sleep(Duration::from_millis(self.options.every));
            let now = self.measure()?;
            let gone = now.samples.select("observer_pod_info", &[]).count() == 1;
            steady = if now.edges == last.edges && now.holdings.links == last.holdings.links { steady + 1 } else { 0 };
            let enough = before.is_none_or(|before| {
                now.edges <= before.edges
                    && now.holdings.links <= before.holdings.links
                    && now.holdings.descriptors <= before.holdings.descriptors
                    && now.holdings.watches <= before.holdings.watches
            });
            if (gone && steady >= 5 && enough) || Instant::now() > deadline {
                return Ok(now);
            }
            last = now;
        }
    }

    /// What is not as it was sent.
    fn check(&self, samples: &Samples) -> Result<Vec<String>> {
        let mut wrong = Vec::new();
        let mut total = 0;
        for (name, bytes) in &self.sent {
            total += bytes;
            for direction in ["transmit", "receive"] {
                let labels =
                    [("pod", "here"), ("protocol", "udp"), ("direction", direction), ("peer_pod", name.as_str())];
                let found = samples.sum("observer_traffic_bytes_total", &labels);
                if found != *bytes as f64 {
                    wrong.push(format!("{direction} with {name}: {found} bytes, not {bytes}"));
                }
            }
        }
        for direction in ["transmit", "receive"] {
            let labels = [("pod", "here"), ("protocol", "udp"), ("direction", direction)];
            let found = samples.sum("observer_traffic_bytes_total", &labels);
            let kinds: BTreeMap<&str, f64> =
                samples.select("observer_traffic_bytes_total", &labels).fold(BTreeMap::new(), |mut kinds, sample| {
                    *kinds.entry(sample.label("peer_kind")).or_default() += sample.value;
                    kinds
                });
            println!("{direction}: {kinds:?}");
            if found != total as f64 {
                wrong.push(format!("{direction} of the caller: {found} bytes, not {total}"));
            }
        }
        if self.own.total != (2 * total) as f64 {
            wrong.push(format!("the pods' own counters grew by {} bytes, not by {}", self.own.total, 2 * total));
        }
        for sample in samples.select("observer_traffic_bytes_total", &[("pod", "here"), ("protocol", "udp")]) {
            if !self.sent.contains_key(sample.label("peer_pod")) {
                wrong.push(format!("{} bytes with {:?}", sample.value, sample.labels));
            }
        }
        for name in ["observer_agent_unattributed_bytes_total", "observer_agent_pending_bytes"] {
            let bytes = samples.sum(name, &[]);
            if bytes != 0.0 {
                wrong.push(format!("{name} is {bytes}"));
            }
        }
        let used = samples.get("observer_agent_edges_used", &[]).context("no observer_agent_edges_used")?;
        println!("{total} bytes each way, {used} edges in use at the end");
        Ok(wrong)
    }
}

/// What is there that was not there before.
fn left(before: &Measured, after: &Measured, options: &Options) -> Vec<String> {
    let mut left = after.holdings.left_since(&before.holdings, options.pods);
    if after.edges > before.edges {
        left.push(format!("edges: {} before, {} after", before.edges, after.edges));
    }
    left
}

fn print_table(before: &Measured, killed: &[(u32, Measured)], after: &Measured) {
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN);
    let header = before.holdings.parts().map(|(what, _)| what.to_owned());
    table.set_header(["when".to_owned(), "edges".to_owned()].into_iter().chain(header));
    let mut row = |when: String, measured: &Measured| {
        let held = measured.holdings.parts().map(|(_, count)| count.to_string());
        table.add_row([when, measured.edges.to_string()].into_iter().chain(held));
    };
    row("before".into(), before);
    for (pods, measured) in killed {
        row(format!("after {pods} pods, killed then"), measured);
    }
    row("after".into(), after);
    println!("{table}");
}

/// Sums up what the pods' own counters have grown by, as `increase()` of Prometheus does: one that is lower than before
/// has begun anew, and so has one that was not there.
#[derive(Default)]
struct Increase {
    values: BTreeMap<String, f64>,
    total: f64,
    last: Option<Instant>,
}

impl Increase {
    fn see(&mut self, samples: &Samples) {
        let mut now = BTreeMap::new();
        for sample in samples.select("observer_traffic_bytes_total", &[("namespace", "churn"), ("protocol", "udp")]) {
            // Until somebody tells its name a pod is shown by its UID, and under its name then with all that it had.
            if !sample.label("pod").starts_with("pod-") {
                continue;
            }
            let series = format!("{:?}", sample.labels);
            let before = self.values.get(&series).copied().unwrap_or(0.0);
            self.total += if sample.value >= before { sample.value - before } else { sample.value };
            now.insert(series, sample.value);
        }
        self.values = now;
        self.last = Some(Instant::now());
    }
}
