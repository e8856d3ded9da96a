//! Pods whose packets meet no socket of the host, counted at the host's ends of their interfaces.

use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use aya::maps::{HashMap, Map, MapData};

use super::PATIENCE;
use super::count::{Counted, DIRECTIONS};
use super::restart::Monotonic;
use super::stage::{Scale, Stage, settled, wait_for_pods};
use crate::actor::{Command, Pace, ServeMode, Sizes};
use crate::agent::Agent;
use crate::guest::{Guest, Peer, Told};
use crate::pod::{Pod, PodSpec};
use crate::samples::Samples;
use crate::truth::Truth;

const GUEST: &str = "guest";
const PLAIN: &str = "plain";
/// Where the guest sends from, and where it answers.
const CLIENT_PORT: u16 = 50_001;
const SERVER_PORT: u16 = 7_777;
const ETHERNET: u64 = 14;

/// UDP both ways over IPv4 and IPv6, a TCP handshake and odd frames, with the agent killed in the middle; then the pod goes.
pub fn interface(scale: Scale, edges: Option<u32>) -> Result<()> {
    let stage = Stage::new(edges)?;
    // The agent looks for interfaces in its own network namespace: here it is on the lab's node.
    stage.node.netns().run(|| on_the_node(&stage, scale))
}

struct Scene<'a> {
    stage: &'a Stage,
    guest: Guest,
    plain: Pod,
    plain_pid: u32,
    guest_pid: u32,
}

fn on_the_node(stage: &Stage, scale: Scale) -> Result<()> {
    let mut agent = stage.agent_on_the_node(None, &[])?;
    let pod =
        Pod::create(&stage.node, PodSpec { runtime_class: "gvisor".into(), ..PodSpec::new("cases", GUEST, &["app"]) })?;
    let plain = Pod::create(&stage.node, PodSpec::new("cases", PLAIN, &["server"]))?;
    pod.introduce(&plain)?;
    let guest = Guest::take_over(&pod)?;
    stage.announce(&[&pod, &plain])?;
    wait_for_pods(&agent, &[GUEST, PLAIN])?;
    let guest_pid = pod.container("app")?.pid();
    let plain_pid = plain.container("server")?.pid();
    wait_attached(&agent, GUEST, "interface")?;
    wait_attached(&agent, PLAIN, "cgroup")?;
    stage.fill_table(&plain, "server")?;

    let mut scene = Scene { stage, guest, plain, plain_pid, guest_pid };
    let before = settled(&agent)?;
    let truths = scene.truths()?;
    let mut watch = Monotonic::default();
    for address in [IpAddr::from(scene.plain.ipv4()), scene.plain.ipv6().into()] {
        scene.ask_and_answer(address, scale.of(300, 100))?;
        scene.check(&agent, &before, &truths, &mut watch)?;
    }
    scene.roles(&agent)?;
    scene.odd_frames()?;
    scene.check(&agent, &before, &truths, &mut watch)?;

    // The agent is killed while datagrams are under way, and another one takes over.
    let server = scene.plain.container("server")?.serve_udp(SocketAddr::new(scene.plain.ipv4().into(), 0), true)?;
    let peer = scene.peer(server)?;
    let count = scale.of(20_000, 1_000);
    let address = agent.address();
    agent = std::thread::scope(|scope| -> Result<Agent> {
        let guest = &mut scene.guest;
        let load = scope.spawn(move || guest.ask(CLIENT_PORT, peer, (0..count).map(|n| 1 + n % 1_400)));
        std::thread::sleep(Duration::from_millis(50));
        agent.kill9()?;
        std::thread::sleep(Duration::from_millis(100));
        let agent = stage.agent_on_the_node(Some(address), &[])?;
        load.join().map_err(|_| anyhow::anyhow!("the guest panicked"))??;
        Ok(agent)
    })?;
    wait_for_pods(&agent, &[GUEST, PLAIN])?;
    wait_attached(&agent, GUEST, "interface")?;
    scene.check(&agent, &before, &truths, &mut watch)?;

    leave(scene, pod, &agent)?;
    uninstalled(stage, agent)
}

