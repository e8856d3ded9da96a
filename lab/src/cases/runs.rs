//! How often and how long the agent's kernel programs run, by the kernel's own statistics.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Context, Result, ensure};

use super::stage::{Scale, Stage, settled, wait_for_pods};
use super::{PATIENCE, kernel_older_than};
use crate::actor::{Command, Pace, ServeMode, Sizes};
use crate::cgroup::{EGRESS, INGRESS, effective_programs};
use crate::pod::{Container, Pod, PodSpec};
use crate::run_statistics::{Program, RunStatistics, Runs};
use crate::samples::Samples;

const POD: &str = "runs";
const RUNS: &str = "observer_agent_program_runs_total";
const SECONDS: &str = "observer_agent_program_run_seconds_total";
/// Programs that are switched on by options, beside the others.
const OPTIONS: [&str; 2] = ["--resources.runqueue", "--traffic.unix-sockets"];
/// The programs at a pod's cgroup.
const PAIR: [(&str, u32); 2] = [("observe_ingress", INGRESS), ("observe_egress", EGRESS)];
/// A program of each probe that runs for what every machine does all the time; of two names one runs.
const PROBES: [(&str, &[&str]); 5] = [
    ("drops", &["packet_dropped"]),
    ("oom", &["oom_exit"]),
    ("runqueue", &["runqueue_switch"]),
    ("tcp", &["tcp_change", "tcp_state"]),
    ("unix", &["unix_send"]),
];

/// Programs have no series before their runs are counted. From then on each datagram is one run of a program in each direction,
/// and the time is what the kernel says, to the nanosecond. They keep what they have shown when nothing is counted any more;
/// an agent that comes later begins anew, but for the program that it takes over.
pub fn program_runs(scale: Scale, edges: Option<u32>) -> Result<()> {
    if kernel_older_than(5, 8) {
        println!("skipped: before kernel 5.8 only a setting of the whole machine switches the statistics on");
        return Ok(());
    }
    let stage = Stage::new(edges)?;
    let mut agent = stage.agent_with(None, &OPTIONS)?;
    let pod = stage.pod(&agent, POD, &["client", "server"])?;
    let talk = Talk::new(&pod, scale.of(2_000, 200))?;
    let always_on = RunStatistics::are_on();
    if always_on {
        println!("this machine counts runs all the time, so what is shown without that is not looked at");
    } else {
        talk.once()?;
        let samples = settled(&agent)?;
        let shown = [RUNS, SECONDS].map(|family| shown(&samples, family));
        ensure!(shown.iter().all(Vec::is_empty), "what was never counted is shown: {shown:?}");
    }

    let truth = Truth::of(&pod)?;
    let statistics = RunStatistics::enable()?;
    let before = truth.pair()?;
    for round in 1..=3 {
        talk.once()?;
        let samples = settled(&agent)?;
        let now = truth.pair()?;
        for (((name, _), before), now) in PAIR.iter().zip(before).zip(now) {
            let expected = before.count + round * talk.packets();
            ensure!(now.count == expected, "round {round}: the kernel says {now:?} of {name}, sent were {expected}");
            check(&samples, name, now)?;
            ensure!(now.time_ns > before.time_ns, "{name} took no time: {now:?} after {before:?}");
        }
    }
    for (probe, programs) in PROBES {
        if agent.scrape()?.get("observer_agent_probe_state", &[("probe", probe), ("state", "ok")]) == Some(1.0) {
            talk.send_to_nobody()?;
            agent.wait_until(PATIENCE, &format!("runs of {programs:?}"), |samples| have_run(samples, programs, 1))?;
        }
    }
    drop(statistics);
    if always_on {
        return agent.terminate();
    }

    let last = agent.scrape()?;
    talk.once()?;
    let after = settled(&agent)?;
    for family in [RUNS, SECONDS] {
        ensure!(shown(&after, family) == shown(&last, family), "{family} was {last:?} and is {after:?}");
    }
    let address = agent.address();
    agent.kill9()?;
    talk.once()?;
    agent = stage.agent_with(Some(address), &OPTIONS)?;
    wait_for_pods(&agent, &[POD])?;
    talk.once()?;
    let next = settled(&agent)?;
    for family in [RUNS, SECONDS] {
        let mut left = shown(&last, family);
        // One agent leaves it running, and the next one takes it over.
        left.retain(|(name, _)| name == "packet_dropped");
        let found = shown(&next, family);
        ensure!(found == left, "{family} of the next agent: {found:?}, left to it was {left:?}");
    }
    agent.terminate()
}

