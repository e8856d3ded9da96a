//! Connections that are never established.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::thread::ScopedJoinHandle;

use anyhow::{Context, Result, anyhow, bail, ensure};

use super::{Scene, Seen, Way, opened, quiet, until_all_seen};
use crate::actor::{Answer, Command, Drop, Fault};
use crate::agent::Agent;
use crate::cases::stage::Scale;
use crate::pod::Container;
use crate::samples::Samples;

/// A port at which nobody listens.
pub(super) const NOBODY: u16 = 1;
const AGAIN: &str = "Tcp.RetransSegs";
const RETRANSMITTED: &str = "observer_tcp_retransmitted_segments_total";
pub(super) const FAILURES: &str = "observer_tcp_connect_failures_total";

/// The errors of connections that are dialed at the same time.
pub(super) fn dial(
    client: &Container,
    to: SocketAddr,
    times: u16,
    again: u8,
    give_up_ms: Option<u64>,
) -> Result<Vec<i32>> {
    match client.run(&Command::Fault(Fault::Dial { to, times, again, give_up_ms }))? {
        Answer::Dialed { errors } => Ok(errors),
        other => bail!("the answer was {other:?}"),
    }
}

pub(super) fn all(errors: &[i32], expected: i32) -> Result<()> {
    ensure!(errors.iter().all(|error| *error == expected), "errors {errors:?}, expected {expected}");
    Ok(())
}

/// Refused, unanswered, given up, without a way: each as often as it was made to be.
pub fn tcp_failures(scale: Scale, edges: Option<u32>) -> Result<()> {
    let scene = Scene::new(edges)?;
    let agent = scene.agent()?;
    for way in scene.ways()? {
        until_all_seen(way.address, || round(&scene, &agent, &way, scale))?;
    }
    Ok(())
}

fn round(scene: &Scene, agent: &Agent, way: &Way<'_>, scale: Scale) -> Result<Seen> {
    // Makes the container's edges known, whichever way it goes on.
    let before = quiet(scene, agent)?;
    let truths = scene.truths()?;
    let refused = scale.of(100, 20);
    all(&dial(way.client, SocketAddr::new(way.address, NOBODY), refused, 6, None)?, libc::ECONNREFUSED)?;

    let (deaf, silent) =
        opened(way.server, Fault::Listen { address: way.any_port(), backlog: super::BACKLOG, defer_s: 0 })?;
    way.server.run(&Command::Fault(Fault::Deafen { socket: deaf, drop: Drop::Everything }))?;
    let (timeouts, given_up) = (5, 3);
    let errors = std::thread::scope(|scope| {
        let dials = scope.spawn(|| dial(way.client, silent, timeouts, 1, None));
        crowd(scene.there.container(super::SERVER)?, way.address, &dials)?;
        dials.join().map_err(|_| anyhow!("the thread that dials panicked"))?
    })?;
    all(&errors, libc::ETIMEDOUT)?;
    dial(way.client, silent, given_up, 6, Some(200))?;

    let unreachable = match (way.server_pod, way.address) {
        (super::THERE, address) => {
            let nobody = unused(address);
            all(&dial(way.client, SocketAddr::new(nobody, 80), 3, 6, None)?, libc::EHOSTUNREACH)?;
            3
        }
        _ => 0,
    };

    let after = quiet(scene, agent)?;
    let at = |reason, port| failed(scene, way, reason, port, [&before, &after]);
    let found = [
        at("refused", Some(NOBODY)),
        at("timeout", Some(silent.port())),
        at("reset", None),
        // There is no such pod.
        at("unreachable", None),
        at("other", Some(silent.port())),
    ];
    let made = [refused, timeouts, 0, unreachable, given_up].map(u64::from);
    let seen = Seen::compare(found, made).with_context(|| {
        format!("failures to {}: {:?}", way.address, after.select(FAILURES, &[]).collect::<Vec<_>>())
    })?;
    ensure!(scene.added(way, false, None, (FAILURES, &[]), [&before, &after]) == 0, "the server's connections failed");
    let active = after.sum("observer_tcp_connections_active", &[("pod", super::HERE)]);
    ensure!(active == 0.0, "{active} connections live, none was established");
    if matches!(seen, Seen::All) {
        let truth = &scene.truths()?[0] - &truths[0];
        let fails = found[..4].iter().sum::<u64>();
        ensure!(
            i64::try_from(fails)? == truth.protocol("Tcp.AttemptFails"),
            "{fails} failed, the kernel counted {truth:?}"
        );
        let again = scene.added(way, true, None, (RETRANSMITTED, &[]), [&before, &after]);
        let wanted = truth.protocol(AGAIN);
        ensure!(i64::try_from(again)? == wanted && wanted > 0, "{again} SYNs sent again, the kernel counted {wanted}");
    }
    Ok(seen)
}

/// The client's connections that failed for a reason. By the port, and between pods by the peer; over loopback nobody may
/// have been there whose container could be told.
fn failed(scene: &Scene, way: &Way<'_>, reason: &str, port: Option<u16>, scrapes: [&Samples; 2]) -> u64 {
    let reason = ("reason", reason);
    if way.server_pod == super::THERE {
        return scene.added(way, true, port, (FAILURES, &[reason]), scrapes);
    }
    let port = port.filter(|_| !scene.stage.has_small_table()).map(|port| port.to_string());
    let side = port.iter().flat_map(|port| [("role", "client"), ("port", port)]);
    let more: Vec<_> = side.chain([reason]).collect();
    scene.added(way, true, None, (FAILURES, &more), scrapes)
}

/// Many sockets of another pod, until the last dial has failed. The kernel programs' caches, which every SYN is written to
/// anew, soon remember nothing but them.
pub(super) fn crowd(bystander: &Container, like: IpAddr, dials: &ScopedJoinHandle<'_, Result<Vec<i32>>>) -> Result<()> {
    let here = if like.is_ipv6() { Ipv6Addr::LOCALHOST.into() } else { Ipv4Addr::LOCALHOST.into() };
    let to = bystander.hold_udp(SocketAddr::new(here, 0), 4096)?;
    while !dials.is_finished() {
        bystander.run(&Command::Fault(Fault::Crowd { sockets: 2_000, to }))?;
    }
    Ok(())
}

/// An address of the pods' network that no pod has.
fn unused(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(address) => {
            let [a, b, c, _] = address.octets();
            [a, b, c, 250].into()
        }
        IpAddr::V6(address) => {
            let mut words = address.segments();
            words[7] = 0xfafa;
            words.into()
        }
    }
}
