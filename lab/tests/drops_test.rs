//! Known numbers of packets are dropped, for known reasons, and the agent's counters are exactly the kernel's own. Needs
//! root, a kernel with drop reasons (5.17) and `nft`.

mod support;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use observer_lab::actor::{Command, Pace, Sizes};
use observer_lab::agent::Agent;
use observer_lab::cases::Stage;
use observer_lab::netns::NetNs;
use observer_lab::pod::{Container, Pod, PodSpec};
use observer_lab::samples::Samples;
use observer_lab::truth::Truth;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use support::nft;

const PATIENCE: Duration = Duration::from_secs(20);
/// A port that nobody listens at.
const CLOSED: u16 = 9;

/// Drops by container, direction and reason.
type Drops = BTreeMap<(String, String, String), u64>;

/// Two pods, and what the agent showed at the beginning.
struct Scene {
    stage: Stage,
    agent: Option<Agent>,
    client: Pod,
    server: Pod,
    before: Samples,
}

impl Scene {
    fn new() -> Result<Self> {
        let stage = Stage::new(None)?;
        let agent = stage.agent()?;
        let client = Pod::create(&stage.node, PodSpec::new("cases", "client", &["c"]))?;
        let server = Pod::create(&stage.node, PodSpec::new("cases", "server", &["s"]))?;
        client.introduce(&server)?;
        stage.announce(&[&client, &server])?;
        let known = |samples: &Samples| {
            ["client", "server"].iter().all(|name| {
                samples.select("observer_pod_info", &[("pod", name)]).any(|sample| !sample.label("pod_ip").is_empty())
            })
        };
        ensure!(known(&agent.scrape_until(PATIENCE, known)?), "the pods are not there; the log:\n{}", agent.log());
        // The kernel's own announcements of group memberships are over by then.
        std::thread::sleep(Duration::from_millis(400));
        let state = [("probe", "drops"), ("state", "ok")];
        let before = settled(&agent)?;
        ensure!(before.get("observer_agent_probe_state", &state) == Some(1.0), "no probe; the log:\n{}", agent.log());
        Ok(Self { stage, agent: Some(agent), client, server, before })
    }

    fn agent(&self) -> &Agent {
        self.agent.as_ref().unwrap()
    }

    fn c(&self) -> &Container {
        self.client.container("c").unwrap()
    }

    fn s(&self) -> &Container {
        self.server.container("s").unwrap()
    }

    /// The server pod's addresses.
    fn addresses(&self) -> [IpAddr; 2] {
        [self.server.ipv4().into(), self.server.ipv6().into()]
    }

    /// What was dropped for both pods since the last look; nothing may have been lost on the way.
    fn look(&mut self) -> Result<[Drops; 2]> {
        let after = settled(self.agent())?;
        for cause in ["table_full", "interrupted", "no_owner"] {
            let lost = |samples: &Samples| samples.get("observer_agent_unattributed_drops_total", &[("cause", cause)]);
            ensure!(lost(&after) == lost(&self.before), "{cause}: {:?}, before {:?}", lost(&after), lost(&self.before));
        }
        let found = ["client", "server"].map(|pod| difference(&drops(&self.before, pod), &drops(&after, pod)));
        self.before = after;
        Ok(found)
    }

    fn truths(&self) -> Result<[Truth; 2]> {
        Ok([Truth::of_process(self.c().pid())?, Truth::of_process(self.s().pid())?])
    }
}

fn drops(samples: &Samples, pod: &str) -> Drops {
    let of = |name: &str| name.to_owned();
    samples
        .select("observer_packet_drops_total", &[("pod", pod), ("namespace", "cases")])
        .map(|s| ((of(s.label("container")), of(s.label("direction")), of(s.label("reason"))), s.value as u64))
        .collect()
}

fn difference(before: &Drops, after: &Drops) -> Drops {
    let more = |(key, now): (&(String, String, String), &u64)| {
        let added = now.checked_sub(before.get(key).copied().unwrap_or(0)).expect("a counter went back");
        (added > 0).then(|| (key.clone(), added))
    };
    after.iter().filter_map(more).collect()
}

