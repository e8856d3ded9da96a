//! Connections that are reset before they are established: as dialed as ever, by both ends at once, or by the other end alone.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, anyhow, ensure};

use super::failures::{FAILURES, NOBODY, all, crowd, dial};
use super::lives::ACTIVE;
use super::opened::OPENED;
use super::retransmissions::{AGAIN, RESETS};
use super::{CLIENT, HERE, PATIENCE, SERVER, Seen, accept, count, opened, until_all_seen, wait_for_count};
use crate::actor::Fault;
use crate::agent::Agent;
use crate::cases::stage::{Scale, Stage, wait_for_pods};
use crate::guest::{Guest, Peer};
use crate::pod::{Container, Pod, PodSpec};
use crate::samples::Samples;

const GUEST: &str = "crossing";
/// How often a SYN may be sent again: more often than [`Guest::cross`] misses one.
const AGAIN_AT_MOST: u8 = 4;
/// Connections of a listener that began with data in their SYN.
const FAST_OPENS: &str = "TcpExt.TCPFastOpenPassive";
const ATTEMPTS_FAILED: &str = "Tcp.AttemptFails";

/// Counted by packets.
pub fn tcp_crossed(scale: Scale, edges: Option<u32>) -> Result<()> {
    crossed(scale, edges, &[])
}

/// Whoever has dialed has failed; a listener has not. Both ends hear of the reset, whether packets are counted or sockets.
pub fn crossed(scale: Scale, edges: Option<u32>, mode: &[&str]) -> Result<()> {
    let stage = Stage::new(edges)?;
    let agent = stage.agent_with(None, mode)?;
    let here = Pod::create(&stage.node, PodSpec::new("cases", HERE, &[CLIENT, SERVER]))?;
    let there = Pod::create(&stage.node, PodSpec::new("cases", GUEST, &["app"]))?;
    here.introduce(&there)?;
    let guest = Guest::take_over(&there)?;
    stage.announce(&[&here, &there])?;
    wait_for_pods(&agent, &[HERE, GUEST])?;
    stage.fill_table(&here, CLIENT)?;
    fast_open(&here)?;
    // Each conversation has a port of its own: what is under way of an earlier one disturbs none.
    let by_sockets = !mode.is_empty();
    let mut scene = Scene { stage, agent, by_sockets, here, guest, port: 7_000 };
    let times = scale.of(20, 5);
    for (guest, own) in
        [(IpAddr::from(there.ipv4()), IpAddr::from(scene.here.ipv4())), (there.ipv6().into(), scene.here.ipv6().into())]
    {
        until_all_seen(guest, || scene.dialed(guest, times, 0))?;
        until_all_seen(guest, || scene.dialed(guest, 3, 1))?;
        until_all_seen(guest, || scene.met(guest))?;
        scene.listened(own)?;
        until_all_seen(own, || scene.refused(own, times))?;
    }
    scene.agent.terminate()
}

/// Lets listeners take data with a SYN, from everybody: `TFO_SERVER_ENABLE`, `TFO_SERVER_COOKIE_NOT_REQD` and
/// `TFO_SERVER_WO_SOCKOPT1` of include/net/tcp.h.
fn fast_open(pod: &Pod) -> Result<()> {
    const SETTING: &str = "/proc/sys/net/ipv4/tcp_fastopen";
    pod.netns().run(|| std::fs::write(SETTING, (0x2 | 0x200 | 0x400).to_string()).context(SETTING))
}

struct Scene {
    stage: Stage,
    agent: Agent,
    by_sockets: bool,
    here: Pod,
    guest: Guest,
    port: u16,
}

impl Scene {
    fn next_port(&mut self) -> u16 {
        self.port += 1;
        self.port
    }

    /// Both ends dial. Every segment is sent once, or is missed so often before it is heard, and forgotten meanwhile who has
    /// sent it.
    fn dialed(&mut self, address: IpAddr, times: u16, unheard: u32) -> Result<Seen> {
        let port = self.next_port();
        let before = self.agent.scrape()?;
        let client = self.here.container(CLIENT)?;
        let bystander = self.here.container(SERVER)?;
        let sent_again = count(client.pid(), "Tcp.RetransSegs")?;
        let guest = &mut self.guest;
        let errors = std::thread::scope(|scope| {
            let answer = scope.spawn(|| guest.cross(port, times.into(), unheard));
            let dials = scope.spawn(|| dial(client, SocketAddr::new(address, port), times, AGAIN_AT_MOST, None));
            if unheard > 0 {
                crowd(bystander, address, &dials)?;
            }
            answer.join().map_err(|_| anyhow!("the thread that answers panicked"))??;
            dials.join().map_err(|_| anyhow!("the thread that dials panicked"))?
        })?;
        all(&errors, libc::ECONNRESET)?;
        let sent_again = u64::try_from(count(client.pid(), "Tcp.RetransSegs")? - sent_again)?;
        ensure!(sent_again >= u64::from(2 * unheard) * u64::from(times), "{sent_again} segments were sent again");

        let after = self.agent.scrape()?;
        let text = port.to_string();
        let side = [("role", "client"), ("port", text.as_str())];
        let side = if self.stage.has_small_table() { &[][..] } else { &side };
        let added = |name, more: &[_]| added(CLIENT, name, &[side, more].concat(), [&before, &after]);
        let found =
            [added(FAILURES, &[("reason", "reset")]), added(RESETS, &[("direction", "receive")]), added(AGAIN, &[])];
        let times = times.into();
        let seen = Seen::compare(found, [times, times, sent_again])?;
        // Whatever the role, the port and the reason, there is nothing else.
        let whole = [FAILURES, RESETS, AGAIN].map(|name| self::added(CLIENT, name, &[], [&before, &after]));
        ensure!(
            whole == found,
            "crossed with {address}: {whole:?} in all series, {found:?} of the client's side at port {port}: {:#?}",
            after.select(FAILURES, &[]).collect::<Vec<_>>()
        );
        never_opened(CLIENT, [&before, &after])?;
        Ok(seen)
    }

