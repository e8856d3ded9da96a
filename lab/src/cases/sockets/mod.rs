//! Traffic counted by sockets: the payload of every connection, to the byte, at both of its ends.

mod busy;
mod missed;
mod reused;

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::PATIENCE;
use super::restart::Monotonic;
use super::stage::{Scale, Stage, wait_for_pods};
use super::tcp::{accept, crossed, opened};
use super::ways::{CLIENT, HERE, NAMESPACE, SERVER, THERE, Way};
use crate::actor::{Command, Fault, ServeMode};
use crate::agent::Agent;
use crate::pod::{Pod, PodSpec};
use crate::samples::Samples;

pub(super) use busy::sockets_busy;
pub(super) use missed::{sockets_missed, tcp_missed};
pub(super) use reused::sockets_reused;

const PAYLOAD: &str = "observer_tcp_payload_bytes_total";
const OPENED: &str = "observer_tcp_connections_opened_total";
const ACTIVE: &str = "observer_tcp_connections_active";
const LOSSES: &str = "observer_agent_kernel_losses_total";
const OVERFLOWED: &str = "observer_agent_edges_overflowed_total";
const MODE: [&str; 2] = ["--traffic.accounting", "sockets"];

struct Scene {
    stage: Stage,
    here: Pod,
    there: Pod,
}

/// What each end has sent, received and opened.
type Ends = [[u64; 3]; 2];

impl Scene {
    fn new(edges: Option<u32>) -> Result<Self> {
        let stage = Stage::new(edges)?;
        let here = Pod::create(&stage.node, PodSpec::new("cases", HERE, &[CLIENT, SERVER]))?;
        let there = Pod::create(&stage.node, PodSpec::new("cases", THERE, &[SERVER]))?;
        here.introduce(&there)?;
        stage.announce(&[&here, &there])?;
        Ok(Self { stage, here, there })
    }

    fn agent(&self) -> Result<Agent> {
        self.agent_with(&[])
    }

    fn agent_with(&self, more: &[&str]) -> Result<Agent> {
        let agent = self.stage.agent_with(None, &[&MODE, more].concat())?;
        let samples = wait_for_pods(&agent, &[HERE, THERE])?;
        let state = samples.get("observer_agent_probe_state", &[("probe", "tcp"), ("state", "ok")]);
        ensure!(state == Some(1.0), "the probe does not run; the agent's log:\n{}", agent.log());
        Ok(agent)
    }

    /// Lets a pod come while there is no agent. The next one looks for connections of its processes.
    fn search(&self, agent: Agent) -> Result<Agent> {
        agent.kill9()?;
        let late = Pod::create(&self.stage.node, PodSpec::new("cases", "late", &[SERVER]))?;
        self.stage.announce(&[&self.here, &self.there, &late])?;
        let agent = self.agent()?;
        let searched = agent.log().contains("looked for connections that were there before");
        ensure!(searched, "nobody looked for older connections; the agent's log:\n{}", agent.log());
        drop(late);
        self.stage.announce(&[&self.here, &self.there])?;
        Ok(agent)
    }

    /// Over loopback, by the pod's own address and between pods, IPv4 and IPv6.
    fn ways(&self) -> Result<Vec<Way<'_>>> {
        let (here, there) = (&self.here, &self.there);
        Ok(vec![
            Way::near(here, Ipv4Addr::LOCALHOST)?,
            Way::near(here, Ipv6Addr::LOCALHOST)?,
            Way::near(here, here.ipv4())?,
            Way::near(here, here.ipv6())?,
            Way::far(here, there, there.ipv4())?,
            Way::far(here, there, there.ipv6())?,
        ])
    }
}