fn these(drops: &[(&str, &str, &str, u64)]) -> Drops {
    let of = |name: &str| name.to_owned();
    drops.iter().map(|(container, way, reason, n)| ((of(container), of(way), of(reason)), *n)).collect()
}

/// Scrapes until drops of the test's pods stand still. What processes of the node drop meanwhile goes on for ever.
fn settled(agent: &Agent) -> Result<Samples> {
    const STILL: u32 = 4;
    agent.scrape_until_still(PATIENCE, STILL, |samples| {
        samples.sum("observer_packet_drops_total", &[("namespace", "cases")])
    })
}

fn send(to: SocketAddr, datagrams: usize) -> Command {
    Command::UdpSend { to, sizes: Sizes::List(vec![500; datagrams]), connected: false, pace: Pace::Free }
}

/// The sum of all of nft's own packet counters in a namespace.
fn nft_packets(netns: &NetNs) -> Result<u64> {
    let rules = nft(netns, "list ruleset")?;
    let mut words = rules.split_whitespace();
    let mut sum = 0;
    while words.by_ref().any(|word| word == "packets") {
        sum += words.next().context("nft has no number after `packets`")?.parse::<u64>()?;
    }
    Ok(sum)
}

#[test]
fn a_full_buffer_drops_for_the_container_that_holds_it() {
    let mut scene = Scene::new().unwrap();
    for (address, protocol) in scene.addresses().into_iter().zip(["Udp", "Udp6"]) {
        let to = scene.s().hold_udp(SocketAddr::new(address, 0), 4096).unwrap();
        let [_, before] = scene.truths().unwrap();
        scene.c().traffic(&send(to, 300)).unwrap();
        let [client, server] = scene.look().unwrap();
        let truth = &scene.truths().unwrap()[1] - &before;
        let errors = u64::try_from(truth.protocol(&format!("{protocol}.RcvbufErrors"))).unwrap();
        assert!((1..300).contains(&errors), "{errors}");
        assert_eq!(server, these(&[("s", "receive", "SOCKET_RCVBUFF", errors)]));
        assert_eq!(client, these(&[]));
    }
}

#[test]
fn over_loopback_too() {
    let mut scene = Scene::new().unwrap();
    for (address, protocol) in
        [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)].into_iter().zip(["Udp", "Udp6"])
    {
        let to = scene.s().hold_udp(SocketAddr::new(address, 0), 4096).unwrap();
        let [_, before] = scene.truths().unwrap();
        scene.s().traffic(&send(to, 200)).unwrap();
        scene.s().traffic(&send(SocketAddr::new(address, CLOSED), 11)).unwrap();
        let [_, server] = scene.look().unwrap();
        let truth = &scene.truths().unwrap()[1] - &before;
        let count = |name: &str| u64::try_from(truth.protocol(&format!("{protocol}.{name}"))).unwrap();
        assert_eq!(count("NoPorts"), 11);
        let full = ("s", "receive", "SOCKET_RCVBUFF", count("RcvbufErrors"));
        assert_eq!(server, these(&[full, ("", "receive", "NO_SOCKET", 11)]));
    }
}

#[test]
fn nobody_listens() {
    const DATAGRAMS: u64 = 23;
    const CONNECTIONS: u64 = 5;
    let mut scene = Scene::new().unwrap();
    for (address, protocol) in scene.addresses().into_iter().zip(["Udp", "Udp6"]) {
        let to = SocketAddr::new(address, CLOSED);
        let [_, before] = scene.truths().unwrap();
        scene.c().traffic(&send(to, DATAGRAMS as usize)).unwrap();
        for _ in 0..CONNECTIONS {
            scene.c().open_tcp(to).unwrap_err();
        }
        let [client, server] = scene.look().unwrap();
        let truth = &scene.truths().unwrap()[1] - &before;
        let no_ports = u64::try_from(truth.protocol(&format!("{protocol}.NoPorts"))).unwrap();
        let resets = u64::try_from(truth.protocol("Tcp.OutRsts")).unwrap();
        assert_eq!((no_ports, resets), (DATAGRAMS, CONNECTIONS));
        assert_eq!(server, these(&[("", "receive", "NO_SOCKET", no_ports + resets)]));
        assert_eq!(client, these(&[]));
    }
}

