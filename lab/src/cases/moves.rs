//! Addresses that change hands: every byte stays with who had the address when it was sent.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use aya::maps::{Array, Map, MapData};

use super::PATIENCE;
use super::count::{Count, Counted, DIRECTIONS, check_udp, sent_again, tcp_payload};
use super::restart::Monotonic;
use super::stage::{Scale, Stage, settled, wait_for_pods};
use crate::actor::{Command, Pace, ServeMode, Sizes};
use crate::agent::Agent;
use crate::holdings::Holdings;
use crate::pod::{Container, Pod, PodSpec};
use crate::samples::Samples;
use crate::truth::Truth;

/// Where the peer serves datagrams, and where connections.
const PORTS: (u16, u16) = (7_000, 7_001);
/// The size of a datagram.
const SIZE: u32 = 100;
/// An address that a pod has without an interface's saying so, and the network that is sent to the pod.
const UNKNOWN: Ipv4Addr = Ipv4Addr::new(10, 99, 7, 1);
const NETWORK: (Ipv4Addr, u8) = (Ipv4Addr::new(10, 99, 7, 0), 24);

/// A pod that calls, and what it has called.
struct Scene {
    stage: Stage,
    agent: Agent,
    here: Pod,
    watch: Monotonic,
}

impl Scene {
    fn new(edges: Option<u32>) -> Result<Self> {
        let stage = Stage::new(edges)?;
        let agent = stage.agent()?;
        let here = Pod::create(&stage.node, PodSpec::new("cases", "here", &["client"]))?;
        Ok(Self { stage, agent, here, watch: Monotonic::default() })
    }

    fn client(&self) -> Result<&Container> {
        self.here.container("client")
    }

    /// Makes a peer that serves, and tells the agent who it is.
    fn peer(&self, name: &str, address: Option<Ipv4Addr>) -> Result<Pod> {
        let spec = PodSpec { address, ..PodSpec::new("cases", name, &["server"]) };
        let pod = Pod::create(&self.stage.node, spec)?;
        self.here.introduce(&pod)?;
        let any = IpAddr::from([0, 0, 0, 0]);
        // Of one address, because the answers to others would have this one, too.
        pod.container("server")?.serve_udp(SocketAddr::new(pod.ipv4().into(), PORTS.0), true)?;
        pod.container("server")?.serve_tcp(SocketAddr::new(any, PORTS.1), ServeMode::Echo)?;
        self.stage.announce(&[&self.here, &pod])?;
        Ok(pod)
    }

    /// Sends datagrams and waits for each to come back.
    fn datagrams(&self, to: Ipv4Addr, count: u32, connected: bool) -> Result<()> {
        let sent = self.client()?.traffic(&Command::UdpSend {
            to: (to, PORTS.0).into(),
            sizes: Sizes::List(vec![SIZE; count as usize]),
            connected,
            pace: Pace::Echoed { window: 1 },
        })?;
        ensure!(sent.received_datagrams == u64::from(count), "{count} datagrams to {to}: {sent:?}");
        Ok(())
    }

    /// Waits until the agent knows a pod, without a scrape, which would decide what is not decided yet.
    fn wait_known(&self, name: &str, uid: &str) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let page = self.agent.fetch("/")?;
            if page.contains(name) && !page.contains(uid) {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "the agent does not know {name}; its log:\n{}", self.agent.log());
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }

    /// Waits until the agent shows this pod and not an earlier one of its name. It has had no traffic yet. `see` sees
    /// every scrape.
    fn wait_again(&self, name: &str, pod: &Pod, mut see: impl FnMut(&Samples)) -> Result<()> {
        let labels = [("pod", name), ("uid", pod.uid())];
        let deadline = Instant::now() + PATIENCE;
        loop {
            let samples = self.agent.scrape()?;
            see(&samples);
            if samples.select("observer_pod_info", &labels).next().is_some() {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "the agent does not know {name} again; its log:\n{}", self.agent.log());
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }

    fn scrape(&mut self) -> Result<Samples> {
        let samples = settled(&self.agent)?;
        self.watch.see(&samples)?;
        Ok(samples)
    }

    /// Kills the agent and starts another one.
    fn restart(mut self) -> Result<Self> {
        let address = self.agent.address();
        self.agent.kill9()?;
        self.agent = self.stage.agent_at(Some(address))?;
        Ok(self)
    }
}

/// What the calling container has counted with a peer, in both directions.
fn with(samples: &Samples, peer: &[(&str, &str)], protocol: &str) -> [Count; 2] {
    let nothing = Samples::default();
    DIRECTIONS.map(|direction| {
        let mine = [("pod", "here"), ("container", "client"), ("protocol", protocol), ("direction", direction)];
        Counted { before: &nothing, after: samples }.of(&[&mine[..], peer].concat())
    })
}

