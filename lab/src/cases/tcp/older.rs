//! Connections that nobody saw begin: they are followed from the agent's start on.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context, Result, ensure};

use super::lives::{ACTIVE, RTT, is_sum, observed};
use super::opened::OPENED;
use super::retransmissions::{AGAIN, RESETS, compare};
use super::{
    CLIENT, HERE, SERVER, Scene, Seen, THERE, Way, accept, count, quiet, state, until_all_seen, wait_for_count,
};
use crate::actor::{Command, Drop, Fault, ServeMode};
use crate::agent::Agent;
use crate::cases::PATIENCE;
use crate::cases::stage::{Scale, wait_for_pods};
use crate::cases::ways::NAMESPACE;
use crate::pod::{Pod, PodSpec};
use crate::samples::Samples;

/// A pod that comes while no agent is there.
const LATE: &str = "late";

/// The connections of a way.
struct Line<'a> {
    way: Way<'a>,
    to: SocketAddr,
    open: Vec<u64>,
    /// How many of them, and of those that are over, began after the first agent.
    seen: u32,
}

impl Line<'_> {
    fn open(&mut self) -> Result<()> {
        self.open.push(self.way.client.open_tcp(self.to)?.0);
        Ok(())
    }

    /// Closes the oldest one.
    fn close(&mut self) -> Result<()> {
        let connection = self.open.remove(0);
        self.way.client.traffic(&Command::TcpClose { connection }).map(drop)
    }
}

impl Scene {
    /// Both ends of every line have its connections, and have opened those that began after the first agent; nobody else has
    /// any, but for those of `late`, which nobody saw begin.
    fn expect_lines(&self, lines: &[Line<'_>], late: u16, agent: &Agent) -> Result<()> {
        let wanted = |line: &Line<'_>| [[line.open.len() as f64; 2], [f64::from(line.seen); 2]];
        let opened = |line: &Line<'_>, samples: &Samples| {
            let port = line.to.port().to_string();
            [true, false].map(|client| samples.sum(OPENED, &self.labels(&line.way, client, Some(&port))))
        };
        let read = |samples: &Samples| {
            let lines: Vec<_> = lines
                .iter()
                .map(|line| [self.active(&line.way, line.to.port(), samples), opened(line, samples)])
                .collect();
            let late = [CLIENT, SERVER].map(|container| {
                let labels = [("pod", LATE), ("container", container), ("peer_kind", "container")];
                [samples.sum(ACTIVE, &labels), samples.sum(OPENED, &labels)]
            });
            (lines, late, [ACTIVE, OPENED].map(|family| samples.sum(family, &[("namespace", NAMESPACE)])))
        };
        let each: Vec<_> = lines.iter().map(wanted).collect();
        let all = |at: usize| each.iter().map(|line| line[at].iter().sum::<f64>()).sum::<f64>();
        let late = f64::from(late);
        let expected = (each.clone(), [[late, 0.0]; 2], [all(0) + 2.0 * late, all(1)]);
        let samples = agent.scrape_until(PATIENCE, |samples| read(samples) == expected)?;
        let found = read(&samples);
        ensure!(found == expected, "active and opened are {found:?}, expected {expected:?}");
        Ok(())
    }

    /// The same with a table that is too small: there all lines have one series at each end.
    fn expect(&self, lines: &[Line<'_>], late: u16, agent: &Agent) -> Result<()> {
        if !self.stage.has_small_table() {
            return self.expect_lines(lines, late, agent);
        }
        let ends = |of: &dyn Fn(&Line<'_>) -> f64| 2.0 * lines.iter().map(of).sum::<f64>();
        let active = ends(&|line| line.open.len() as f64) + 2.0 * f64::from(late);
        let expected = [active, ends(&|line| line.seen.into())];
        let read = |samples: &Samples| [ACTIVE, OPENED].map(|family| samples.sum(family, &[("namespace", NAMESPACE)]));
        let samples = agent.scrape_until(PATIENCE, |samples| read(samples) == expected)?;
        let found = read(&samples);
        ensure!(found == expected, "active and opened are {found:?}, expected {expected:?}");
        Ok(())
    }

    /// Those of the scene, and by the pod's own address.
    fn all_ways(&self) -> Result<Vec<Way<'_>>> {
        let mut ways = self.ways()?;
        ways.push(Way::near(&self.here, self.here.ipv4())?);
        ways.push(Way::near(&self.here, self.here.ipv6())?);
        Ok(ways)
    }
}

/// As many are active as are open, whenever they began, and none is opened that began before the agent. Over `kill -9`
/// those that are known are not counted twice, and those of a pod that came meanwhile are found.
pub fn tcp_older(_: Scale, edges: Option<u32>) -> Result<()> {
    let scene = Scene::new(edges)?;
    let mut lines = Vec::new();
    for way in scene.all_ways()? {
        let to = way.server.serve_tcp(way.any_port(), ServeMode::Echo)?;
        let mut line = Line { way, to, open: Vec::new(), seen: 0 };
        for _ in 0..3 {
            line.open()?;
        }
        lines.push(line);
    }
    let agent = scene.agent()?;
    scene.expect(&lines, 0, &agent).context("before a word is said")?;
    for line in &mut lines {
        for connection in line.open.clone() {
            line.way.client.traffic(&Command::TcpWrite { connection, bytes: 10, reply_bytes: 10 })?;
        }
        line.open()?;
        line.seen += 1;
    }
    quiet(&scene, &agent)?;
    scene.expect(&lines, 0, &agent).context("after a word on each")?;
    agent.kill9()?;
    // Old ones end and others begin while nobody looks.
    for line in &mut lines {
        line.close()?;
        line.open()?;
        line.open()?;
        line.seen += 2;
    }
    let late = Pod::create(&scene.stage.node, PodSpec::new(NAMESPACE, LATE, &[CLIENT, SERVER]))?;
    scene.stage.announce(&[&scene.here, &scene.there, &late])?;
    let mut of_late = Vec::new();
    for address in [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()] {
        let to = late.container(SERVER)?.serve_tcp(SocketAddr::new(address, 0), ServeMode::Echo)?;
        of_late.push(late.container(CLIENT)?.open_tcp(to)?.0);
    }
    let agent = scene.stage.agent()?;
    wait_for_pods(&agent, &[HERE, THERE, LATE])?;
    scene.expect(&lines, 2, &agent).context("after kill -9")?;
    for connection in of_late {
        late.container(CLIENT)?.traffic(&Command::TcpClose { connection })?;
    }
    for line in &mut lines {
        line.close()?;
    }
    scene.expect(&lines, 0, &agent).context("after some ended")?;
    agent.kill9()?;
    let agent = scene.stage.agent()?;
    wait_for_pods(&agent, &[HERE, THERE, LATE])?;
    scene.expect(&lines, 0, &agent).context("after another kill -9")?;
    for line in &mut lines {
        while !line.open.is_empty() {
            line.close()?;
        }
    }
    scene.expect(&lines, 0, &agent).context("after all ended")?;
    quiet(&scene, &agent).map(drop)
}

/// What is sent again on connections that are older than the agent, how long their ways are, and how they end: as the
/// kernel says, from the agent's start on, over `kill -9`.
pub fn tcp_older_events(_: Scale, edges: Option<u32>) -> Result<()> {
    until_all_seen(Ipv4Addr::UNSPECIFIED.into(), || events(edges))
}

/// An end of each, kept open by the server.
struct Old<'a> {
    way: Way<'a>,
    to: SocketAddr,
    connection: u64,
    accepted: u64,
}