impl Scene<'_> {
    fn truths(&self) -> Result<[Truth; 2]> {
        Ok([Truth::of_process(self.guest_pid)?, Truth::of_process(self.plain_pid)?])
    }

    fn peer(&self, address: SocketAddr) -> Result<Peer> {
        Ok(Peer { address, mac: self.plain.mac().context("the plain pod has no interface")? })
    }

    /// Datagrams from the guest that come back, then datagrams to the guest that it sends back.
    fn ask_and_answer(&mut self, address: IpAddr, count: u32) -> Result<()> {
        let server = self.plain.container("server")?.serve_udp(SocketAddr::new(address, 0), true)?;
        let peer = self.peer(server)?;
        self.guest.ask(CLIENT_PORT, peer, (0..count as usize).map(|n| n * 7 % 1_400))?;
        let own = if address.is_ipv4() { self.guest_v4() } else { self.guest_v6() };
        let send = Command::UdpSend {
            to: SocketAddr::new(own, SERVER_PORT),
            sizes: Sizes::Random { count, min: 1, max: 1_400, seed: 5 },
            connected: true,
            pace: Pace::Echoed { window: 1 },
        };
        let (guest, plain) = (&mut self.guest, &self.plain);
        std::thread::scope(|scope| {
            let echo = scope.spawn(|| guest.echo(SERVER_PORT, count));
            plain.container("server")?.traffic(&send)?;
            echo.join().map_err(|_| anyhow::anyhow!("the guest panicked"))?
        })
    }

    fn guest_v4(&self) -> IpAddr {
        self.guest.addresses().0.into()
    }

    fn guest_v6(&self) -> IpAddr {
        self.guest.addresses().1.into()
    }

    /// Who called whom is seen from the ports and from the handshake.
    fn roles(&mut self, agent: &Agent) -> Result<()> {
        let listen = SocketAddr::new(self.plain.ipv4().into(), 0);
        let server = self.plain.container("server")?.serve_tcp(listen, ServeMode::Sink)?;
        let peer = self.peer(server)?;
        self.guest.knock(CLIENT_PORT, peer)?;
        if self.stage.has_small_table() {
            return Ok(());
        }
        let after = settled(agent)?;
        let port = server.port().to_string();
        let packets = |labels: &[(&str, &str)]| after.sum("observer_traffic_packets_total", labels);
        let tcp = [("pod", GUEST), ("protocol", "tcp"), ("role", "client"), ("port", port.as_str())];
        let both = DIRECTIONS.map(|direction| packets(&[&tcp[..], &[("direction", direction)]].concat()));
        ensure!(both == [2.0, 1.0], "a SYN, its answer and a reset were counted as {both:?}");
        let served = packets(&[("pod", GUEST), ("role", "server"), ("port", &SERVER_PORT.to_string())]);
        ensure!(served > 0.0, "no packet is counted for the guest as a server of port {SERVER_PORT}");
        let peers = packets(&[("pod", GUEST), ("protocol", "udp"), ("peer_kind", "pod"), ("peer_pod", PLAIN)]);
        let all = packets(&[("pod", GUEST), ("protocol", "udp")]);
        ensure!(peers == all, "{peers} of {all} packets name the other pod");
        let back = packets(&[("pod", PLAIN), ("peer_kind", "pod"), ("peer_pod", GUEST)]);
        ensure!(back > 0.0, "the other pod does not name the guest");
        let opened = after.select("observer_tcp_connections_opened_total", &[("pod", GUEST)]).count();
        ensure!(opened == 0, "connections are not to be known at an interface, and {opened} series tell of some");
        Ok(())
    }

    /// Filling is not counted, nor what is no IP packet; a tagged frame is, without its tag, and a fragment by itself.
    fn odd_frames(&mut self) -> Result<()> {
        let silent = SocketAddr::new(self.plain.ipv4().into(), 0);
        let peer = self.peer(self.plain.container("server")?.serve_udp(silent, false)?)?;
        for _ in 0..3 {
            self.guest.send_padded(CLIENT_PORT, peer)?;
            self.guest.send_tagged(CLIENT_PORT, peer)?;
            self.guest.send_fragment(peer)?;
            self.guest.send_other(peer)?;
        }
        Ok(())
    }

    /// To the byte and the packet: what the guest sent and what was sent to it, all of it under no container's name; and the
    /// other pod, at its cgroup, once.
    fn check(&self, agent: &Agent, before: &Samples, truths: &[Truth; 2], watch: &mut Monotonic) -> Result<()> {
        let expected = [self.guest.sent, self.guest.received];
        let whole = |samples: &Samples| {
            let counted = Counted { before, after: samples };
            DIRECTIONS.map(|direction| {
                let labels = [("pod", GUEST), ("container", ""), ("direction", direction)];
                let all = counted.of(&labels);
                // The kernel's announcements of group memberships reach everybody on the bridge; the guest sends no ICMP.
                let icmp = counted.of(&[&labels[..], &[("protocol", "icmp")]].concat());
                Told { packets: all.packets - icmp.packets, bytes: all.bytes - icmp.bytes }
            })
        };
        let after = agent.scrape_until(PATIENCE, |samples| whole(samples) == expected)?;
        watch.see(&after)?;
        ensure!(whole(&after) == expected, "sent and received were {expected:?}, counted {:?}", whole(&after));
        let counted = Counted { before, after: &after };
        for direction in DIRECTIONS {
            let unnamed = counted.of(&[("pod", GUEST), ("container", ""), ("direction", direction)]);
            let all = counted.pod(GUEST, direction);
            ensure!(all == unnamed, "some of {direction} has a container's name: {all:?}, without {unnamed:?}");
        }
        // What the guest did not see came to no socket there, and would be seen at the interface.
        let now = self.truths()?;
        let eth0 = (&now[0] - &truths[0]).without_multicast("eth0");
        ensure!(
            eth0.received(ETHERNET).packets >= expected[1].packets,
            "the interface received {:?}, the guest {:?}",
            eth0.received(ETHERNET),
            expected[1]
        );
        // The same datagrams at the other pod: once.
        let udp = |direction| counted.of(&[("pod", PLAIN), ("protocol", "udp"), ("direction", direction)]);
        let plain = DIRECTIONS.map(|direction| udp(direction).packets);
        let datagrams = |now: &Truth| -> Result<[u64; 2]> {
            let protocols = now - &truths[1];
            let both = |name| protocols.protocol(&format!("Udp.{name}")) + protocols.protocol(&format!("Udp6.{name}"));
            Ok([both("OutDatagrams").try_into()?, both("InDatagrams").try_into()?])
        };
        let mut truth = datagrams(&now[1])?;
        // The kernel counts one as received when it is read, and a server that does not answer reads when it has its turn.
        let deadline = Instant::now() + PATIENCE;
        while truth != plain && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
            truth = datagrams(&Truth::of_process(self.plain_pid)?)?;
        }
        ensure!(plain == truth, "the other pod's datagrams were {truth:?}, counted {plain:?}");
        let lost = after.sum("observer_agent_unattributed_packets_total", &[]);
        ensure!(lost == 0.0, "{lost} packets are not attributed to any pod");
        self.stage.check_overflow(&after)
    }
}