#[test]
fn the_pods_own_rules() {
    let mut scene = Scene::new().unwrap();
    for (netns, hook) in [(scene.client.netns(), "output"), (scene.server.netns(), "input")] {
        nft(netns, "add table inet t").unwrap();
        nft(netns, &format!("add chain inet t c {{ type filter hook {hook} priority 0; }}")).unwrap();
        let port = if hook == "output" { 1000 } else { 2000 };
        nft(netns, &format!("add rule inet t c udp dport {port} counter drop")).unwrap();
    }
    for (address, round) in scene.addresses().into_iter().zip(1..) {
        for _ in 0..7 {
            let error = scene.c().traffic(&send(SocketAddr::new(address, 1000), 1)).unwrap_err();
            assert!(format!("{error:#}").contains("not permitted"), "{error:#}");
        }
        scene.c().traffic(&send(SocketAddr::new(address, 2000), 13)).unwrap();
        let [client, server] = scene.look().unwrap();
        assert_eq!(nft_packets(scene.client.netns()).unwrap(), 7 * round);
        assert_eq!(nft_packets(scene.server.netns()).unwrap(), 13 * round);
        assert_eq!(client, these(&[("c", "transmit", "NETFILTER_DROP", 7)]));
        assert_eq!(server, these(&[("", "receive", "NETFILTER_DROP", 13)]));
    }
}

/// Where `br_netfilter` lets packets on a bridge pass the rules of IP, it takes them from their sockets first.
fn without_bridge_netfilter() -> Result<()> {
    for family in ["ip", "ip6"] {
        let path = format!("/proc/sys/net/bridge/bridge-nf-call-{family}tables");
        if std::fs::exists(&path)? {
            std::fs::write(&path, "0").with_context(|| format!("writing {path}"))?;
        }
    }
    Ok(())
}

#[test]
fn the_rules_of_the_node() {
    let mut scene = Scene::new().unwrap();
    let node = scene.stage.node.netns();
    node.run(without_bridge_netfilter).unwrap();
    nft(node, "add table bridge t").unwrap();
    nft(node, "add chain bridge t c { type filter hook forward priority 0; }").unwrap();
    nft(node, "add rule bridge t c udp dport 3000 counter drop").unwrap();
    nft(node, "add table inet t").unwrap();
    nft(node, "add chain inet t c { type filter hook input priority 0; }").unwrap();
    nft(node, "add rule inet t c udp dport 4000 counter drop").unwrap();
    let gateways = [observer_lab::node::ADDRESS_V4.0.into(), observer_lab::node::ADDRESS_V6.0.into()];
    for ((address, gateway), round) in scene.addresses().into_iter().zip::<[IpAddr; 2]>(gateways).zip(1..) {
        scene.c().traffic(&send(SocketAddr::new(address, 3000), 9)).unwrap();
        scene.c().traffic(&send(SocketAddr::new(gateway, 4000), 4)).unwrap();
        let [client, server] = scene.look().unwrap();
        assert_eq!(nft_packets(scene.stage.node.netns()).unwrap(), 13 * round);
        // On the bridge the packet is still its socket's; in the node's stack only its address tells of the pod.
        let transmit = [("c", "transmit", "NETFILTER_DROP", 9), ("", "transmit", "NETFILTER_DROP", 4)];
        assert_eq!(client, these(&transmit));
        assert_eq!(server, these(&[("", "receive", "NETFILTER_DROP", 9)]));
    }
}

