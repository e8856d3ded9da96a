//! Two pods: one asks, and in the other somebody may answer.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail, ensure};

use crate::actor::{Answer, Command, DnsAnswers, DnsQuestion, DnsWay};
use crate::agent::Agent;
use crate::cases::{Stage, stage::wait_for_addresses};
use crate::pod::{Container, Pod, PodSpec};
use crate::samples::Samples;

/// The port of resolvers.
pub const PORT: u16 = 53;

/// Two pods and the agent.
pub struct Scene {
    /// What they stand on.
    pub stage: Stage,
    /// The agent; `None` while it is killed.
    pub agent: Option<Agent>,
    /// The pod that asks.
    pub client: Pod,
    /// The pod with a place for a resolver, and a container that asks over loopback.
    pub server: Pod,
}

impl Scene {
    /// With this edge table, and with these arguments for the agent.
    pub fn new(edges: Option<u32>, more: &[&str]) -> Result<Self> {
        let stage = Stage::new(edges)?;
        let agent = stage.agent_with(None, more)?;
        let client = Pod::create(&stage.node, PodSpec::new("cases", "client", &["c"]))?;
        let server = Pod::create(&stage.node, PodSpec::new("cases", "server", &["s", "app"]))?;
        stage.announce(&[&client, &server])?;
        let samples = wait_for_addresses(&agent, &["client", "server"])?;
        let state = [("probe", "dns"), ("state", "ok")];
        ensure!(samples.get("observer_agent_probe_state", &state) == Some(1.0), "no probe; log:\n{}", agent.log());
        Ok(Self { stage, agent: Some(agent), client, server })
    }

    /// The agent that runs.
    pub fn agent(&self) -> Result<&Agent> {
        self.agent.as_ref().context("no agent runs")
    }

    /// The container of the pod that asks.
    pub fn c(&self) -> Result<&Container> {
        self.client.container("c")
    }

    /// The resolver's container.
    pub fn s(&self) -> Result<&Container> {
        self.server.container("s")
    }

    /// The container beside the resolver's.
    pub fn app(&self) -> Result<&Container> {
        self.server.container("app")
    }

    /// The resolver's addresses for other pods.
    pub fn addresses(&self) -> [SocketAddr; 2] {
        [SocketAddr::new(self.server.ipv4().into(), PORT), SocketAddr::new(self.server.ipv6().into(), PORT)]
    }

    /// Nothing was lost on the way.
    pub fn check_nothing_lost(&self, samples: &Samples) -> Result<()> {
        for family in ["observer_agent_dns_lost_packets_total", "observer_agent_pending_dns_responses"] {
            let lost = samples.sum(family, &[]);
            ensure!(lost == 0.0, "{family} is {lost}; the agent's log:\n{}", self.agent()?.log());
        }
        let untimed = samples.get("observer_agent_untimed_dns_questions_total", &[]);
        ensure!(untimed == Some(0.0), "{untimed:?} questions are not timed");
        Ok(())
    }
}

/// A question for a name and the number of a type.
pub fn question(name: &str, qtype: u16) -> DnsQuestion {
    DnsQuestion { name: name.to_owned(), qtype }
}

/// Asks, and waits for each answer.
pub fn ask(who: &Container, to: SocketAddr, way: DnsWay, questions: &[DnsQuestion], rounds: u32) -> Result<DnsAnswers> {
    let patient = true;
    asked(who, &Command::DnsAsk { to, way, questions: questions.to_vec(), rounds, patient })
}

/// Carries out a command that asks.
pub fn asked(who: &Container, command: &Command) -> Result<DnsAnswers> {
    match who.run(command)? {
        Answer::Dns(answers) => Ok(answers),
        other => bail!("{command:?} was answered with {other:?}"),
    }
}
