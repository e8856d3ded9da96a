//! The agent is killed in the middle, and nothing is lost.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::count::{Counted, check_loopback, ip_header, tcp_payload};
use super::stage::{Scale, Stage, settled};
use crate::actor::{Command, Pace, ServeMode, Sizes};
use crate::samples::Samples;
use crate::truth::Truth;

const POD: &str = "restart";
const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Mixed load for some seconds, `kill -9` twice meanwhile: the totals are the truth to the byte, and no scrape shows
/// a counter that went back.
pub fn restart(scale: Scale, edges: Option<u32>) -> Result<()> {
    let stage = Stage::new(edges)?;
    let mut agent = stage.agent()?;
    let pod = stage.pod(&agent, POD, &["client", "server"])?;
    let (client, server) = (pod.container("client")?, pod.container("server")?);
    let any_port = SocketAddr::new(V4, 0);
    let stream = server.serve_tcp(any_port, ServeMode::Echo)?;
    let short = server.serve_tcp(any_port, ServeMode::request_response(100, 300))?;
    let datagrams = server.serve_udp(any_port, true)?;
    let before = settled(&agent)?;
    let truth = Truth::of_process(server.pid())?;
    let script = vec![
        Command::TcpSend { to: stream, bytes: 1 << 20, chunk: 10_000 },
        Command::TcpRequests {
            to: short,
            connections: 20,
            requests: 2,
            request_bytes: 100,
            response_bytes: 300,
            parallel: 2,
        },
        Command::UdpSend {
            to: datagrams,
            sizes: Sizes::Random { count: 50, min: 1, max: 2_000, seed: 3 },
            connected: false,
            pace: Pace::Echoed { window: 8 },
        },
    ];
    let job = client.start(script, Duration::from_millis(1), None)?;
    let length = scale.of(Duration::from_secs(10), Duration::from_secs(6));
    let begin = Instant::now();
    let mut watch = Monotonic::default();
    for part in 1..=2u32 {
        while begin.elapsed() < length * part / 3 {
            watch.see(&agent.scrape()?)?;
            std::thread::sleep(Duration::from_millis(100));
        }
        let address = agent.address();
        agent.kill9()?;
        std::thread::sleep(Duration::from_millis(300));
        agent = stage.agent_at(Some(address))?;
    }
    while begin.elapsed() < length {
        watch.see(&agent.scrape()?)?;
        std::thread::sleep(Duration::from_millis(100));
    }
    let sent = client.stop(job)?;
    ensure!(sent.failures == 0, "{} commands of the load failed", sent.failures);
    let after = settled(&agent)?;
    watch.see(&after)?;
    let truth = &Truth::of_process(server.pid())? - &truth;
    let counted = Counted { before: &before, after: &after };
    check_loopback(&counted, POD, &truth, sent.connections, V4)?;
    check_payload(&counted, sent.sent_bytes, truth.protocol("Tcp.RetransSegs"))?;
    agent.terminate()
}

/// Payload of all protocols that the client sent, from the agent's series alone.
fn check_payload(counted: &Counted<'_>, sent: u64, again: i64) -> Result<()> {
    let client = [("pod", POD), ("container", "client")];
    let [pod, container] = client;
    let of = |protocol| counted.of(&[pod, container, ("protocol", protocol), ("direction", "transmit")]);
    let opened = |samples: &Samples| samples.sum("observer_tcp_connections_opened_total", &client) as u64;
    let (tcp, udp) = (of("tcp"), of("udp"));
    let payload = tcp_payload(tcp, opened(counted.after) - opened(counted.before), V4) + i128::from(udp.bytes)
        - i128::from(udp.packets * (ip_header(V4) + 8));
    // The check of the interface holds everything to the byte; retransmitted segments are in it twice.
    ensure!(
        payload >= i128::from(sent) && (again > 0 || payload == i128::from(sent)),
        "the agent's series hold {payload} bytes of payload, {sent} were sent, {again} segments again"
    );
    Ok(())
}

/// Every counter that was seen, and its last value.
pub(super) struct Monotonic {
    prefix: &'static str,
    last: BTreeMap<String, f64>,
}

impl Default for Monotonic {
    fn default() -> Self {
        Self::of("observer_traffic_")
    }
}

impl Monotonic {
    /// Of families whose names begin like this.
    pub(super) fn of(prefix: &'static str) -> Self {
        Self { prefix, last: BTreeMap::new() }
    }

    /// Fails when a counter went back.
    pub(super) fn see(&mut self, samples: &Samples) -> Result<()> {
        for sample in samples.iter().filter(|sample| sample.name.starts_with(self.prefix)) {
            let series = format!("{}{:?}", sample.name, sample.labels);
            let last = self.last.entry(series.clone()).or_default();
            ensure!(sample.value >= *last, "{series} went back from {last} to {}", sample.value);
            *last = sample.value;
        }
        Ok(())
    }
}
