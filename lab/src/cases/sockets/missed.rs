//! Ends that no program has seen.

use std::net::{Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use aya::maps::{Array, Map, MapData};
use procfs::net::TcpState;

use super::super::stage::wait_for_pods;
use super::{ACTIVE, Agent, HERE, LOSSES, NAMESPACE, PATIENCE, PAYLOAD, Samples, Scale, Scene, THERE, Way};
use crate::actor::{Answer, Command, Fault, ServeMode};
use crate::cases::drops::CLOSED;
use crate::pod::Container;

/// Connections of each way that are older than the first agent, which others are found in another place for.
const OLDER: u32 = 8;
/// Every fourth connection stays: it is no end.
const STAY: u64 = 4;

/// Calls that are refused.
const CALLS: u16 = 8;
/// What a connection carries each way that is opened while an agent runs.
const AT_FIRST: u64 = 3_001;
/// What an older one does then.
const AT_FIRST_OLDER: u64 = 77;
/// What each does before its end is missed.
const UNSEEN: u64 = 11;

/// The kernel does not run a program inside of itself, and passes the event over. Here the programs are told that others count while
/// connections end, so nobody ends them before the next agent comes. What they have carried is counted to the byte, or they are counted
/// as those of which that is not known: the kernel gives memory back of which all sockets are gone.
pub fn sockets_missed(scale: Scale, _: Option<u32>) -> Result<()> {
    let scene = Scene::new(None)?;
    ends(&scene, scale, "-sockets", || scene.agent(), expect_payload)
}

/// The same where packets are counted: what is over is not shown as living.
pub fn tcp_missed(scale: Scale, _: Option<u32>) -> Result<()> {
    let scene = Scene::new(None)?;
    let agent = || {
        let agent = scene.stage.agent()?;
        wait_for_pods(&agent, &[HERE, THERE])?;
        Ok(agent)
    };
    ends(&scene, scale, "", agent, |agent, done, when| {
        let unknown = unknown(&agent.scrape()?);
        ensure!(unknown <= done.unknown as u64, "{when}: {unknown} ends are not known, {} may be", done.unknown);
        Ok(())
    })
}

/// What the connections have done, all with an answer of the same size.
struct Done<'a> {
    ways: &'a [(Way<'a>, SocketAddr); 2],
    /// By those of each way.
    carried: [u64; 2],
    /// So many of each way while programs counted.
    opened: u64,
    /// What a connection may have carried whose end was missed.
    missed: Vec<u64>,
    /// So many of their ends are not known, at most.
    unknown: usize,
}

impl Done<'_> {
    /// How many ends of connections are not known, if those are all that is not shown.
    fn explained(&self, samples: &Samples) -> Option<u64> {
        let unknown = unknown(samples);
        let mut lacking = 0;
        for ((way, to), carried) in self.ways.iter().zip(self.carried) {
            for [sent, received, opened] in way.ends(samples, Some(to.port())) {
                if sent != received || opened != self.opened {
                    return None;
                }
                lacking += carried.checked_sub(sent)?;
            }
        }
        (unknown <= self.unknown as u64 && is_sum_of(lacking, unknown, &self.missed)).then_some(unknown)
    }
}

/// How many ends of connections are not known.
fn unknown(samples: &Samples) -> u64 {
    samples.sum(LOSSES, &[("reason", "end_unknown")]) as u64
}

/// Whether so much is what so many connections have carried, of which each carried one of these.
fn is_sum_of(bytes: u64, connections: u64, each: &[u64]) -> bool {
    match each.split_first() {
        None => bytes == 0 && connections == 0,
        Some((first, others)) => (0..=connections)
            .map_while(|number| Some((number, bytes.checked_sub(number * first)?)))
            .any(|(number, left)| is_sum_of(left, connections - number, others)),
    }
}

/// The payload of both ends of both ways.
fn expect_payload(agent: &Agent, done: &Done<'_>, when: &str) -> Result<()> {
    let samples = agent.scrape_until(PATIENCE, |samples| done.explained(samples).is_some())?;
    let found = done.ways.each_ref().map(|(way, to)| way.ends(&samples, Some(to.port())));
    let unknown = unknown(&samples);
    ensure!(
        done.explained(&samples).is_some(),
        "{when}: {found:?} of sent, received, opened; expected {:?} and {} opened, but for {unknown} ends that are not known of \
         connections that have carried one of {:?}",
        done.carried,
        done.opened,
        done.missed
    );
    // Whatever the labels, there is nothing else.
    for ((_, to), ends) in done.ways.iter().zip(found) {
        let all = samples.sum(PAYLOAD, &[("port", &to.port().to_string())]) as u64;
        let shown: u64 = ends.iter().map(|[sent, received, _]| sent + received).sum();
        ensure!(all == shown, "{when}: {all} bytes in all series of port {}, {shown} in those of the pods", to.port());
    }
    println!("{when}: {unknown} ends are not known");
    Ok(())
}

