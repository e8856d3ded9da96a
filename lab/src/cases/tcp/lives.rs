//! Connections that live: how many, and how long their ways are.

use std::net::SocketAddr;

use anyhow::{Context, Result, anyhow, ensure};
use observer::kernel::RTT_SAMPLE_EVERY;

use super::retransmissions::AGAIN;
use super::{CLIENT, HERE, SERVER, Scene, Seen, Way, quiet, state, until_all_seen, wait_for_count};
use crate::actor::{Command, Drop, Fault, ServeMode};
use crate::agent::Agent;
use crate::cases::PATIENCE;
use crate::cases::stage::{Scale, wait_for_pods};
use crate::cases::ways::NAMESPACE;
use crate::samples::Samples;
use crate::truth::Truth;

pub(super) const ACTIVE: &str = "observer_tcp_connections_active";
pub(super) const RTT: &str = "observer_tcp_rtt_seconds";
pub(super) const CONNECT: &str = "observer_tcp_connect_duration_seconds";

impl Scene {
    /// Live connections of both ends.
    pub(super) fn active(&self, way: &Way<'_>, port: u16, samples: &Samples) -> [f64; 2] {
        let port = port.to_string();
        [true, false].map(|client| samples.sum(ACTIVE, &self.labels(way, client, Some(&port))))
    }

    /// Waits until both ends have so many, and nobody else any: the last packet of a connection comes after the command
    /// that ended it.
    fn expect_active(&self, way: &Way<'_>, to: SocketAddr, agent: &Agent, expected: u32) -> Result<()> {
        let ends = [f64::from(expected); 2];
        let wanted = (ends, ends.iter().sum::<f64>());
        let all = |samples: &Samples| samples.sum(ACTIVE, &[("namespace", NAMESPACE)]);
        let read = |samples: &Samples| (self.active(way, to.port(), samples), all(samples));
        let samples = agent.scrape_until(PATIENCE, |samples| read(samples) == wanted)?;
        let found = read(&samples);
        ensure!(found == wanted, "to {to}: {found:?} connections of both ends and in all live, expected {wanted:?}");
        Ok(())
    }
}

/// As many as are open, over a restart of the agent, and the kernel counts as many.
pub fn tcp_active(_: Scale, edges: Option<u32>) -> Result<()> {
    let scene = Scene::new(edges)?;
    let mut agent = scene.agent()?;
    for way in scene.ways()? {
        let to = way.server.serve_tcp(way.any_port(), ServeMode::Echo)?;
        let open = || way.client.open_tcp(to).map(|(number, _)| number);
        let close = |connection| way.client.traffic(&Command::TcpClose { connection });
        let mut connections = (0..7).map(|_| open()).collect::<Result<Vec<_>>>()?;
        scene.expect_active(&way, to, &agent, 7)?;
        let [here, there] = scene.truths()?.map(|truth| truth.protocol("Tcp.CurrEstab"));
        let both = if way.server_pod == HERE { [14, 0] } else { [7, 7] };
        ensure!([here, there] == both, "the kernel counts {here} and {there} connections");
        for connection in connections.drain(..3) {
            close(connection)?;
        }
        scene.expect_active(&way, to, &agent, 4)?;
        agent.kill9()?;
        // One ends and two begin while nobody looks.
        close(connections.remove(0))?;
        connections.extend([open()?, open()?]);
        agent = scene.stage.agent()?;
        wait_for_pods(&agent, &[HERE, super::THERE])?;
        scene.expect_active(&way, to, &agent, 5)?;
        for connection in connections {
            close(connection)?;
        }
        scene.expect_active(&way, to, &agent, 0)?;
    }
    quiet(&scene, &agent).map(drop)
}

/// The sum of a histogram of a container, in microseconds, and its number of observations.
pub(super) fn observed(samples: &Samples, family: &str, pod: &str, container: &str) -> (u64, u64) {
    let labels = [("pod", pod), ("container", container)];
    let sum = samples.sum(&format!("{family}_sum"), &labels);
    ((sum * 1e6).round() as u64, samples.sum(&format!("{family}_count"), &labels) as u64)
}

/// The time to connect and the round trip time are what the kernel says of the very same sockets, to the microsecond.
pub fn tcp_times(_: Scale, edges: Option<u32>) -> Result<()> {
    let scene = Scene::new(edges)?;
    let agent = scene.agent()?;
    for way in scene.ways()? {
        until_all_seen(way.address, || handshakes(&scene, &agent, &way))?;
        until_all_seen(way.address, || late_answer(&scene, &agent, &way))?;
        until_all_seen(way.address, || long_lived(&scene, &agent, &way))?;
    }
    Ok(())
}

fn handshakes(scene: &Scene, agent: &Agent, way: &Way<'_>) -> Result<Seen> {
    let (_, to) = way.listen()?;
    let before = quiet(scene, agent)?;
    let (mut connecting, mut ending) = (0, 0);
    let times = 20;
    for _ in 0..times {
        let connection = way.client.open_tcp(to)?.0;
        // The server says nothing: this is the measure of the handshake, and stays the last one.
        connecting += u64::from(state(way.client, Fault::Info { connection })?.rtt_us);
        let last = state(way.client, Fault::Reset { connection })?;
        if last.retransmitted > 0 {
            return Ok(Seen::Nothing("a SYN was sent again".to_owned()));
        }
        ending += u64::from(last.rtt_us);
    }
    let after = quiet(scene, agent)?;
    let added = |family, pod, container| {
        let [then, now] = [&before, &after].map(|samples| observed(samples, family, pod, container));
        (now.0 - then.0, now.1 - then.1)
    };
    let [connect, rtt] = [CONNECT, RTT].map(|family| added(family, HERE, CLIENT));
    let counts = [connect.1, rtt.1, added(RTT, way.server_pod, SERVER).1];
    let seen = Seen::compare(counts, [times; 3]).with_context(|| format!("times to {}", way.address))?;
    for (family, found, sum) in [(CONNECT, connect, connecting), (RTT, rtt, ending)] {
        ensure!(is_sum(found, (sum, times)), "{family} to {}: {found:?}, the sockets said {sum} µs", way.address);
    }
    Ok(seen)
}