impl Way<'_> {
    /// What both ends show at a port, or in all.
    fn ends(&self, samples: &Samples, port: Option<u16>) -> Ends {
        let port = port.map(|port| port.to_string());
        [true, false].map(|client| {
            let labels = match &port {
                Some(port) => self.labels(client, port),
                None => {
                    let (pod, container) = self.end(client);
                    vec![("namespace", NAMESPACE), ("pod", pod), ("container", container)]
                }
            };
            let payload = |direction| {
                let labels = [&labels[..], &[("direction", direction)]].concat();
                // Counters below 2^53 are exact in a float.
                samples.sum(PAYLOAD, &labels) as u64
            };
            [payload("transmit"), payload("receive"), samples.sum(OPENED, &labels) as u64]
        })
    }

    /// What the ends show once the last packets have come: those come after the command that sent them.
    fn expect(&self, agent: &Agent, to: SocketAddr, sent: u64, answered: u64, opened: u64) -> Result<Samples> {
        let expected = both_ends(sent, answered, opened);
        let samples = agent.scrape_until(PATIENCE, |samples| self.ends(samples, Some(to.port())) == expected)?;
        let found = self.ends(&samples, Some(to.port()));
        let port = to.port().to_string();
        let series =
            || samples.select(PAYLOAD, &[("port", &port)]).map(|sample| format!("{sample:?}")).collect::<Vec<_>>();
        ensure!(
            found == expected,
            "to {to}: {found:?} of sent, received, opened; expected {expected:?}; series: {:#?}",
            series()
        );
        // Whatever the labels, there is nothing else.
        let all = samples.sum(PAYLOAD, &[("port", &port)]) as u64;
        ensure!(all == 2 * (sent + answered), "to {to}: {all} bytes in all series of the port");
        Ok(samples)
    }

    /// The same, of what was added to all series of the two containers: a table that is too small tells neither peer nor port.
    fn expect_more(&self, agent: &Agent, before: &Samples, expected: Ends) -> Result<Samples> {
        let then = self.ends(before, None);
        let more = |samples: &Samples| {
            let now = self.ends(samples, None);
            // What goes back is not what was expected, either.
            std::array::from_fn(|end| std::array::from_fn(|at| now[end][at].wrapping_sub(then[end][at])))
        };
        let samples = agent.scrape_until(PATIENCE, |samples| more(samples) == expected)?;
        let found: Ends = more(&samples);
        ensure!(
            found == expected,
            "to {}: {found:?} more of sent, received, opened; expected {expected:?}",
            self.address
        );
        Ok(samples)
    }

    fn serve(&self, mode: ServeMode) -> Result<SocketAddr> {
        self.server.serve_tcp(self.any_port(), mode)
    }

    fn open(&self, to: SocketAddr) -> Result<u64> {
        Ok(self.client.open_tcp(to)?.0)
    }

    fn exchange(&self, connection: u64, bytes: u64) -> Result<()> {
        self.client.traffic(&Command::TcpWrite { connection, bytes, reply_bytes: bytes }).map(drop)
    }

    fn close(&self, connection: u64) -> Result<()> {
        self.client.traffic(&Command::TcpClose { connection }).map(drop)
    }
}

/// What the client sent is what the server received.
const fn both_ends(sent: u64, answered: u64, opened: u64) -> Ends {
    [[sent, answered, opened], [answered, sent, opened]]
}

/// No series of what this mode does not count.
fn check_absent(samples: &Samples) -> Result<()> {
    for sample in samples.iter() {
        let absent = sample.name.starts_with("observer_traffic_") || sample.name.starts_with("observer_dns_");
        ensure!(!absent, "{} is there", sample.name);
        ensure!(
            !sample.name.ends_with("_packets") || sample.name.starts_with("observer_packet"),
            "{} is there",
            sample.name
        );
    }
    Ok(())
}

/// A stream, and many short connections.
pub fn sockets_payload(scale: Scale, edges: Option<u32>) -> Result<()> {
    let scene = Scene::new(edges)?;
    let agent = scene.agent()?;
    let ways = scene.ways()?;
    // Two edges each: with a table that is too small, all that follows finds it full.
    for _ in 0..edges.unwrap_or(0) {
        let to = ways[0].serve(ServeMode::Sink)?;
        ways[0].close(ways[0].open(to)?)?;
    }
    let mut before = agent.scrape_until(PATIENCE, |samples| samples.sum(ACTIVE, &[("namespace", NAMESPACE)]) == 0.0)?;
    for way in &ways {
        let mut expect = |to, sent, answered, opened| -> Result<()> {
            before = match edges {
                Some(_) => way.expect_more(&agent, &before, both_ends(sent, answered, opened))?,
                None => way.expect(&agent, to, sent, answered, opened)?,
            };
            check_absent(&before)
        };
        let to = way.serve(ServeMode::Sink)?;
        let bytes = scale.of((64 << 20) + 7, (2 << 20) + 7);
        let sent = way.client.traffic(&Command::TcpSend { to, bytes, chunk: 65_536 })?;
        ensure!(sent.sent_bytes == bytes, "{sent:?}");
        expect(to, bytes, 0, 1)?;
        let to = way.serve(ServeMode::request_response(100, 300))?;
        let connections = scale.of(2_000, 200);
        way.client.traffic(&Command::TcpRequests {
            to,
            connections,
            requests: 2,
            request_bytes: 100,
            response_bytes: 300,
            parallel: 4,
        })?;
        let connections = u64::from(connections);
        expect(to, connections * 200, connections * 600, connections)?;
    }
    let samples = agent.scrape()?;
    if edges.is_some() {
        check_overflowed(&samples)?;
    } else {
        check_named(&samples)?;
    }
    agent.terminate()
}

