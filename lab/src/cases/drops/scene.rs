//! Two pods whose drops are looked at.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::actor::{Command, Pace, Sizes};
use crate::agent::Agent;
use crate::cases::{PATIENCE, Stage, kernel_older_than, stage::wait_for_addresses};
use crate::pod::{Container, Pod, PodSpec};
use crate::samples::Samples;
use crate::truth::Truth;

/// A port that nobody listens at.
pub const CLOSED: u16 = 9;

/// Drops by container, direction and reason.
pub type Drops = BTreeMap<(String, String, String), u64>;

/// Two pods, and what the agent showed at the last look.
pub struct Scene {
    /// What they stand on.
    pub stage: Stage,
    /// The agent; `None` while it is killed.
    pub agent: Option<Agent>,
    /// The pod that sends.
    pub client: Pod,
    /// The pod that is sent to.
    pub server: Pod,
    /// What the agent showed.
    pub before: Samples,
}

impl Scene {
    /// Sets it up; `None` on a kernel that gives no reasons.
    pub fn new() -> Result<Option<Self>> {
        let stage = Stage::new(None)?;
        let agent = stage.agent()?;
        let client = Pod::create(&stage.node, PodSpec::new("cases", "client", &["c"]))?;
        let server = Pod::create(&stage.node, PodSpec::new("cases", "server", &["s"]))?;
        client.introduce(&server)?;
        stage.announce(&[&client, &server])?;
        wait_for_addresses(&agent, &["client", "server"])?;
        // The kernel's own announcements of group memberships are over by then.
        std::thread::sleep(Duration::from_millis(400));
        let before = settled(&agent)?;
        let state = |state| before.get("observer_agent_probe_state", &[("probe", "drops"), ("state", state)]);
        if state("unsupported") == Some(1.0) {
            ensure!(kernel_older_than(5, 17), "the probe says that this kernel cannot run it:\n{}", agent.log());
            println!("skipped: this kernel gives no reasons of drops");
            return Ok(None);
        }
        ensure!(state("ok") == Some(1.0), "no probe; the log:\n{}", agent.log());
        Ok(Some(Self { stage, agent: Some(agent), client, server, before }))
    }

    /// The agent that runs.
    pub fn agent(&self) -> Result<&Agent> {
        self.agent.as_ref().context("no agent runs")
    }

    /// The container that sends.
    pub fn c(&self) -> Result<&Container> {
        self.client.container("c")
    }

    /// The container that is sent to.
    pub fn s(&self) -> Result<&Container> {
        self.server.container("s")
    }

    /// The server pod's addresses.
    pub fn addresses(&self) -> [IpAddr; 2] {
        [self.server.ipv4().into(), self.server.ipv6().into()]
    }

    /// What was dropped for both pods since the last look; nothing may have been lost on the way.
    pub fn look(&mut self) -> Result<[Drops; 2]> {
        let after = settled(self.agent()?)?;
        for cause in ["table_full", "interrupted", "no_owner"] {
            let lost = |samples: &Samples| samples.get("observer_agent_unattributed_drops_total", &[("cause", cause)]);
            ensure!(lost(&after) == lost(&self.before), "{cause}: {:?}, before {:?}", lost(&after), lost(&self.before));
        }
        let [client, server] =
            ["client", "server"].map(|pod| difference(&drops_of(&self.before, pod), &drops_of(&after, pod)));
        self.before = after;
        Ok([client?, server?])
    }

    /// The counters of both namespaces.
    pub fn truths(&self) -> Result<[Truth; 2]> {
        Ok([Truth::of_process(self.c()?.pid())?, Truth::of_process(self.s()?.pid())?])
    }
}

/// What is shown of a pod.
pub fn drops_of(samples: &Samples, pod: &str) -> Drops {
    let of = |name: &str| name.to_owned();
    samples
        .select("observer_packet_drops_total", &[("pod", pod), ("namespace", "cases")])
        .map(|s| ((of(s.label("container")), of(s.label("direction")), of(s.label("reason"))), s.value as u64))
        .collect()
}

/// What was added.
///
/// # Errors
///
/// When a counter went back.
pub fn difference(before: &Drops, after: &Drops) -> Result<Drops> {
    let mut found = Drops::new();
    for (key, now) in after {
        let then = before.get(key).copied().unwrap_or(0);
        ensure!(*now >= then, "{key:?} went back from {then} to {now}");
        if *now > then {
            found.insert(key.clone(), now - then);
        }
    }
    Ok(found)
}

/// These, by container, direction and reason.
pub fn these(drops: &[(&str, &str, &str, u64)]) -> Drops {
    let of = |name: &str| name.to_owned();
    drops.iter().map(|(container, way, reason, n)| ((of(container), of(way), of(reason)), *n)).collect()
}

/// Scrapes until drops of the scene's pods stand still. What processes of the node drop meanwhile goes on for ever.
pub fn settled(agent: &Agent) -> Result<Samples> {
    const STILL: u32 = 4;
    agent.scrape_until_still(PATIENCE, STILL, |samples| {
        samples.sum("observer_packet_drops_total", &[("namespace", "cases")])
    })
}

/// Sends datagrams as fast as they go.
pub fn send(to: SocketAddr, datagrams: usize) -> Command {
    Command::UdpSend { to, sizes: Sizes::List(vec![500; datagrams]), connected: false, pace: Pace::Free }
}