/// Exactly these datagrams, in both directions.
fn check_datagrams(samples: &Samples, peer: &[(&str, &str)], count: u32) -> Result<()> {
    for (found, direction) in with(samples, peer, "udp").into_iter().zip(DIRECTIONS) {
        let bytes = u64::from(count) * u64::from(SIZE);
        check_udp(&format!("{direction} with {peer:?}"), found, count.into(), bytes, UNKNOWN.into())?;
    }
    Ok(())
}

/// A pod goes and another one has its address at once: each has what was sent to it, and a connection that began with
/// the old one stays with it.
pub fn address_moves(scale: Scale, edges: Option<u32>) -> Result<()> {
    moves(scale, edges, |_| Ok(()))
}

/// The same, when other sockets have taken the lines that led to the connection's slot.
pub fn address_moves_uncached(scale: Scale, edges: Option<u32>) -> Result<()> {
    moves(scale, edges, |stage| {
        let path = stage.pinned("maps/SOCKETS");
        let map = MapData::from_pin(&path).with_context(|| format!("opening {}", path.display()))?;
        let mut lines: Array<_, u64> = Map::Array(map).try_into()?;
        (0..lines.len()).try_for_each(|line| lines.set(line, 0, 0).context("clearing a line"))
    })
}

/// `forget` is called before the old connection speaks for the last time.
fn moves(scale: Scale, edges: Option<u32>, forget: impl Fn(&Stage) -> Result<()>) -> Result<()> {
    let mut scene = Scene::new(edges)?;
    let mut old = scene.peer("old", None)?;
    let address = old.ipv4();
    wait_for_pods(&scene.agent, &["here", "old"])?;
    let many = scale.of(100, 20);
    scene.datagrams(address, many, false)?;
    let (connection, _) = scene.client()?.open_tcp((address, PORTS.1).into())?;
    scene.client()?.traffic(&Command::TcpWrite { connection, bytes: 5_000, reply_bytes: 5_000 })?;
    check_datagrams(&scene.scrape()?, &[("peer_pod", "old")], many)?;
    scene = scene.restart()?;
    check_datagrams(&scene.scrape()?, &[("peer_pod", "old")], many)?;
    scene.datagrams(address, 10, true)?;
    let old_truth = truth(old.container("server")?)?;
    // Without a word to who is connected with it.
    old.unplug()?;
    drop(old);
    let new = scene.peer("new", Some(address))?;
    ensure!(new.ipv4() == address, "{} is not {address}", new.ipv4());
    scene.datagrams(address, 30, false)?;
    forget(&scene.stage)?;
    // Nobody is at the other end any more: the new pod says so.
    scene.client()?.traffic(&Command::TcpWrite { connection, bytes: 1_000, reply_bytes: 0 })?;
    scene.wait_known("new", new.uid())?;
    scene.datagrams(address, 50, false)?;
    scene.datagrams(address, 20, true)?;
    let (connections, request) = (10, 300);
    scene.client()?.traffic(&Command::TcpRequests {
        to: (address, PORTS.1).into(),
        connections,
        requests: 1,
        request_bytes: request,
        response_bytes: request,
        parallel: 1,
    })?;
    for _ in 0..2 {
        let samples = scene.scrape()?;
        check_datagrams(&samples, &[("peer_pod", "old")], many + 10)?;
        check_datagrams(&samples, &[("peer_pod", "new")], 100)?;
        let truths = [truth(scene.client()?)?, old_truth.clone(), truth(new.container("server")?)?];
        let again = sent_again(truths.iter());
        for (peer, connections, payload) in
            [("old", 1, [6_000, 5_000]), ("new", u64::from(connections), [u64::from(connections * request); 2])]
        {
            for (count, payload) in with(&samples, &[("peer_pod", peer)], "tcp").into_iter().zip(payload) {
                let found = without_resets(count, connections, peer);
                let right = found.iter().any(|found| is_payload(*found, payload, again));
                ensure!(right, "{peer}: {count:?} hold {found:?} bytes, not {payload}, {again} segments again");
            }
        }
        scene = scene.restart()?;
    }
    scene.agent.terminate()
}

/// The counters of the namespace of a pod of this case, which begin with it.
fn truth(container: &Container) -> Result<Truth> {
    Truth::of_process(container.pid())
}

/// Whether what TCP packets hold is this payload: more of it only where the kernel sent some segments `again`, and no more than
/// those hold.
fn is_payload(found: i128, payload: u64, again: i64) -> bool {
    let more = found - i128::from(payload);
    more == 0 || (1..=i128::from(again) * 1_500).contains(&more)
}