#[test]
fn a_wrong_checksum() {
    let mut scene = Scene::new().unwrap();
    for (address, protocol) in scene.addresses().into_iter().zip(["Udp", "Udp6"]) {
        let to = scene.s().serve_udp(SocketAddr::new(address, 0), false).unwrap();
        let [_, before] = scene.truths().unwrap();
        scene.client.netns().run(|| send_broken(to, 6)).unwrap();
        let [client, server] = scene.look().unwrap();
        let truth = &scene.truths().unwrap()[1] - &before;
        assert_eq!(truth.protocol(&format!("{protocol}.InCsumErrors")), 6);
        let received: u64 = server
            .iter()
            .filter(|((_, way, reason), _)| way == "receive" && reason == "UDP_CSUM")
            .map(|(_, n)| n)
            .sum();
        assert_eq!((received, server.len()), (6, 1), "{server:?}");
        assert_eq!(client, these(&[]));
    }
}

/// Sends datagrams whose checksum is wrong.
fn send_broken(to: SocketAddr, datagrams: u32) -> Result<()> {
    let socket = Socket::new(Domain::for_address(to), Type::RAW, Some(Protocol::UDP)).context("making a raw socket")?;
    let mut datagram = vec![0u8; 20];
    datagram[0..2].copy_from_slice(&4000u16.to_be_bytes());
    datagram[2..4].copy_from_slice(&to.port().to_be_bytes());
    datagram[4..6].copy_from_slice(&20u16.to_be_bytes());
    let mut destination = to;
    destination.set_port(0);
    for wrong in 1..=datagrams {
        // Of datagrams that differ in nothing else at most one can be right, and that has another number.
        datagram[6..8].copy_from_slice(&u16::try_from(wrong)?.to_be_bytes());
        socket.send_to(&datagram, &SockAddr::from(destination)).context("sending a raw datagram")?;
    }
    Ok(())
}

#[test]
fn drops_go_on_counting_while_the_agent_is_killed() {
    let mut scene = Scene::new().unwrap();
    let to = SocketAddr::new(scene.server.ipv4().into(), CLOSED);
    let [_, before] = scene.truths().unwrap();
    let first = scene.before.clone();
    let job = scene.c().start(vec![send(to, 20)], Duration::from_millis(2), None).unwrap();
    for _ in 0..3 {
        std::thread::sleep(Duration::from_millis(300));
        let agent = scene.agent.take().unwrap();
        let address = agent.address();
        let shown = drops(&agent.scrape().unwrap(), "server");
        agent.kill9().unwrap();
        std::thread::sleep(Duration::from_millis(200));
        let agent = scene.stage.agent_at(Some(address)).unwrap();
        // No counter goes back, whatever the new agent knows by now.
        let now = agent.scrape_until(PATIENCE, |samples| !drops(samples, "server").is_empty()).unwrap();
        difference(&shown, &drops(&now, "server"));
        scene.agent = Some(agent);
    }
    let sent = scene.c().stop(job).unwrap();
    assert_eq!(sent.failures, 0);
    scene.before = first;
    let [_, server] = scene.look().unwrap();
    let truth = &scene.truths().unwrap()[1] - &before;
    let no_ports = u64::try_from(truth.protocol("Udp.NoPorts")).unwrap();
    assert_eq!(no_ports, sent.sent_datagrams);
    assert_eq!(server, these(&[("", "receive", "NO_SOCKET", no_ports)]));
}

#[test]
fn series_go_with_their_pod() {
    let scene = Scene::new().unwrap();
    let to = SocketAddr::new(scene.server.ipv4().into(), CLOSED);
    scene.c().traffic(&send(to, 3)).unwrap();
    let Scene { stage, agent, client, server, .. } = scene;
    let agent = agent.unwrap();
    assert!(!drops(&settled(&agent).unwrap(), "server").is_empty());
    drop(server);
    let gone = |samples: &Samples| drops(samples, "server").is_empty();
    assert!(gone(&agent.scrape_until(PATIENCE, gone).unwrap()));
    drop((client, stage));
}