fn wait_attached(agent: &Agent, pod: &str, attached: &str) -> Result<()> {
    let is = |samples: &Samples| {
        samples.select("observer_sandbox_info", &[("pod", pod), ("attached", attached)]).next().is_some()
    };
    let samples = agent.scrape_until(PATIENCE, is)?;
    ensure!(is(&samples), "{pod} is not attached at its {attached}; the agent's log:\n{}", agent.log());
    Ok(())
}

/// The pod goes: no link, no entry and no series is left of it.
fn leave(scene: Scene<'_>, pod: Pod, agent: &Agent) -> Result<()> {
    let stage = scene.stage;
    let links = stage.pinned("interfaces");
    if !super::kernel_older_than(6, 6) {
        let count = entries(&links)?;
        ensure!(count == 2, "{count} links are pinned in {}, not one for each direction", links.display());
    }
    ensure!(interfaces(stage)?.len() == 1, "not one interface alone is remembered: {:?}", interfaces(stage)?);
    let Scene { plain, guest, .. } = scene;
    drop((guest, pod, plain));
    stage.announce(&[])?;
    // Slots are given back when their series were shown for the last time.
    let shown = |samples: &Samples| {
        [GUEST, PLAIN].map(|pod| samples.select("observer_traffic_bytes_total", &[("pod", pod)]).count())
    };
    let samples = agent.scrape_until(PATIENCE, |samples| shown(samples) == [0, 0])?;
    ensure!(shown(&samples) == [0, 0], "{:?} series of pods that are gone are shown", shown(&samples));
    let deadline = Instant::now() + PATIENCE;
    while entries(&links)? > 0 || !interfaces(stage)?.is_empty() {
        ensure!(Instant::now() < deadline, "links or entries of interfaces are left");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// What the agent leaves behind goes with `observer uninstall`, while the interface stays.
fn uninstalled(stage: &Stage, agent: Agent) -> Result<()> {
    let pod = Pod::create(
        &stage.node,
        PodSpec { runtime_class: "kata-qemu".into(), ..PodSpec::new("cases", GUEST, &["app"]) },
    )?;
    stage.announce(&[&pod])?;
    wait_attached(&agent, GUEST, "interface")?;
    let index = interfaces(stage)?.into_iter().next().context("no interface is remembered")?;
    agent.terminate()?;
    // Told otherwise, it is counted at its cgroup, and the other way round: at one place at a time.
    let cgroup = pod.cgroup().unified().context("this machine has no cgroup v2 tree")?;
    let id = std::fs::metadata(&cgroup).with_context(|| format!("asking for the id of {}", cgroup.display()))?.ino();
    let pinned = |direction| stage.pinned("links").join(format!("{id}-{direction}")).exists();
    let at_cgroup = || ["ingress", "egress"].map(pinned);
    let agent = stage.agent_on_the_node(None, &["--traffic.interface-handlers", "vm"])?;
    wait_attached(&agent, GUEST, "cgroup")?;
    until_gone(index)?;
    let deadline = Instant::now() + PATIENCE;
    while at_cgroup() != [true, true] {
        ensure!(Instant::now() < deadline, "no links are at the cgroup of a pod that is counted there");
        std::thread::sleep(Duration::from_millis(20));
    }
    agent.terminate()?;
    let agent = stage.agent_on_the_node(None, &[])?;
    wait_attached(&agent, GUEST, "interface")?;
    ensure!(at_cgroup() == [false, false], "links are left at the cgroup of a pod that is counted at its interface");
    agent.terminate()?;
    ensure!(programs(index)? == 2, "{} programs are at the interface of a pod while no agent runs", programs(index)?);
    crate::agent::uninstall_in(&crate::agent::find_binary()?, stage.bpffs(), Some(stage.node.netns()))?;
    until_gone(index)
}

/// Waits until no program is at an interface. The kernel lets go of a link a moment after its last name is gone.
fn until_gone(index: u32) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while programs(index)? > 0 {
        ensure!(Instant::now() < deadline, "{} programs are left at the interface of a pod", programs(index)?);
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Programs of the agent at an interface of this thread's namespace, as the kernel tells it.
fn programs(index: u32) -> Result<usize> {
    observer::kernel::interface::attached_at(index).context("asking which programs are at an interface")
}

fn entries(directory: &Path) -> Result<usize> {
    Ok(std::fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))?.count())
}

/// Interfaces in the pinned map.
fn interfaces(stage: &Stage) -> Result<Vec<u32>> {
    let path = stage.pinned("maps/INTERFACES");
    let map = MapData::from_pin(&path).with_context(|| format!("opening {}", path.display()))?;
    let map: HashMap<_, u32, u64> = HashMap::try_from(Map::HashMap(map))?;
    Ok(map.keys().collect::<Result<_, _>>()?)
}