/// The payload of TCP packets. A reset has no timestamps: 12 bytes less, if there was one.
fn without_resets(count: Count, connections: u64, peer: &str) -> Vec<i128> {
    let payload = tcp_payload(count, connections, UNKNOWN.into());
    if peer == "old" { vec![payload, payload + 12] } else { vec![payload] }
}

/// A pod is made again with its name and its address: the caller's series go on, and so do the pod's own, for whoever
/// adds up increases as Prometheus does.
pub fn same_name(scale: Scale, edges: Option<u32>) -> Result<()> {
    let mut scene = Scene::new(edges)?;
    let mut pod = scene.peer("again", None)?;
    wait_for_pods(&scene.agent, &["here", "again"])?;
    let address = pod.ipv4();
    let own = [("pod", "again"), ("container", "server"), ("protocol", "udp")];
    let mut increase = Increase::default();
    increase.see(&settled(&scene.agent)?, &own);
    let rounds = scale.of(5, 2);
    for round in 0..rounds {
        scene.datagrams(address, 40, round % 2 == 0)?;
        let samples = scene.agent.scrape_until(PATIENCE, |samples| {
            with(samples, &[("peer_pod", "again")], "udp")[1].packets == u64::from(40 * (round + 1))
        })?;
        scene.watch_caller(&samples)?;
        increase.see(&samples, &own);
        check_datagrams(&samples, &[("peer_pod", "again")], 40 * (round + 1))?;
        if round == 1 {
            scene = scene.restart()?;
        }
        drop(pod);
        pod = scene.peer("again", Some(address))?;
        scene.wait_again("again", &pod, |samples| increase.see(samples, &own))?;
    }
    let samples = settled(&scene.agent)?;
    increase.see(&samples, &own);
    check_datagrams(&samples, &[("peer_pod", "again")], 40 * rounds)?;
    let expected = f64::from(40 * rounds * (SIZE + 28) * 2);
    ensure!(
        increase.total == expected,
        "the pod's own series grew by {}, not by {expected}: {:#?}; the agent's log:\n{}",
        increase.total,
        increase.seen,
        scene.agent.log()
    );
    scene.agent.terminate()
}

impl Scene {
    /// No counter of the caller goes back. Those of a pod that is made again may begin anew.
    fn watch_caller(&mut self, samples: &Samples) -> Result<()> {
        self.watch.see(&samples.of_pod("here"))
    }
}

/// Sums up what counters have grown by, as `increase()` of Prometheus does: one that is lower than before has begun anew,
/// and so has one that was not there.
#[derive(Default)]
struct Increase {
    last: BTreeMap<String, f64>,
    total: f64,
    /// Every change, for the error.
    seen: Vec<BTreeMap<String, f64>>,
}

impl Increase {
    fn see(&mut self, samples: &Samples, labels: &[(&str, &str)]) {
        let mut now = BTreeMap::new();
        for sample in samples.select("observer_traffic_bytes_total", labels) {
            let series = format!("{:?}", sample.labels);
            let before = self.last.get(&series).copied().unwrap_or(0.0);
            self.total += if sample.value >= before { sample.value - before } else { sample.value };
            now.insert(series, sample.value);
        }
        if self.last != now {
            self.seen.push(now.clone());
        }
        self.last = now;
    }
}

