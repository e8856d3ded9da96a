//! What containers ask and are answered, answer by answer.

mod counts;
mod scene;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context, Result, ensure};

pub use counts::{Counts, add, check_durations, shown};
pub use scene::{PORT, Scene, ask, asked, question};

use super::Scale;
use crate::actor::{Command, DnsFault, DnsWay};
use crate::pod::Container;

/// Numbers of types: A, AAAA, TXT, and one without a name.
const TYPES: [u16; 4] = [1, 28, 16, 99];

/// What was asked for by a container, and what came of it.
#[derive(Default)]
struct Answered {
    counts: Counts,
    malformed: u64,
    unanswered: u64,
}

impl Answered {
    /// Asks a resolver in each way, so many times.
    fn ask(
        &mut self,
        who: &Container,
        (to, fault): (SocketAddr, DnsFault),
        ways: &[DnsWay],
        rounds: u32,
    ) -> Result<()> {
        for way in ways {
            let questions = TYPES.map(|qtype| question("host.test", qtype)).to_vec();
            let patient = fault != DnsFault::Silent;
            let answers = asked(who, &Command::DnsAsk { to, way: *way, questions, rounds, patient })?;
            // The client looks at the header alone.
            if fault == DnsFault::Loop {
                self.malformed += answers.answers.iter().map(|(_, _, count)| count).sum::<u64>();
            } else {
                add(&mut self.counts, &answers);
            }
            self.malformed += answers.malformed;
            self.unanswered += answers.unanswered;
        }
        Ok(())
    }

    /// All answers that can be read.
    fn sum(&self) -> u64 {
        self.counts.values().sum()
    }
}

/// Answers of many types and outcomes, over IPv4 and IPv6, between pods and over loopback, and what is no answer: each is
/// shown where it was received.
pub(super) fn dns(scale: Scale, edges: Option<u32>) -> Result<()> {
    const DATAGRAMS: [DnsWay; 2] = [DnsWay::Udp { connected: true }, DnsWay::Udp { connected: false }];
    const ALL: [DnsWay; 3] = [DATAGRAMS[0], DATAGRAMS[1], DnsWay::Tcp { split: true }];
    // With both, questions and answers find room in the kernel's buffer of 1 MiB when the agent is given no time to read.
    let rounds = scale.of(7, 3);
    let scene = Scene::new(edges, &[])?;
    scene.stage.fill_table(&scene.client, "c")?;
    let serve = |listen, fault| scene.s()?.run(&Command::DnsServe { listen, fault });
    let (mut client, mut inside) = (Answered::default(), Answered::default());
    for (listen, rcode) in scene.addresses().into_iter().zip([0, 3]) {
        let fault = DnsFault::Rcode(rcode);
        serve(listen, fault)?;
        client.ask(scene.c()?, (listen, fault), &ALL, rounds)?;
    }
    let faults = [
        DnsFault::Rcode(2),
        DnsFault::Rcode(4),
        DnsFault::Rcode(9),
        DnsFault::NoQuestion(1),
        DnsFault::Loop,
        DnsFault::Short,
        DnsFault::Silent,
    ];
    // Each at an address of its own: 127.0.0.0/8 is all loopback.
    let near = (1..).map(|last| IpAddr::V4(Ipv4Addr::new(127, 0, 0, last))).zip(faults);
    for (address, fault) in near.chain([(Ipv6Addr::LOCALHOST.into(), DnsFault::Rcode(5))]) {
        let listen = SocketAddr::new(address, PORT);
        serve(listen, fault)?;
        let ways = if matches!(fault, DnsFault::Rcode(_)) { &ALL[..] } else { &DATAGRAMS };
        inside.ask(scene.app()?, (listen, fault), ways, rounds)?;
    }
    let each = u64::from(rounds) * TYPES.len() as u64;
    let found = [client.sum(), client.malformed, client.unanswered];
    ensure!(found == [6 * each, 0, 0], "the client was answered {found:?}");
    let found = [inside.sum(), inside.malformed, inside.unanswered];
    ensure!(found == [14 * each, 4 * each, 2 * each], "over loopback {found:?} were answered");

    let agent = scene.agent()?;
    let samples = agent.scrape()?;
    scene.check_nothing_lost(&samples)?;
    for (container, answered) in [("c", &client), ("app", &inside), ("s", &Answered::default())] {
        let (found, counts) = (shown(&samples, container)?, &answered.counts);
        ensure!(found == *counts, "{container}: {found:?} shown, {counts:?} came");
        check_durations(agent, container, counts).with_context(|| container.to_owned())?;
        let malformed = samples.sum("observer_dns_malformed_total", &[("container", container)]);
        ensure!(malformed == answered.malformed as f64, "{container}: {malformed} are no answers");
    }
    scene.stage.check_overflow(&samples)
}
