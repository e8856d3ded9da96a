//! Ends that no program has seen.

use std::net::{Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use aya::maps::{Array, Map, MapData};
use procfs::net::TcpState;

use super::super::stage::wait_for_pods;
use super::{ACTIVE, Agent, HERE, NAMESPACE, PATIENCE, Scale, Scene, THERE, Way};
use crate::actor::ServeMode;
use crate::pod::Container;

/// Connections of each way that are older than the first agent, which others are found in another place for.
const OLDER: u32 = 8;
/// Every fourth connection stays: it is no end.
const STAY: u64 = 4;

/// The kernel does not run a program inside of itself, and passes the event over. Here the programs are told that others count while
/// connections end, so nobody ends them before the next agent comes. What they have carried is counted to the byte.
pub fn sockets_missed(scale: Scale, _: Option<u32>) -> Result<()> {
    let scene = Scene::new(None)?;
    ends(
        &scene,
        scale,
        "-sockets",
        || scene.agent(),
        |way, agent, to, carried, opened| way.expect(agent, to, carried, carried, opened).map(drop),
    )
}

/// The same where packets are counted: what is over is not shown as living.
pub fn tcp_missed(scale: Scale, _: Option<u32>) -> Result<()> {
    let scene = Scene::new(None)?;
    let agent = || {
        let agent = scene.stage.agent()?;
        wait_for_pods(&agent, &[HERE, THERE])?;
        Ok(agent)
    };
    ends(&scene, scale, "", agent, |_, _, _, _, _| Ok(()))
}

/// `mode` is what the directory of the pins ends with; `expect` is told what one way has carried and opened, to which address.
fn ends(
    scene: &Scene,
    scale: Scale,
    mode: &str,
    start: impl Fn() -> Result<Agent>,
    expect: impl Fn(&Way<'_>, &Agent, SocketAddr, u64, u64) -> Result<()>,
) -> Result<()> {
    // IPv6 alone: the agent is scraped over IPv4, and its sockets must not get the memory of those that have ended.
    let ways = [Way::near(&scene.here, Ipv6Addr::LOCALHOST)?, Way::far(&scene.here, &scene.there, scene.there.ipv6())?];
    let addresses = ways.iter().map(|way| way.serve(ServeMode::Echo)).collect::<Result<Vec<_>>>()?;
    let open = |number: u32| -> Result<Vec<Vec<u64>>> {
        ways.iter().zip(&addresses).map(|(way, to)| (0..number).map(|_| way.open(*to)).collect()).collect()
    };
    let exchange = |connections: &[Vec<u64>], bytes: u64| -> Result<()> {
        ways.iter().zip(connections).try_for_each(|(way, of)| of.iter().try_for_each(|one| way.exchange(*one, bytes)))
    };
    let older = open(OLDER)?;
    exchange(&older, 555)?;
    let agent = start()?;
    let number = scale.of(100, 30);
    let mut all = open(number)?;
    exchange(&all, 3_001)?;
    let mut carried = u64::from(number) * 3_001;
    exchange(&older, 77)?;
    carried += u64::from(OLDER) * 77;
    all.iter_mut().zip(older).for_each(|(all, older)| all.extend(older));
    let active = |agent: &Agent, expected: usize| {
        let what = format!("{expected} active ends of connections");
        agent.wait_until(PATIENCE, &what, |samples| samples.sum(ACTIVE, &[("namespace", NAMESPACE)]) == expected as f64)
    };
    active(&agent, ends_of(&all))?;
    for (way, to) in ways.iter().zip(&addresses) {
        expect(way, &agent, *to, carried, number.into())?;
    }
    agent.kill9()?;

    exchange(&all, 11)?;
    carried += 11 * (u64::from(number) + u64::from(OLDER));
    let (stay, go): (Vec<Vec<u64>>, Vec<Vec<u64>>) =
        all.iter().map(|of| of.iter().partition::<Vec<u64>, _>(|one| **one % STAY == 0)).unzip();
    let before = owner(scene, mode, 0)?;
    ensure!(before != 0, "no program counts before ends are missed");
    ways.iter().zip(&go).try_for_each(|(way, of)| of.iter().try_for_each(|one| way.close(*one)))?;
    until_established(ways[0].client, stay.iter().map(Vec::len).sum::<usize>() + stay[0].len())?;
    until_established(ways[1].server, stay[1].len())?;
    owner(scene, mode, before)?;

    let agent = start()?;
    active(&agent, ends_of(&stay)).context("after ends were missed")?;
    for (way, to) in ways.iter().zip(&addresses) {
        expect(way, &agent, *to, carried, number.into()).context("after ends were missed")?;
    }
    exchange(&stay, 13)?;
    ways.iter().zip(&stay).try_for_each(|(way, of)| of.iter().try_for_each(|one| way.close(*one)))?;
    for ((way, to), stay) in ways.iter().zip(&addresses).zip(&stay) {
        expect(way, &agent, *to, carried + 13 * stay.len() as u64, number.into()).context("those that stayed")?;
    }
    active(&agent, 0)?;
    agent.terminate()
}

/// Both ends of all these connections are in pods.
fn ends_of(connections: &[Vec<u64>]) -> usize {
    2 * connections.iter().map(Vec::len).sum::<usize>()
}

/// Waits until so many sockets of IPv6 are left in a container's network namespace that have not ended.
fn until_established(container: &Container, expected: usize) -> Result<()> {
    let process = procfs::process::Process::new(container.pid().cast_signed())?;
    let begin = Instant::now();
    loop {
        let over = [TcpState::Close, TcpState::TimeWait, TcpState::Listen];
        let left = process.tcp6()?.into_iter().filter(|socket| !over.contains(&socket.state)).count();
        if left == expected {
            return Ok(());
        }
        ensure!(begin.elapsed() < PATIENCE, "{left} connections live, expected {expected}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Says which programs count; 0 for none. Tells which did.
fn owner(scene: &Scene, mode: &str, generation: u64) -> Result<u64> {
    let version = observer::kernel::ABI_VERSION;
    let path = scene.stage.bpffs().join(format!("observer/v{version}{mode}/maps/TCP_OWNER"));
    let map = MapData::from_pin(&path).with_context(|| format!("opening {}", path.display()))?;
    let mut map: Array<_, u64> = Array::try_from(Map::Array(map))?;
    let before = map.get(&0, 0)?;
    map.set(0, generation, 0)?;
    Ok(before)
}
