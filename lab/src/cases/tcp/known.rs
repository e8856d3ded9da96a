//! Times that are known beforehand: the other side is a stack of the lab's own, which answers late.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Result, anyhow, ensure};

use super::lives::{CONNECT, RTT, observed};
use super::{CLIENT, HERE, Seen, state, until_all_seen};
use crate::actor::Fault;
use crate::agent::Agent;
use crate::cases::stage::{Scale, Stage, settled, wait_for_pods};
use crate::guest::{Guest, Peer};
use crate::pod::{Container, Pod, PodSpec};
use crate::samples::buckets;

const GUEST: &str = "late";
const PORT: u16 = 7_777;
/// What the other side lets pass before it answers a SYN.
const DELAY: Duration = Duration::from_millis(60);
/// More than this is not the other side's delay, but a machine that was busy.
const BUSY_US: u32 = 600_000;
const TIMES: usize = 5;
const HISTOGRAMS: [&str; 2] = [CONNECT, RTT];

/// The time to connect and the round trip time of connections to somebody who answers late: never less than the delay, what
/// the kernel says of each socket to the microsecond, and in the buckets where that belongs.
pub fn tcp_known_times(_: Scale, edges: Option<u32>) -> Result<()> {
    let stage = Stage::new(edges)?;
    let agent = stage.agent()?;
    let here = Pod::create(&stage.node, PodSpec::new("cases", HERE, &[CLIENT]))?;
    let late = Pod::create(&stage.node, PodSpec::new("cases", GUEST, &["app"]))?;
    here.introduce(&late)?;
    let mut guest = Guest::take_over(&late)?;
    stage.announce(&[&here, &late])?;
    wait_for_pods(&agent, &[HERE, GUEST])?;
    for address in [IpAddr::from(late.ipv4()), late.ipv6().into()] {
        until_all_seen(address, || round(&agent, here.container(CLIENT)?, &mut guest, address))?;
    }
    stage.check_overflow(&settled(&agent)?)?;
    agent.terminate()
}

fn round(agent: &Agent, client: &Container, guest: &mut Guest, address: IpAddr) -> Result<Seen> {
    let before = shown(agent)?;
    let mut times = Vec::new();
    for _ in 0..TIMES {
        let (connection, peer) = connect(client, guest, address)?;
        let last = state(client, Fault::Info { connection })?;
        guest.reset(PORT, peer, 0)?;
        if last.retransmitted > 0 {
            return Ok(Seen::Nothing("a SYN was sent again".to_owned()));
        }
        times.push(last.rtt_us);
    }
    let least = u32::try_from(DELAY.as_micros())?;
    ensure!(times.iter().all(|time| *time >= least), "the kernel measured {times:?} µs, the delay is {least}");
    if times.iter().any(|time| *time > BUSY_US) {
        return Ok(Seen::Nothing(format!("the machine is busy: {times:?} µs")));
    }
    // The last reset may still be under way.
    let sum: u64 = times.iter().map(|time| u64::from(*time)).sum();
    let whole =
        |sums: &[(u64, u64); 2]| sums.iter().zip(&before.sums).all(|(now, then)| now.1 - then.1 == TIMES as u64);
    agent.scrape_until(super::PATIENCE, |samples| {
        whole(&HISTOGRAMS.map(|name| observed(samples, name, HERE, CLIENT)))
    })?;
    let after = shown(agent)?;
    for (at, family) in HISTOGRAMS.iter().enumerate() {
        let (then, now) = (before.sums[at], after.sums[at]);
        let found = (now.0 - then.0, now.1 - then.1);
        ensure!(found == (sum, TIMES as u64), "{family} to {address}: {found:?}, the sockets said {times:?} µs");
        // Before the first observation there are no buckets.
        let earlier =
            |bound: f64| before.buckets[at].iter().find(|bucket| bucket.0 == bound).map_or(0, |bucket| bucket.1);
        let grown = after.buckets[at].iter().map(|(bound, count)| (*bound, count - earlier(*bound)));
        for (bound, count) in grown {
            let expected = times.iter().filter(|time| f64::from(**time) <= (bound * 1e6).round()).count() as u64;
            ensure!(
                count == expected,
                "{family} to {address}: {count} of {times:?} µs are said to be at most {bound} s"
            );
        }
        ensure!(after.buckets[at].len() > 1, "{family} has no buckets");
    }
    Ok(Seen::All)
}

/// What is shown of the client: sums and numbers, and buckets.
struct Shown {
    sums: [(u64, u64); 2],
    buckets: [Vec<(f64, u64)>; 2],
}

fn shown(agent: &Agent) -> Result<Shown> {
    let samples = settled(agent)?;
    let text = agent.fetch("/metrics")?;
    let labels = [("pod", HERE), ("container", CLIENT), ("peer_kind", "pod")];
    let [connect, rtt] = HISTOGRAMS.map(|family| buckets(&text, family, &labels));
    Ok(Shown { sums: HISTOGRAMS.map(|family| observed(&samples, family, HERE, CLIENT)), buckets: [connect?, rtt?] })
}

/// A connection that is established, and stays.
fn connect(client: &Container, guest: &mut Guest, address: IpAddr) -> Result<(u64, Peer)> {
    std::thread::scope(|scope| {
        let answer = scope.spawn(|| guest.accept_late(PORT, DELAY));
        let opened = client.open_tcp(SocketAddr::new(address, PORT));
        let peer = answer.join().map_err(|_| anyhow!("the thread that answers panicked"))??;
        Ok((opened?.0, peer))
    })
}