/// An address that nobody knows and that somebody tells of later: what was counted stays where it is, and what follows,
/// on the same connection, goes to the name.
pub fn learned_late(_: Scale, edges: Option<u32>) -> Result<()> {
    let mut scene = Scene::new(edges)?;
    let there = scene.peer("there", None)?;
    scene.here.route(NETWORK, &there)?;
    there.container("server")?.serve_udp((UNKNOWN, PORTS.0).into(), true)?;
    wait_for_pods(&scene.agent, &["here", "there"])?;
    let (connection, _) = scene.client()?.open_tcp((UNKNOWN, PORTS.1).into())?;
    let write = Command::TcpWrite { connection, bytes: 1_000, reply_bytes: 1_000 };
    scene.client()?.traffic(&write)?;
    scene.datagrams(UNKNOWN, 30, false)?;
    let (other, named) = ([("peer_kind", "other")], [("peer_pod", "there")]);
    check_datagrams(&scene.scrape()?, &other, 30)?;
    scene = scene.restart()?;
    check_datagrams(&scene.scrape()?, &other, 30)?;
    there.take_address(UNKNOWN)?;
    scene.stage.announce(&[&scene.here, &there])?;
    let (mut sent, mut written) = (30_u64, 1_000);
    let deadline = Instant::now() + 3 * PATIENCE;
    let known = loop {
        scene.datagrams(UNKNOWN, 1, false)?;
        scene.client()?.traffic(&write)?;
        (sent, written) = (sent + 1, written + 1_000);
        let samples = scene.scrape()?;
        // Both have left the old slots.
        if with(&samples, &named, "udp")[0].packets > 0 && with(&samples, &named, "tcp")[0].packets > 0 {
            break samples;
        }
        ensure!(Instant::now() < deadline, "{UNKNOWN} has no name; the agent's log:\n{}", scene.agent.log());
        std::thread::sleep(std::time::Duration::from_millis(200));
    };
    scene.datagrams(UNKNOWN, 50, true)?;
    scene.client()?.traffic(&write)?;
    scene = scene.restart()?;
    scene.client()?.traffic(&write)?;
    (sent, written) = (sent + 50, written + 2_000);
    let samples = scene.scrape()?;
    for protocol in ["udp", "tcp"] {
        let [then, now] = [&known, &samples].map(|samples| with(samples, &other, protocol));
        ensure!(now == then, "{protocol}: the old name still counts, {then:?} and then {now:?}");
    }
    let again = sent_again([truth(scene.client()?)?, truth(there.container("server")?)?].iter());
    // Each by itself: the name may have come after a datagram and before its echo.
    for (at, direction) in DIRECTIONS.into_iter().enumerate() {
        let both = |protocol| [&other[..], &named[..]].map(|peer| with(&samples, peer, protocol)[at]);
        let [old, new] = both("udp");
        for (what, count, datagrams) in
            [("the old name", old, old.packets), ("the name", new, new.packets), ("both", old + new, sent)]
        {
            let bytes = datagrams * u64::from(SIZE);
            check_udp(&format!("{direction} with {what}"), count, datagrams, bytes, UNKNOWN.into())?;
        }
        let [old, new] = both("tcp");
        let payload = tcp_payload(old, 1, UNKNOWN.into()) + tcp_payload(new, 0, UNKNOWN.into());
        ensure!(
            is_payload(payload, written, again),
            "{direction}: {old:?} and {new:?} hold {payload} bytes, not {written}, {again} segments again"
        );
    }
    scene.agent.terminate()
}

/// Pods come and go, each with the address of the one before: nothing is left of them but what their caller has counted.
pub fn churn(scale: Scale, edges: Option<u32>) -> Result<()> {
    let mut scene = Scene::new(edges)?;
    let first = scene.peer("churn", None)?;
    let address = first.ipv4();
    wait_for_pods(&scene.agent, &["here", "churn"])?;
    scene.datagrams(address, 1, false)?;
    drop(first);
    let used = |samples: &Samples| samples.sum("observer_agent_edges_used", &[]);
    let gone = |samples: &Samples| samples.select("observer_pod_info", &[("pod", "churn")]).next().is_none();
    let mut before = None;
    // Of what a scrape has written the allocator keeps up to 2 MiB, after one scrape more and after another less (`ALLOCATOR` is for
    // the rest): what it had most of before is what it may have again.
    let mut kept = 0;
    let (warm, pods) = (5, scale.of(100, 10));
    for round in 0..warm + pods {
        let pod = scene.peer("churn", Some(address))?;
        scene.wait_again("churn", &pod, |_| {})?;
        scene.datagrams(address, 3, round % 2 == 0)?;
        scene.watch_caller(&scene.agent.scrape()?)?;
        drop(pod);
        // Two pods a second and not a dozen: slots are given back in some tenths of a second, and the scrapes of this case
        // come faster than anybody's.
        std::thread::sleep(std::time::Duration::from_millis(400));
        if round < warm {
            kept = kept.max(Holdings::of(&scene.agent, scene.stage.bpffs())?.memory);
        }
        if round + 1 == warm {
            let samples = scene.agent.wait_until(PATIENCE, "the pod's end", gone)?;
            let holdings = Holdings::of(&scene.agent, scene.stage.bpffs())?;
            before = Some((used(&samples), Holdings { memory: holdings.memory.max(kept), ..holdings }));
        }
    }
    let (edges_used, holdings) = before.context("no round was run")?;
    let samples = scene.agent.scrape_until(PATIENCE, |samples| gone(samples) && used(samples) <= edges_used)?;
    check_datagrams(&samples, &[("peer_pod", "churn")], 1 + 3 * (warm + pods))?;
    ensure!(used(&samples) <= edges_used, "{} edges are used, {edges_used} were", used(&samples));
    let deadline = Instant::now() + PATIENCE;
    loop {
        let now = Holdings::of(&scene.agent, scene.stage.bpffs())?;
        let left = now.left_since(&holdings, pods);
        if left.is_empty() {
            return scene.agent.terminate();
        }
        ensure!(Instant::now() < deadline, "{pods} pods have left something: {}", left.join("; "));
        std::thread::sleep(std::time::Duration::from_millis(50));
        // What the allocator keeps changes with a scrape and not by itself.
        scene.agent.scrape()?;
    }
}