/// The same of programs that run in other ways: at an interface, at sockets, and by the agent's own call.
pub fn program_runs_elsewhere(scale: Scale, edges: Option<u32>) -> Result<()> {
    if kernel_older_than(5, 8) {
        println!("skipped: before kernel 5.8 only a setting of the whole machine switches the statistics on");
        return Ok(());
    }
    let _statistics = RunStatistics::enable()?;
    let stage = Stage::new(edges)?;
    // The agent looks for interfaces in its own network namespace: here it is on the lab's node.
    stage.node.netns().run(|| at_an_interface(&stage, scale.of(50, 20)))?;
    let agent = stage.agent_with(None, &["--traffic.accounting", "sockets"])?;
    if agent.scrape()?.get("observer_agent_probe_state", &[("probe", "tcp"), ("state", "ok")]) != Some(1.0) {
        println!("skipped: this kernel cannot count by sockets; the agent's log:\n{}", agent.log());
        return agent.terminate();
    }
    let pod = stage.pod(&agent, POD, &["client", "server"])?;
    let any_port = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
    let to = pod.container("server")?.serve_tcp(any_port, ServeMode::Sink)?;
    // Held, so that every scrape reads what it has carried.
    pod.container("client")?.open_tcp(to)?;
    for programs in [&["sockets_change", "sockets_state"][..], &["sockets_read"]] {
        agent.wait_until(PATIENCE, &format!("runs of {programs:?}"), |samples| have_run(samples, programs, 1))?;
    }
    let samples = agent.scrape()?;
    for (name, _) in PAIR {
        ensure!(samples.get(RUNS, &[("program", name)]).is_none(), "{name} is not loaded, and has a series");
    }
    agent.terminate()
}

/// Every echo request and every answer passes the interface of a pod that is counted there.
fn at_an_interface(stage: &Stage, count: u32) -> Result<()> {
    let agent = stage.agent_on_the_node(None, &[])?;
    let pod =
        Pod::create(&stage.node, PodSpec { runtime_class: "gvisor".into(), ..PodSpec::new("cases", POD, &["c"]) })?;
    let other = Pod::create(&stage.node, PodSpec::new("cases", "other", &["c"]))?;
    other.introduce(&pod)?;
    stage.announce(&[&pod, &other])?;
    agent.wait_until(PATIENCE, "the pod at its interface", |samples| {
        samples.select("observer_sandbox_info", &[("pod", POD), ("attached", "interface")]).next().is_some()
    })?;
    other.container("c")?.ping(pod.ipv4().into(), count, 56)?;
    for program in ["interface_sends", "interface_gets"] {
        agent.wait_until(PATIENCE, &format!("{count} runs of {program}"), |samples| {
            have_run(samples, &[program], count)
        })?;
    }
    agent.terminate()
}

/// Whether these have run so often, together.
fn have_run(samples: &Samples, programs: &[&str], least: u32) -> bool {
    let of = |family| programs.iter().map(|name| samples.sum(family, &[("program", name)])).sum::<f64>();
    of(RUNS) >= f64::from(least) && of(SECONDS) > 0.0
}

/// The series of a family: the program's name and the value, in the order of names.
fn shown(samples: &Samples, family: &str) -> Vec<(String, f64)> {
    samples.select(family, &[]).map(|sample| (sample.label("program").to_owned(), sample.value)).collect()
}

fn check(samples: &Samples, name: &str, truth: Runs) -> Result<()> {
    let of = |family| samples.get(family, &[("program", name)]).with_context(|| format!("no {family} of {name}"));
    // Both are below 2^53, so a float has them exactly.
    let found = Runs { count: of(RUNS)? as u64, time_ns: (of(SECONDS)? * 1e9).round() as u64 };
    ensure!(found == truth, "{name}: {found:?} are shown, the kernel says {truth:?}");
    Ok(())
}

/// Datagrams from one container of a pod to the other and back, over loopback.
struct Talk<'a> {
    client: &'a Container,
    to: SocketAddr,
    datagrams: u32,
}

impl<'a> Talk<'a> {
    fn new(pod: &'a Pod, datagrams: u32) -> Result<Self> {
        let any_port = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
        let to = pod.container("server")?.serve_udp(any_port, true)?;
        Ok(Self { client: pod.container("client")?, to, datagrams })
    }

    /// How many packets of the pod each program sees: what one container sends the other one receives.
    fn packets(&self) -> u64 {
        2 * u64::from(self.datagrams)
    }

    fn once(&self) -> Result<()> {
        let sizes = Sizes::Random { count: self.datagrams, min: 1, max: 1_000, seed: 5 };
        let pace = Pace::Echoed { window: 8 };
        let sent = self.client.traffic(&Command::UdpSend { to: self.to, sizes, connected: false, pace })?;
        let expected = u64::from(self.datagrams);
        ensure!(sent.sent_datagrams == expected && sent.received_datagrams == expected, "{sent:?} of {expected}");
        Ok(())
    }

    /// A datagram to a port that nobody listens at, which the kernel drops.
    fn send_to_nobody(&self) -> Result<()> {
        let to = SocketAddr::new(self.to.ip(), 9);
        let sizes = Sizes::List(vec![1]);
        self.client.run(&Command::UdpSend { to, sizes, connected: false, pace: Pace::Free }).map(drop)
    }
}

/// The programs at the pod's cgroup, by the kernel's own word.
struct Truth([Program; 2]);

impl Truth {
    fn of(pod: &Pod) -> Result<Self> {
        let cgroup = pod.cgroup().unified().context("this machine has no cgroup v2 tree")?;
        let program = |(name, attach_type)| Program::named(name, &effective_programs(&cgroup, attach_type)?);
        let [ingress, egress] = PAIR.map(program);
        Ok(Self([ingress?, egress?]))
    }

    fn pair(&self) -> Result<[Runs; 2]> {
        Ok([self.0[0].runs()?, self.0[1].runs()?])
    }
}