/// Between pods, every byte of the client names the other pod.
fn check_named(samples: &Samples) -> Result<()> {
    let between = [("pod", HERE), ("container", CLIENT), ("peer_kind", "pod")];
    let named = samples.sum(PAYLOAD, &[&between[..], &[("peer_pod", THERE)]].concat());
    let all = samples.sum(PAYLOAD, &between);
    ensure!(named > 0.0 && named == all, "{named} of {all} bytes name the peer pod");
    let overflowed = samples.get(OVERFLOWED, &[]);
    ensure!(overflowed == Some(0.0), "{overflowed:?} edges overflowed the default table");
    Ok(())
}

/// The table was full, and every byte stands under a peer that nobody knows: those who made it full carried none.
fn check_overflowed(samples: &Samples) -> Result<()> {
    let overflowed = samples.sum(OVERFLOWED, &[]);
    ensure!(overflowed > 0.0, "nothing overflowed a table that is too small");
    for end in [(HERE, CLIENT), (HERE, SERVER), (THERE, SERVER)] {
        let labels = [("namespace", NAMESPACE), ("pod", end.0), ("container", end.1)];
        let all = samples.sum(PAYLOAD, &labels);
        let other = samples.sum(PAYLOAD, &[&labels[..], &[("peer_kind", "other"), ("port", "")]].concat());
        ensure!(other > 0.0 && other == all, "{end:?}: {other} of {all} bytes stand under another peer");
    }
    Ok(())
}

/// Connections that live are shown to the byte while they live, over `kill -9`, and not once more when they end. One is
/// older than the first agent: it counts from then on.
pub fn sockets_live(_: Scale, _: Option<u32>) -> Result<()> {
    let scene = Scene::new(None)?;
    let ways = scene.ways()?;
    let mut old = Vec::new();
    for way in &ways {
        let to = way.serve(ServeMode::Echo)?;
        let connection = way.open(to)?;
        way.exchange(connection, 100_001)?;
        old.push((to, connection));
    }
    let mut agent = scene.agent()?;
    for (way, (to, old)) in ways.iter().zip(old) {
        let mut sum = 0;
        for bytes in [1, 5_000, 200_003] {
            way.exchange(old, bytes)?;
            sum += bytes;
            way.expect(&agent, to, sum, sum, 0).context("a connection that is older than the agent")?;
        }
        let young = way.open(to)?;
        way.expect(&agent, to, sum, sum, 1)?;
        way.exchange(young, 70_000)?;
        way.expect(&agent, to, sum + 70_000, sum + 70_000, 1).context("a connection that lives")?;
        sum += 70_000;
        agent.kill9()?;
        // One ends and one begins while nobody looks.
        way.exchange(young, 11)?;
        way.close(young)?;
        let third = way.open(to)?;
        way.exchange(third, 13)?;
        way.exchange(old, 17)?;
        sum += 11 + 13 + 17;
        agent = scene.agent()?;
        way.expect(&agent, to, sum, sum, 2).context("after kill -9")?;
        for connection in [old, third] {
            way.exchange(connection, 1_000)?;
            way.close(connection)?;
        }
        sum += 2_000;
        way.expect(&agent, to, sum, sum, 2).context("after the end")?;
        let port = to.port().to_string();
        let none = agent.scrape_until(PATIENCE, |samples| samples.sum(ACTIVE, &[("port", &port)]) == 0.0)?;
        ensure!(none.sum(ACTIVE, &[("port", &port)]) == 0.0, "connections are active that are closed");
    }
    agent.terminate()
}

