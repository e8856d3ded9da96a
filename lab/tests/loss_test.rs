//! A network that loses packets: what arrives is counted to the byte, what is lost is shown as dropped, and what is sent again as
//! often as the kernel says. Needs root, a kernel with drop reasons (5.17) and `nft`.

mod support;

use std::net::{IpAddr, SocketAddr};

use observer_lab::actor::{Command, Fault, ServeMode};
use observer_lab::agent::Agent;
use observer_lab::cases::count::{Count, Counted};
use observer_lab::cases::drops::settled as drops_settled;
use observer_lab::cases::seen::{Seen, until_all_seen};
use observer_lab::cases::{Stage, settled, wait_for_pods};
use observer_lab::pod::{Container, Pod, PodSpec};
use observer_lab::samples::Samples;
use observer_lab::truth::Truth;
use support::{nft, nft_counted};

/// One in so many packets is lost on the way to each of the pods.
const LOST: u32 = 9;
/// Writes, each of which is echoed before the next.
const WRITES: u64 = 12;
const BYTES: u64 = 100_000;
/// The link header that an interface counts with each packet.
const ETHERNET: u64 = 14;
const PODS: [&str; 2] = ["client", "server"];

struct Scene {
    agent: Agent,
    pods: [Pod; 2],
    // The node goes last.
    _stage: Stage,
}

impl Scene {
    fn new(mode: &[&str]) -> Self {
        let stage = Stage::new(None).unwrap();
        let agent = stage.agent_with(None, mode).unwrap();
        let pods = PODS.map(|name| Pod::create(&stage.node, PodSpec::new("cases", name, &["app"])).unwrap());
        pods[0].introduce(&pods[1]).unwrap();
        stage.announce(&[&pods[0], &pods[1]]).unwrap();
        wait_for_pods(&agent, &PODS).unwrap();
        for pod in &pods {
            let rule = format!("meta l4proto tcp numgen inc mod {LOST} == 0 counter drop");
            nft(pod.netns(), "add table inet t").unwrap();
            nft(pod.netns(), "add chain inet t c { type filter hook input priority 0; }").unwrap();
            nft(pod.netns(), &format!("add rule inet t c {rule}")).unwrap();
        }
        Self { agent, pods, _stage: stage }
    }

    fn app(&self, pod: usize) -> &Container {
        self.pods[pod].container("app").unwrap()
    }

    fn truths(&self) -> [Truth; 2] {
        [0, 1].map(|pod| Truth::of_process(self.app(pod).pid()).unwrap())
    }

    fn lost(&self) -> [Count; 2] {
        self.pods.each_ref().map(|pod| nft_counted(pod.netns()).unwrap())
    }

    fn addresses(&self) -> [IpAddr; 2] {
        [self.pods[1].ipv4().into(), self.pods[1].ipv6().into()]
    }

    /// What is shown, what the kernel says, and what was lost, when nothing comes any more: also no segment that is sent again because
    /// its confirmation was lost.
    fn quiet(&self) -> (Samples, [Truth; 2], [Count; 2]) {
        loop {
            let truths = self.truths();
            drops_settled(&self.agent).unwrap();
            let samples = settled(&self.agent).unwrap();
            if self.truths() == truths {
                return (samples, truths, self.lost());
            }
        }
    }

    /// Writes on a new connection, and waits until everything is confirmed that was written. It stays open: so no segment comes after
    /// its end, and all that arrive meet its socket.
    fn exchange(&self, address: IpAddr) {
        let to = self.app(1).serve_tcp(SocketAddr::new(address, 0), ServeMode::Echo).unwrap();
        let connection = self.app(0).open_tcp(to).unwrap().0;
        for _ in 0..WRITES {
            self.app(0).traffic(&Command::TcpWrite { connection, bytes: BYTES, reply_bytes: BYTES }).unwrap();
        }
        self.app(0).run(&Command::Fault(Fault::Confirmed { connection })).unwrap();
    }
}

/// What was added between two scrapes, of a pod.
fn added(name: &str, labels: &[(&str, &str)], [before, after]: [&Samples; 2]) -> u64 {
    (after.sum(name, labels) - before.sum(name, labels)) as u64
}

/// By packets: each that arrives, those that were sent again too.
#[test]
fn what_arrives_is_counted_and_what_is_lost_is_dropped_and_sent_again() {
    let scene = Scene::new(&[]);
    for address in scene.addresses() {
        let round = || {
            let (before, truths, lost) = scene.quiet();
            scene.exchange(address);
            let (after, now, lost_now) = scene.quiet();
            let counted = Counted { before: &before, after: &after };
            let (mut again, mut shown) = (0, 0);
            let (mut dropped, mut shown_dropped) = ([0; 2], [0; 2]);
            for (at, pod) in PODS.into_iter().enumerate() {
                let truth = &now[at] - &truths[at];
                let lost = Count {
                    bytes: lost_now[at].bytes - lost[at].bytes,
                    packets: lost_now[at].packets - lost[at].packets,
                };
                assert!(lost.packets > 0, "nothing was lost on the way to the {pod} at {address}");
                let came = truth.without_multicast("eth0").received(ETHERNET);
                let received = counted.pod(pod, "receive");
                assert_eq!(received + lost, came, "the {pod} at {address}, of which {lost:?} were lost");
                let both = [&before, &after];
                let labels = [("pod", pod), ("direction", "receive"), ("reason", "NETFILTER_DROP")];
                dropped[at] = lost.packets;
                shown_dropped[at] = added("observer_packet_drops_total", &labels, both);
                again += u64::try_from(truth.protocol("Tcp.RetransSegs")).unwrap();
                shown += added("observer_tcp_retransmitted_segments_total", &[("pod", pod)], both);
            }
            assert!(again > 0, "nothing was sent again to {address}");
            let [here, there] = shown_dropped;
            Seen::compare([shown, here, there], [again, dropped[0], dropped[1]])
        };
        until_all_seen(address, round).unwrap();
    }
}

/// By sockets: each byte of payload once, however often it was sent.
#[test]
fn what_is_sent_again_is_no_payload() {
    let scene = Scene::new(&["--traffic.accounting", "sockets"]);
    for address in scene.addresses() {
        let (before, truths, _) = scene.quiet();
        scene.exchange(address);
        let (after, now, _) = scene.quiet();
        let again: i64 = [0, 1].map(|at| (&now[at] - &truths[at]).protocol("Tcp.RetransSegs")).iter().sum();
        assert!(again > 0, "nothing was sent again to {address}");
        for pod in PODS {
            for direction in ["transmit", "receive"] {
                let labels = [("pod", pod), ("direction", direction)];
                let carried = added("observer_tcp_payload_bytes_total", &labels, [&before, &after]);
                assert_eq!(carried, WRITES * BYTES, "{direction} of the {pod} at {address}");
            }
        }
    }
}
