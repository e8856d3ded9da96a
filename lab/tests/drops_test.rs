//! Known numbers of packets are dropped, for known reasons, and the agent's counters are exactly the kernel's own. Needs
//! root, a kernel with drop reasons (5.17) and `nft`.

mod support;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use observer_lab::actor::{Answer, Command, Fault};
use observer_lab::cases::drops::{CLOSED, Drops, Scene, difference, drops_of, send, settled, these};
use observer_lab::cases::seen::{Seen, until_all_seen};
use observer_lab::samples::Samples;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use support::{nft, nft_counted};

const PATIENCE: Duration = Duration::from_secs(20);

fn scene() -> Scene {
    Scene::new().unwrap().expect("a kernel that gives reasons of drops")
}

/// What the pod that sends lets not out, and what the other lets not in: datagrams, and the SYNs of connections, which are
/// sent again.
#[test]
fn the_pods_own_rules() {
    const DIALS: u16 = 3;
    const AGAIN: u8 = 1;
    let syns = u64::from(DIALS) * (1 + u64::from(AGAIN));
    let mut scene = scene();
    for (netns, hook) in [(scene.client.netns(), "output"), (scene.server.netns(), "input")] {
        nft(netns, "add table inet t").unwrap();
        nft(netns, &format!("add chain inet t c {{ type filter hook {hook} priority 0; }}")).unwrap();
        let port = if hook == "output" { 1000 } else { 2000 };
        nft(netns, &format!("add rule inet t c meta l4proto {{ tcp, udp }} th dport {port} counter drop")).unwrap();
    }
    let mut counted = [0, 0];
    // What is shown and what the rules have dropped since the last look, both pods'; nothing else is shown.
    let mut dropped = |scene: &mut Scene| {
        let found = scene.look().unwrap();
        let now = [&scene.client, &scene.server].map(|pod| nft_counted(pod.netns()).unwrap().packets);
        let ruled = [now[0] - counted[0], now[1] - counted[1]];
        counted = now;
        let shown = found.each_ref().map(|drops| drops.values().sum());
        let [out, into]: [u64; 2] = shown;
        let of = |count, drop| if count > 0 { these(&[drop]) } else { Drops::new() };
        assert_eq!(
            found,
            [of(out, ("c", "transmit", "NETFILTER_DROP", out)), of(into, ("", "receive", "NETFILTER_DROP", into))]
        );
        (shown, ruled)
    };
    for address in scene.addresses() {
        let [out, into] = [1000, 2000].map(|port| SocketAddr::new(address, port));
        for _ in 0..7 {
            let error = scene.c().unwrap().traffic(&send(out, 1)).unwrap_err();
            assert!(format!("{error:#}").contains("not permitted"), "{error:#}");
        }
        scene.c().unwrap().traffic(&send(into, 13)).unwrap();
        assert_eq!(dropped(&mut scene), ([7, 13], [7, 13]));
        for to in [out, into] {
            // A timer sends a SYN again.
            let round = || {
                let dial = Fault::Dial { to, times: DIALS, again: AGAIN, give_up_ms: None };
                let errors = vec![libc::ETIMEDOUT; DIALS.into()];
                assert_eq!(scene.c()?.run(&Command::Fault(dial))?, Answer::Dialed { errors });
                // One that could not even leave is tried once more than was asked for.
                let (shown, ruled) = dropped(&mut scene);
                let [left, came] = ruled;
                let (found, none) = if to == out { (left, came) } else { (came, left) };
                assert!(found >= syns && none == 0, "{left} SYNs were not let out and {came} not in, {syns} were sent");
                Seen::compare(shown, ruled)
            };
            until_all_seen(address, round).unwrap();
        }
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
    let mut scene = scene();
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
        scene.c().unwrap().traffic(&send(SocketAddr::new(address, 3000), 9)).unwrap();
        scene.c().unwrap().traffic(&send(SocketAddr::new(gateway, 4000), 4)).unwrap();
        let [client, server] = scene.look().unwrap();
        assert_eq!(nft_counted(scene.stage.node.netns()).unwrap().packets, 13 * round);
        // On the bridge the packet is still its socket's; in the node's stack only its address tells of the pod.
        let transmit = [("c", "transmit", "NETFILTER_DROP", 9), ("", "transmit", "NETFILTER_DROP", 4)];
        assert_eq!(client, these(&transmit));
        assert_eq!(server, these(&[("", "receive", "NETFILTER_DROP", 9)]));
    }
}

#[test]
fn a_wrong_checksum() {
    let mut scene = scene();
    for (address, protocol) in scene.addresses().into_iter().zip(["Udp", "Udp6"]) {
        let to = scene.s().unwrap().serve_udp(SocketAddr::new(address, 0), false).unwrap();
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
    let mut scene = scene();
    let to = SocketAddr::new(scene.server.ipv4().into(), CLOSED);
    let [_, before] = scene.truths().unwrap();
    let first = scene.before.clone();
    let job = scene.c().unwrap().start(vec![send(to, 20)], Duration::from_millis(2), None).unwrap();
    for _ in 0..3 {
        std::thread::sleep(Duration::from_millis(300));
        let agent = scene.agent.take().unwrap();
        let address = agent.address();
        let shown = drops_of(&agent.scrape().unwrap(), "server");
        agent.kill9().unwrap();
        std::thread::sleep(Duration::from_millis(200));
        let agent = scene.stage.agent_at(Some(address)).unwrap();
        // No counter goes back, whatever the new agent knows by now.
        let now = agent.scrape_until(PATIENCE, |samples| !drops_of(samples, "server").is_empty()).unwrap();
        difference(&shown, &drops_of(&now, "server")).unwrap();
        scene.agent = Some(agent);
    }
    let sent = scene.c().unwrap().stop(job).unwrap();
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
    let scene = scene();
    let to = SocketAddr::new(scene.server.ipv4().into(), CLOSED);
    scene.c().unwrap().traffic(&send(to, 3)).unwrap();
    let Scene { stage, agent, client, server, .. } = scene;
    let agent = agent.unwrap();
    assert!(!drops_of(&settled(&agent).unwrap(), "server").is_empty());
    drop(server);
    let gone = |samples: &Samples| drops_of(samples, "server").is_empty();
    assert!(gone(&agent.scrape_until(PATIENCE, gone).unwrap()));
    drop((client, stage));
}