    /// Both ends dial, and are connected: one of the client's, but where sockets alone are looked at, whose state was that of a
    /// listener's.
    fn met(&mut self, address: IpAddr) -> Result<Seen> {
        let port = self.next_port();
        let before = self.agent.scrape()?;
        let client = self.here.container(CLIENT)?;
        let guest = &mut self.guest;
        let peer = std::thread::scope(|scope| {
            let answer = scope.spawn(|| guest.meet(port));
            let connection = client.open_tcp(SocketAddr::new(address, port));
            let peer = answer.join().map_err(|_| anyhow!("the thread that answers panicked"))?;
            connection.and(peer)
        })?;
        self.guest.reset(port, peer, 0)?;
        let after = self.agent.scrape_until(PATIENCE, |samples| active(CLIENT, samples) == 0.0)?;
        ensure!(active(CLIENT, &after) == 0.0, "a connection is active that was reset");
        let opened = |more: &[_]| added(CLIENT, OPENED, more, [&before, &after]);
        let role = ("role", if self.by_sockets { "server" } else { "client" });
        let side = if self.stage.has_small_table() { &[][..] } else { &[role] };
        Seen::compare([opened(side), opened(&[])], [1, 1])
    }

    /// A reset comes before anything else.
    fn refused(&self, own: IpAddr, times: u16) -> Result<Seen> {
        let before = self.agent.scrape()?;
        let errors = dial(self.here.container(CLIENT)?, SocketAddr::new(own, NOBODY), times, AGAIN_AT_MOST, None)?;
        all(&errors, libc::ECONNREFUSED)?;
        let after = self.agent.scrape()?;
        let of = |name, label| added(CLIENT, name, &[label], [&before, &after]);
        let found = [of(FAILURES, ("reason", "refused")), of(RESETS, ("direction", "receive"))];
        never_opened(CLIENT, [&before, &after])?;
        Seen::compare(found, [times.into(); 2])
    }

    /// The guest dials, and breaks off: a request to a listener, then what a listener has made of a SYN with data, after and
    /// before that is accepted.
    fn listened(&mut self, own: IpAddr) -> Result<()> {
        let ports = [(); 3].map(|()| self.next_port());
        let server = self.here.container(SERVER)?;
        let before = self.agent.scrape()?;
        let (listener, to) =
            opened(server, Fault::Listen { address: SocketAddr::new(own, 0), backlog: super::BACKLOG, defer_s: 0 })?;
        let peer = Peer { address: to, mac: self.here.mac().context("the pod has no interface")? };
        failed_attempt(server, || self.guest.knock(ports[0], peer))?;
        // In this order: one that was reset is accepted all the same, before those that come later.
        for (port, accepted) in ports[1..].iter().zip([true, false]) {
            let fast = count(server.pid(), FAST_OPENS)?;
            self.guest.knock_with_data(*port, peer)?;
            ensure!(count(server.pid(), FAST_OPENS)? == fast + 1, "the data was not taken with the SYN");
            if accepted {
                accept(server, listener)?;
            }
            failed_attempt(server, || self.guest.reset(*port, peer, 1))?;
        }
        let after = self.agent.scrape()?;
        let failures = added(SERVER, FAILURES, &[], [&before, &after]);
        ensure!(failures == 0, "{failures} connections to a listener are said to have been dialed and to have failed");
        never_opened(SERVER, [&before, &after])
    }
}

/// Breaks an attempt off, and waits until the kernel has heard it.
fn failed_attempt(server: &Container, break_off: impl FnOnce() -> Result<()>) -> Result<()> {
    let before = count(server.pid(), ATTEMPTS_FAILED)?;
    break_off()?;
    wait_for_count(server.pid(), ATTEMPTS_FAILED, before, 1)
}

fn active(container: &str, samples: &Samples) -> f64 {
    samples.sum(ACTIVE, &[("namespace", "cases"), ("pod", HERE), ("container", container)])
}

/// Nothing was established between two scrapes.
fn never_opened(container: &str, scrapes: [&Samples; 2]) -> Result<()> {
    let opened = added(container, OPENED, &[], scrapes);
    let active = active(container, scrapes[1]);
    ensure!(opened == 0 && active == 0.0, "{opened} connections of {container} were opened, {active} are active");
    Ok(())
}

fn added(container: &str, name: &str, more: &[(&str, &str)], [before, after]: [&Samples; 2]) -> u64 {
    let labels = [&[("namespace", "cases"), ("pod", HERE), ("container", container)][..], more].concat();
    // Counters below 2^53 are exact in a float.
    (after.sum(name, &labels) - before.sum(name, &labels)) as u64
}