/// Whether a sum in microseconds and a number of observations are these: less where not all were seen.
pub(super) fn is_sum(found: (u64, u64), made: (u64, u64)) -> bool {
    if found.1 < made.1 { found.0 <= made.0 } else { found == made }
}

/// A connection that does not end shows its round trip time all the same: once for so many packets that an end receives, on
/// each CPU, and once more when it is over.
fn long_lived(scene: &Scene, agent: &Agent, way: &Way<'_>) -> Result<Seen> {
    let to = way.server.serve_tcp(way.any_port(), ServeMode::Echo)?;
    let ends = [(HERE, CLIENT), (way.server_pod, SERVER)];
    let times = |samples: &Samples| ends.map(|(pod, container)| observed(samples, RTT, pod, container));
    let before = quiet(scene, agent)?;
    let connection = way.client.open_tcp(to)?.0;
    for _ in 0..600 {
        way.client.traffic(&Command::TcpWrite { connection, bytes: 1, reply_bytes: 1 })?;
    }
    let living = quiet(scene, agent)?;
    let port = to.port().to_string();
    let (then, now) = (times(&before), times(&living));
    for (at, (pod, container)) in ends.into_iter().enumerate() {
        let labels = [("pod", pod), ("container", container), ("port", port.as_str()), ("direction", "receive")];
        let packets = living.sum("observer_traffic_packets_total", &labels) as u64;
        // Each CPU may have begun to count to the next one.
        let cpus = std::thread::available_parallelism()?.get() as u64;
        let expected = packets.saturating_sub(cpus * (RTT_SAMPLE_EVERY - 1)).div_ceil(RTT_SAMPLE_EVERY)
            ..=packets / RTT_SAMPLE_EVERY;
        let (sum, found) = (now[at].0 - then[at].0, now[at].1 - then[at].1);
        ensure!(
            expected.contains(&found) && *expected.start() > 0 && sum > 0,
            "{pod}/{container} has received {packets} packets on a connection that lives: {found} round trip times of {sum} µs, \
             expected {expected:?}"
        );
    }
    let last = u64::from(state(way.client, Fault::Reset { connection })?.rtt_us);
    let ended = quiet(scene, agent)?;
    let over = times(&ended);
    let found = (over[0].0 - now[0].0, over[0].1 - now[0].1);
    // The reset is a packet that the server receives, and may be the one in so many that shows a round trip time.
    let labels = [("pod", way.server_pod), ("container", SERVER), ("port", port.as_str()), ("direction", "receive")];
    let [had, has] = [&living, &ended].map(|samples| samples.sum("observer_traffic_packets_total", &labels) as u64);
    let at_server = over[1].1 - now[1].1;
    let at_server = at_server - at_server.saturating_sub(1).min(has - had);
    let seen = Seen::compare([found.1, at_server], [1, 1]).context("the ends of a connection")?;
    ensure!(is_sum(found, (last, 1)), "the end of a connection: {found:?}, the socket said {last} µs");
    Ok(seen)
}

/// A first SYN that is lost: when it left is not known any more, and no time is shown rather than a wrong one.
fn late_answer(scene: &Scene, agent: &Agent, way: &Way<'_>) -> Result<Seen> {
    let (listener, to) = way.listen()?;
    let deafen = |drop| way.server.run(&Command::Fault(Fault::Deafen { socket: listener, drop }));
    deafen(Drop::Everything)?;
    let before = quiet(scene, agent)?;
    let opens = Truth::of_process(way.client.pid())?.protocol("Tcp.ActiveOpens");
    let connection = std::thread::scope(|scope| {
        let dial = scope.spawn(|| way.client.open_tcp(to));
        wait_for_count(way.client.pid(), "Tcp.ActiveOpens", opens, 1)?;
        // The SYN leaves right after it is counted.
        std::thread::sleep(std::time::Duration::from_millis(50));
        deafen(Drop::Nothing)?;
        dial.join().map_err(|_| anyhow!("the thread that dials panicked"))?
    })?
    .0;
    let last = state(way.client, Fault::Reset { connection })?;
    if last.retransmitted == 0 {
        return Ok(Seen::Nothing(format!("no SYN was lost: {last:?}")));
    }
    let after = quiet(scene, agent)?;
    let [then, now] = [&before, &after].map(|samples| observed(samples, CONNECT, HERE, CLIENT));
    ensure!(now == then, "a connect to {} took an unknown time, reported as {} µs", way.address, now.0 - then.0);
    let again = [&before, &after].map(|samples| samples.sum(AGAIN, &[("pod", HERE), ("container", CLIENT)]) as u64);
    Seen::compare([again[1] - again[0]], [last.retransmitted.into()]).context("SYNs that were sent again")
}