/// `mode` is what the directory of the pins ends with; `expect` is told what is to be shown, and when.
fn ends(
    scene: &Scene,
    scale: Scale,
    mode: &str,
    start: impl Fn() -> Result<Agent>,
    expect: impl Fn(&Agent, &Done<'_>, &str) -> Result<()>,
) -> Result<()> {
    // IPv6 alone: the agent is scraped over IPv4, and its sockets must not get the memory of those that have ended.
    let near = Way::near(&scene.here, Ipv6Addr::LOCALHOST)?;
    let far = Way::far(&scene.here, &scene.there, scene.there.ipv6())?;
    let ways = &[(near, near.serve(ServeMode::Echo)?), (far, far.serve(ServeMode::Echo)?)];
    let open = |number: u32| -> Result<Vec<Vec<u64>>> {
        ways.iter().map(|(way, to)| (0..number).map(|_| way.open(*to)).collect()).collect()
    };
    let exchange = |connections: &[Vec<u64>], bytes: u64| -> Result<()> {
        ways.iter()
            .zip(connections)
            .try_for_each(|((way, _), of)| of.iter().try_for_each(|one| way.exchange(*one, bytes)))
    };
    let close = |connections: &[Vec<u64>]| -> Result<()> {
        ways.iter().zip(connections).try_for_each(|((way, _), of)| of.iter().try_for_each(|one| way.close(*one)))
    };
    // Ends them while no program counts, until only these are left.
    let miss = |go: &[Vec<u64>], stay: &[Vec<u64>]| -> Result<()> {
        let before = owner(scene, mode, 0)?;
        ensure!(before != 0, "no program counts before ends are missed");
        close(go)?;
        until_established(ways[0].0.client, stay.iter().map(Vec::len).sum::<usize>() + stay[0].len())?;
        until_established(ways[1].0.server, stay[1].len())?;
        owner(scene, mode, before).map(drop)
    };
    let active = |agent: &Agent, expected: usize| {
        let what = format!("{expected} active ends of connections");
        agent.wait_until(PATIENCE, &what, |samples| samples.sum(ACTIVE, &[("namespace", NAMESPACE)]) == expected as f64)
    };
    let older = open(OLDER)?;
    exchange(&older, 555)?;
    let agent = start()?;
    let number = scale.of(100, 30);
    let mut all = open(number)?;
    exchange(&all, AT_FIRST)?;
    exchange(&older, AT_FIRST_OLDER)?;
    let (opened, olders) = (u64::from(number), u64::from(OLDER));
    let mut done = Done {
        ways,
        carried: [opened * AT_FIRST + olders * AT_FIRST_OLDER; 2],
        opened,
        missed: Vec::new(),
        unknown: 0,
    };
    all.iter_mut().zip(older).for_each(|(all, older)| all.extend(older));
    active(&agent, ends_of(&all))?;
    expect(&agent, &done, "while all live")?;
    agent.kill9()?;

    exchange(&all, UNSEEN)?;
    let more =
        |done: &mut Done<'_>, bytes: [u64; 2]| done.carried.iter_mut().zip(bytes).for_each(|(all, more)| *all += more);
    more(&mut done, [UNSEEN * (opened + olders); 2]);
    done.missed = vec![AT_FIRST + UNSEEN, AT_FIRST_OLDER + UNSEEN];
    let (stay, go): (Vec<Vec<u64>>, Vec<Vec<u64>>) =
        all.iter().map(|of| of.iter().partition::<Vec<u64>, _>(|one| **one % STAY == 0)).unzip();
    // Those that stay keep the memory of most others.
    done.unknown = ends_of(&go) / 4;
    miss(&go, &stay)?;
    let agent = start()?;
    active(&agent, ends_of(&stay)).context("after ends were missed")?;
    expect(&agent, &done, "after ends were missed")?;

    exchange(&stay, 13)?;
    close(&stay)?;
    more(&mut done, [0, 1].map(|way| 13 * stay[way].len() as u64));
    expect(&agent, &done, "those that stayed")?;
    active(&agent, 0)?;

    // Of these none stays, and the kernel is told to give back what it does not need.
    let last = open(number)?;
    exchange(&last, AT_FIRST)?;
    more(&mut done, [opened * AT_FIRST; 2]);
    done.opened += opened;
    done.missed.push(AT_FIRST);
    done.unknown += ends_of(&last);
    active(&agent, ends_of(&last))?;
    agent.kill9()?;
    miss(&last, &[vec![], vec![]])?;
    // Calls that fail get the memory of connections that were.
    let nobody = SocketAddr::new(ways[1].0.address, CLOSED);
    let dial = Fault::Dial { to: nobody, times: CALLS, again: 1, give_up_ms: Some(10_000) };
    let refused = Answer::Dialed { errors: vec![libc::ECONNREFUSED; CALLS.into()] };
    ensure!(ways[1].0.client.run(&Command::Fault(dial))? == refused, "somebody listens at {nobody}");
    give_back_memory()?;
    let agent = start()?;
    let samples = active(&agent, 0).context("after their memory was given back")?;
    expect(&agent, &done, "after their memory was given back")?;
    // Where few are open, their memory is most often still there.
    ensure!(unknown(&samples) > 0 || scale == Scale::Guest, "no memory was used again: nothing was seen of this case");
    agent.terminate()
}

/// Lets the kernel give back the memory of sockets of which none is left (Documentation/ABI/testing/sysfs-kernel-slab), where it has
/// that file.
fn give_back_memory() -> Result<()> {
    let path = "/sys/kernel/slab/TCPv6/shrink";
    if std::fs::exists(path)? {
        std::fs::write(path, "1").with_context(|| format!("writing {path}"))?;
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::is_sum_of;

    #[test]
    fn what_is_not_known_is_told_to_the_byte() {
        let each = [3_012, 88];
        assert!(is_sum_of(0, 0, &each) && is_sum_of(2 * 3_012 + 88, 3, &each));
        assert!(!is_sum_of(1, 0, &each), "nothing may be lacking without being counted");
        assert!(!is_sum_of(0, 1, &each), "nothing may be counted and shown");
        assert!(!is_sum_of(2 * 3_012 + 87, 3, &each) && !is_sum_of(2 * 3_012, 3, &each));
    }
}