impl Old<'_> {
    /// The server does not hear what is sent, until it has been sent again `times`.
    fn again(&self, times: i64) -> Result<u32> {
        let deafen = |drop| self.way.server.run(&Command::Fault(Fault::Deafen { socket: self.accepted, drop }));
        let pid = self.way.client.pid();
        let before = count(pid, SENT_AGAIN)?;
        deafen(Drop::Everything)?;
        let connection = self.connection;
        self.way.client.traffic(&Command::TcpWrite { connection, bytes: 20_000, reply_bytes: 0 })?;
        wait_for_count(pid, SENT_AGAIN, before, times)?;
        deafen(Drop::Nothing)?;
        Ok(state(self.way.client, Fault::Confirmed { connection })?.retransmitted)
    }
}

const SENT_AGAIN: &str = "Tcp.RetransSegs";

fn events(edges: Option<u32>) -> Result<Seen> {
    // The first agent of a scene is the one that all these are older than.
    let scene = Scene::new(edges)?;
    let mut all = Vec::new();
    for way in scene.all_ways()? {
        let (listener, to) = way.listen()?;
        let connection = way.client.open_tcp(to)?.0;
        let old = Old { way, to, connection, accepted: accept(way.server, listener)? };
        ensure!(old.again(2)? >= 2, "nothing was sent again before the agent came");
        all.push(old);
    }
    let mut agent = scene.agent()?;
    let before_all = quiet(&scene, &agent)?;
    ensure!(before_all.sum(AGAIN, &[("namespace", NAMESPACE)]) == 0.0, "what was before the agent is counted");
    let mut seen = Seen::All;
    for old in &all {
        let (before, truths) = (quiet(&scene, &agent)?, scene.truths()?);
        old.again(2)?;
        seen = seen.and(compare(&scene, &agent, &old.way, old.to, (&before, &truths), true)?);
    }
    let (before, truths) = (quiet(&scene, &agent)?, scene.truths()?);
    agent.kill9()?;
    let old = &all[0];
    old.again(2)?;
    agent = scene.agent()?;
    seen = seen.and(compare(&scene, &agent, &old.way, old.to, (&before, &truths), true)?);
    for old in &all {
        seen = seen.and(ends(&scene, &agent, old)?);
    }
    let after = quiet(&scene, &agent)?;
    ensure!(after.sum(ACTIVE, &[("namespace", NAMESPACE)]) == 0.0, "connections outlived their resets");
    ensure!(after.sum(OPENED, &[("namespace", NAMESPACE)]) == 0.0, "what was opened before the agent came is counted");
    Ok(seen)
}

/// The client resets it: one reset goes out and one comes in, and each end has one round trip time, the client's last one.
fn ends(scene: &Scene, agent: &Agent, old: &Old<'_>) -> Result<Seen> {
    let way = &old.way;
    let before = quiet(scene, agent)?;
    let last = u64::from(state(way.client, Fault::Reset { connection: old.connection })?.rtt_us);
    let after = quiet(scene, agent)?;
    let resets = |client, direction| {
        scene.added(way, client, Some(old.to.port()), (RESETS, &[("direction", direction)]), [&before, &after])
    };
    let time = |pod, container| {
        let [then, now] = [&before, &after].map(|samples| observed(samples, RTT, pod, container));
        (now.0 - then.0, now.1 - then.1)
    };
    let (client, server) = (time(HERE, CLIENT), time(way.server_pod, SERVER));
    ensure!(is_sum(client, (last, 1)), "the round trip to {}: {client:?}, the socket said {last} µs", old.to);
    let found = [resets(true, "transmit"), resets(false, "receive"), client.1, server.1];
    Seen::compare(found, [1; 4]).with_context(|| format!("the end of a connection to {}", old.to))
}