/// Clients that wait for their servers, more at once than have a place in the first lines: the server accepts none before its
/// first data. All are named at both ends, though older connections are looked for meanwhile, and none is left in the end. The
/// last way is to a server of both families.
pub fn sockets_waiting(_: Scale, _: Option<u32>) -> Result<()> {
    const CLIENTS: u64 = 300;
    let scene = Scene::new(None)?;
    let mut agent = scene.agent()?;
    let ways = scene.ways()?;
    let both = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0);
    let near = ways.iter().filter(|way| way.server_pod == HERE);
    for (way, address) in near.map(|way| (way, way.any_port())).chain([(&ways[0], both)]) {
        let listen = Fault::Listen { address, backlog: 4_096, defer_s: 60 };
        let (listener, at) = opened(way.server, listen)?;
        let to = SocketAddr::new(way.address, at.port());
        let waiting = (0..CLIENTS).map(|_| way.open(to)).collect::<Result<Vec<_>>>()?;
        agent = scene.search(agent)?;
        let mut accepted = Vec::new();
        for connection in &waiting {
            way.client.traffic(&Command::TcpWrite { connection: *connection, bytes: 10, reply_bytes: 0 })?;
            accepted.push(accept(way.server, listener)?);
        }
        let samples = way.expect(&agent, to, CLIENTS * 10, 0, CLIENTS)?;
        let full = [("reason", "connections_full")];
        ensure!(samples.sum(LOSSES, &full) == 0.0, "a client that waited lost its place");
        // A process has a thousand open files.
        for (container, connections) in [(way.client, waiting), (way.server, accepted)] {
            for connection in connections {
                container.run(&Command::Fault(Fault::Reset { connection }))?;
            }
        }
        let port = to.port().to_string();
        let none = agent.scrape_until(PATIENCE, |samples| samples.sum(ACTIVE, &[("port", &port)]) == 0.0)?;
        ensure!(none.sum(ACTIVE, &[("port", &port)]) == 0.0, "connections are active that are reset");
    }
    agent.terminate()
}

/// Connections that are reset before they are established.
pub fn sockets_crossed(scale: Scale, edges: Option<u32>) -> Result<()> {
    crossed(scale, edges, &MODE)
}

/// Short and long connections while scrapes come as fast as they can, with `kill -9` in the middle: no counter goes back,
/// and in the end all is there once.
pub fn sockets_restart(scale: Scale, _: Option<u32>) -> Result<()> {
    let scene = Scene::new(None)?;
    let mut agent = scene.agent()?;
    let mut watch = Monotonic::of(PAYLOAD);
    for way in scene.ways()?.into_iter().step_by(4) {
        let echo = way.serve(ServeMode::Echo)?;
        let short = way.serve(ServeMode::request_response(100, 300))?;
        let script = vec![
            Command::TcpSend { to: echo, bytes: 1 << 20, chunk: 10_000 },
            Command::TcpRequests {
                to: short,
                connections: 20,
                requests: 2,
                request_bytes: 100,
                response_bytes: 300,
                parallel: 2,
            },
        ];
        let job = way.client.start(script, Duration::from_millis(1), None)?;
        let length = scale.of(Duration::from_secs(4), Duration::from_secs(6));
        let begin = Instant::now();
        while begin.elapsed() < length / 2 {
            watch.see(&agent.scrape()?)?;
        }
        agent.kill9()?;
        std::thread::sleep(Duration::from_millis(300));
        agent = scene.agent()?;
        while begin.elapsed() < length {
            watch.see(&agent.scrape()?)?;
        }
        let done = way.client.stop(job)?;
        ensure!(done.failures == 0, "{} commands of the load failed", done.failures);
        // A round is one stream and twenty connections, each with two requests.
        let rounds = done.connections / 21;
        ensure!(rounds > 0 && done.connections == rounds * 21, "{done:?}");
        way.expect(&agent, echo, rounds << 20, rounds << 20, rounds)?;
        let samples = way.expect(&agent, short, rounds * 4_000, rounds * 12_000, rounds * 20)?;
        watch.see(&samples)?;
    }
    agent.terminate()
}
