//! What containers ask and are answered is what the agent shows, answer by answer. Needs root, `dnsmasq` and `ip`.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::process::{Child, Command as Process, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use observer_lab::actor::{Command, DnsAnswers, DnsFault, DnsQuestion, DnsWay, Pace, Sizes};
use observer_lab::agent::Agent;
use observer_lab::cases::dns::{Counts, PORT, Scene, add, ask, check_durations, question, shown};
use observer_lab::pod::{Container, Pod};
use observer_lab::samples::{Samples, buckets};
use rustix::process::{Pid, Signal, kill_process};

const PATIENCE: Duration = Duration::from_secs(20);
/// Addresses of the world outside (RFC 5737, RFC 3849).
const OUTSIDE: [IpAddr; 3] = [
    IpAddr::V4(Ipv4Addr::new(203, 0, 113, 7)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7)),
    IpAddr::V4(Ipv4Addr::new(203, 0, 113, 8)),
];

fn scene() -> Scene {
    Scene::new(None, &[]).unwrap()
}

/// dnsmasq in a container.
struct Resolver(Child);

impl Drop for Resolver {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Resolver {
    /// Starts it where a container is, and waits until it answers.
    fn start(pod: &Pod, container: &Container) -> Result<Self> {
        // Sockets belong to the cgroup that they are made in.
        let groups: Vec<String> = container
            .cgroup()
            .directories()
            .map(|directory| format!("echo $$ > {}/cgroup.procs", directory.display()))
            .collect();
        let script = format!("{} && exec dnsmasq \"$@\"", groups.join(" && "));
        let arguments = [
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--pid-file",
            "--user=root",
            "--no-resolv",
            "--no-hosts",
            "--log-facility=-",
            "--local=/test/",
            "--host-record=host.test,203.0.113.7,2001:db8::7",
            // 198-18-0-1.test, and so on.
            "--synth-domain=test,198.18.0.0/16",
            "--host-record=second.test,203.0.113.8",
            "--cname=www.test,host.test",
            "--txt-record=text.test,some text",
            "--mx-host=mail.test,host.test",
            "--srv-host=_http._tcp.test,host.test,80",
            "--ptr-record=7.113.0.203.in-addr.arpa,host.test",
        ];
        let mut child = pod.netns().run(|| {
            let mut command = Process::new("sh");
            command.args(["-c", &script, "sh"]).args(arguments).stdin(Stdio::null()).stderr(Stdio::null());
            command.spawn().context("starting dnsmasq (package dnsmasq-base)")
        })?;
        let deadline = Instant::now() + PATIENCE;
        // It listens at TCP after UDP.
        while pod.netns().run(|| Ok(std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, PORT)).is_err()))? {
            ensure!(child.try_wait()?.is_none(), "dnsmasq (package dnsmasq-base) has ended");
            ensure!(Instant::now() < deadline, "dnsmasq does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(Self(child))
    }
}

/// [`ask`] in batches, with a scrape after each, which reads what has come. A batch finds room in the kernel's buffer of
/// 1 MiB even when the agent is given no time to read meanwhile: with a connection for each round and with questions in two
/// pieces it is some 1,500 packets, which take about 330 bytes each.
fn ask_in_batches(
    agent: &Agent,
    who: &Container,
    to: SocketAddr,
    way: DnsWay,
    questions: &[DnsQuestion],
    rounds: u32,
) -> Result<Vec<DnsAnswers>> {
    const BATCH: u32 = 25;
    let batch = |begin| {
        let answers = ask(who, to, way, questions, BATCH.min(rounds - begin))?;
        agent.scrape()?;
        Ok(answers)
    };
    (0..rounds).step_by(BATCH as usize).map(batch).collect()
}

#[test]
fn every_answer_is_counted_by_type_and_outcome() {
    const ROUNDS: u32 = 125;
    let scene = scene();
    let _resolver = Resolver::start(&scene.server, scene.s().unwrap()).unwrap();
    let questions = [
        question("www.test", 1),
        question("WWW.Test", 28),
        question("host.test", 1),
        question("text.test", 16),
        question("mail.test", 15),
        question("_http._tcp.test", 33),
        question("7.113.0.203.in-addr.arpa", 12),
        question("nobody.test", 1),
        question("nobody.test", 28),
        question("elsewhere.example", 1),
        question("host.test", 65),
        question("host.test", 99),
    ];
    let ways = [
        DnsWay::Udp { connected: true },
        DnsWay::Udp { connected: false },
        DnsWay::Tcp { split: false },
        DnsWay::Tcp { split: true },
    ];
    let (mut client, mut app) = (Counts::new(), Counts::new());
    let inside = scene.app().unwrap();
    let locals = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    let ask = |who, to, way, counts: &mut Counts| {
        let batches = ask_in_batches(scene.agent().unwrap(), who, to, way, &questions, ROUNDS).unwrap();
        batches.iter().for_each(|answers| add(counts, answers));
    };
    for way in ways {
        for to in scene.addresses() {
            ask(scene.c().unwrap(), to, way, &mut client);
        }
        for local in locals {
            ask(inside, SocketAddr::new(local, PORT), way, &mut app);
        }
    }
    let total = u64::from(ROUNDS) * questions.len() as u64 * 8;
    assert_eq!((client.values().sum::<u64>(), app.values().sum::<u64>()), (total, total), "12,000 each were answered");
    for outcome in ["NOERROR", "NXDOMAIN", "REFUSED"] {
        assert!(client.keys().any(|(_, rcode)| rcode == outcome), "the resolver never says {outcome}: {client:?}");
    }
    let samples = scene.agent().unwrap().scrape().unwrap();
    scene.check_nothing_lost(&samples).unwrap();
    assert_eq!(shown(&samples, "c").unwrap(), client);
    assert_eq!(shown(&samples, "app").unwrap(), app);
    assert_eq!(shown(&samples, "s").unwrap(), Counts::new(), "the resolver itself was answered nothing");
    check_durations(scene.agent().unwrap(), "c", &client).unwrap();
    check_durations(scene.agent().unwrap(), "app", &app).unwrap();
    assert_eq!(samples.sum("observer_dns_malformed_total", &[]), 0.0);

    // Series go with their pod.
    let Scene { agent, client, .. } = scene;
    let agent = agent.unwrap();
    drop(client);
    let gone = |samples: &Samples| shown(samples, "c").unwrap().is_empty();
    assert!(gone(&agent.scrape_until(PATIENCE, gone).unwrap()));
}

/// What a resolver says over TCP and is no message is counted, and what comes after it is read as if it had not been.
#[test]
fn what_is_no_answer_over_tcp_does_no_harm() {
    const ROUNDS: u32 = 7;
    let scene = scene();
    let (server, app) = (scene.s().unwrap(), scene.app().unwrap());
    let questions = [question("host.test", 1), question("host.test", 28)];
    let each = u64::from(ROUNDS) * 2;
    let mut wanted = Counts::new();
    let mut malformed = 0;
    let faults = [
        (DnsFault::Short, 2),
        (DnsFault::Rcode(0), 0),
        (DnsFault::Loop, 2),
        (DnsFault::Rcode(2), 0),
        (DnsFault::Empty, 2),
        (DnsFault::NoQuestion(5), 0),
        // The message has no end: the connection has. There is one question on each.
        (DnsFault::Cut, 0),
        (DnsFault::Rcode(3), 0),
    ];
    for ((fault, bad), last) in faults.into_iter().zip(1..) {
        let listen = SocketAddr::new(Ipv4Addr::new(127, 0, 1, last).into(), PORT);
        server.run(&Command::DnsServe { listen, fault }).unwrap();
        let asked = if fault == DnsFault::Cut { &questions[..1] } else { &questions[..] };
        for split in [false, true] {
            let answers = ask(app, listen, DnsWay::Tcp { split }, asked, ROUNDS).unwrap();
            let answered: u64 = answers.answers.iter().map(|(_, _, count)| count).sum();
            let seen = (answered, answers.malformed, answers.unanswered);
            match fault {
                DnsFault::Cut => assert_eq!(seen, (0, 0, u64::from(ROUNDS))),
                // The client looks at the header alone.
                DnsFault::Short | DnsFault::Empty => assert_eq!(seen, (0, each, 0), "{fault:?}"),
                _ => assert_eq!(seen, (each, 0, 0), "{fault:?}"),
            }
            if bad == 0 {
                add(&mut wanted, &answers);
            }
            malformed += u64::from(ROUNDS * bad);
            // After each, not at the end alone.
            let samples = scene.agent().unwrap().scrape().unwrap();
            assert_eq!(shown(&samples, "app").unwrap(), wanted, "{fault:?}");
            assert_eq!(
                samples.sum("observer_dns_malformed_total", &[("container", "app")]),
                malformed as f64,
                "{fault:?}"
            );
        }
    }
    let samples = scene.agent().unwrap().scrape().unwrap();
    assert_eq!(wanted.values().sum::<u64>(), 8 * each);
    check_durations(scene.agent().unwrap(), "app", &wanted).unwrap();
    scene.check_nothing_lost(&samples).unwrap();
}

/// A resolver that answers late: no answer is said to be faster than it was, nor all of them slower than the client's whole
/// conversation.
#[test]
fn late_answers_are_timed() {
    const ROUNDS: u32 = 3;
    const DELAY_MS: u16 = 60;
    const FAMILY: &str = "observer_dns_duration_seconds";
    let scene = scene();
    let server = scene.s().unwrap();
    let questions = [question("host.test", 1), question("host.test", 28)];
    let ways = [DnsWay::Udp { connected: true }, DnsWay::Udp { connected: false }, DnsWay::Tcp { split: true }];
    let labels = [("container", "c"), ("rcode", "NOERROR")];
    let delay = f64::from(DELAY_MS) / 1e3;
    let (mut count, mut sum) = (0, 0.0);
    for listen in scene.addresses() {
        server.run(&Command::DnsServe { listen, fault: DnsFault::Late(DELAY_MS) }).unwrap();
        for way in ways {
            let begin = Instant::now();
            let answers = ask(scene.c().unwrap(), listen, way, &questions, ROUNDS).unwrap();
            let whole = begin.elapsed().as_secs_f64();
            let answered: u64 =
                answers.answers.iter().map(|(_, rcode, count)| if *rcode == 0 { *count } else { 0 }).sum();
            assert_eq!(answered, u64::from(ROUNDS) * 2, "{answers:?}");
            count += answered;
            let text = scene.agent().unwrap().fetch("/metrics").unwrap();
            let samples = Samples::parse(&text).unwrap();
            let now = samples.sum(&format!("{FAMILY}_sum"), &labels);
            let took = now - sum;
            assert!(took >= answered as f64 * delay, "{way:?} at {listen}: {answered} answers in {took} s");
            assert!(took <= whole, "{way:?} at {listen}: {answered} answers in {took} s of {whole} s");
            sum = now;
            let buckets = buckets(&text, FAMILY, &labels).unwrap();
            for (bound, found) in &buckets {
                assert!(*bound >= delay || *found == 0, "{way:?} at {listen}: {found} answers within {bound} s");
            }
            assert_eq!(buckets.last(), Some(&(f64::INFINITY, count)), "{way:?} at {listen}");
            assert_eq!(samples.sum(&format!("{FAMILY}_count"), &labels), count as f64);
        }
    }
    scene.check_nothing_lost(&scene.agent().unwrap().scrape().unwrap()).unwrap();
}

#[test]
fn what_was_not_handed_over_is_counted() {
    let scene = scene();
    let _resolver = Resolver::start(&scene.server, scene.s().unwrap()).unwrap();
    let [to, _] = scene.addresses();
    let agent = Pid::from_raw(i32::try_from(scene.agent().unwrap().pid()).unwrap()).unwrap();
    kill_process(agent, Signal::STOP).unwrap();
    let outcome = ask(scene.c().unwrap(), to, DnsWay::Udp { connected: true }, &[question("host.test", 1)], 6_000);
    kill_process(agent, Signal::CONT).unwrap();
    let received: u64 = outcome.unwrap().answers.iter().map(|(_, _, count)| count).sum();
    assert_eq!(received, 6_000);
    let samples = scene.agent().unwrap().scrape().unwrap();
    let counted = samples.sum("observer_dns_responses_total", &[("container", "c")]);
    let lost = |direction| {
        let labels = [("direction", direction), ("reason", "buffer_full")];
        samples.sum("observer_agent_dns_lost_packets_total", &labels)
    };
    assert!(lost("receive") > 0.0, "6,000 answers and their questions found room in the buffer");
    assert_eq!(counted + lost("receive"), received as f64);
    assert_eq!(samples.sum("observer_agent_dns_lost_packets_total", &[]), lost("receive") + lost("transmit"));
}

/// What was counted is there after the agent was killed, and what came while none ran waited for the next one.
#[test]
fn answers_outlive_the_agent() {
    const FAMILY: &str = "observer_dns_duration_seconds";
    let mut scene = scene();
    let _resolver = Resolver::start(&scene.server, scene.s().unwrap()).unwrap();
    let [to, _] = scene.addresses();
    let ask = |scene: &Scene, rounds| {
        let questions = [question("host.test", 1), question("nobody.test", 28)];
        let answers = ask(scene.c().unwrap(), to, DnsWay::Udp { connected: true }, &questions, rounds).unwrap();
        answers.answers.iter().map(|(_, _, count)| count).sum::<u64>() as f64
    };
    let counted = |samples: &Samples| samples.sum("observer_dns_responses_total", &[("container", "c")]);
    let before = ask(&scene, 100);
    assert_eq!(counted(&scene.agent().unwrap().scrape().unwrap()), before);
    scene.agent.take().unwrap().kill9().unwrap();
    let all = before + ask(&scene, 50);
    scene.agent = Some(scene.stage.agent().unwrap());
    let samples = scene.agent().unwrap().scrape_until(PATIENCE, |samples| counted(samples) == all).unwrap();
    assert_eq!(counted(&samples), all);
    assert_eq!(samples.sum(&format!("{FAMILY}_count"), &[("container", "c")]), all);
    scene.check_nothing_lost(&samples).unwrap();
}

#[test]
fn external_peers_have_the_name_that_was_asked_for() {
    let mut scene = scene();
    let _resolver = Resolver::start(&scene.server, scene.s().unwrap()).unwrap();
    let [v4, v6, by_tcp] = OUTSIDE.map(|address| echo(&scene, address).unwrap());
    let [resolver, _] = scene.addresses();
    let call = |to: SocketAddr| {
        let pace = Pace::Echoed { window: 1 };
        scene.c().unwrap().traffic(&Command::UdpSend { to, sizes: Sizes::List(vec![100; 10]), connected: true, pace })
    };
    // Nobody has asked for this address before it is called.
    call(v4).unwrap();
    let before = scene.agent().unwrap().scrape().unwrap();
    assert_eq!(names(&before), [("", v4, 10)].map(series).into());
    let questions = [question("host.test", 1), question("WWW.test", 1), question("WWW.test", 28)];
    ask(scene.c().unwrap(), resolver, DnsWay::Udp { connected: true }, &questions, 1).unwrap();
    ask(scene.c().unwrap(), resolver, DnsWay::Tcp { split: true }, &[question("Second.test", 1)], 1).unwrap();
    for to in [v4, v6, by_tcp] {
        call(to).unwrap();
    }
    // A peer keeps what it was shown with; a new one has the name that was asked for, in lower case.
    let wanted: Named = [("", v4, 20), ("www.test", v6, 10), ("second.test", by_tcp, 10)].map(series).into();
    let after = scene.agent().unwrap().scrape().unwrap();
    assert_eq!(names(&after), wanted);
    assert_eq!(after.sum("observer_agent_peer_names", &[]), 2.0);

    // Nor does the next agent call it otherwise.
    let agent = scene.agent.take().unwrap();
    agent.kill9().unwrap();
    let agent = scene.stage.agent().unwrap();
    let again = |samples: &Samples| !names(samples).is_empty();
    let samples = agent.scrape_until(PATIENCE, again).unwrap();
    assert_eq!(names(&samples), wanted);
    let questions = [question("host.test", 1), question("host.test", 28)];
    ask(scene.c().unwrap(), resolver, DnsWay::Udp { connected: true }, &questions, 1).unwrap();
    let samples = agent.scrape().unwrap();
    assert_eq!(names(&samples), wanted);
}

/// An echo server at an address of the world outside, which pods reach by way of the node.
fn echo(scene: &Scene, address: IpAddr) -> Result<SocketAddr> {
    let length = if address.is_ipv4() { 32 } else { 128 };
    let node = scene.stage.node.netns();
    node.run(|| ip(&format!("address add {address}/{length} dev lo nodad")))?;
    let socket = node.run(|| UdpSocket::bind(SocketAddr::new(address, 0)).context("listening on the node"))?;
    let listens = socket.local_addr()?;
    std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..length], from);
        }
    });
    Ok(listens)
}

type Named = BTreeMap<(String, String), u64>;

fn series((name, to, packets): (&str, SocketAddr, u64)) -> ((String, String), u64) {
    ((name.to_owned(), to.port().to_string()), packets)
}

/// Packets that the client has sent to external peers, by name and port.
fn names(samples: &Samples) -> Named {
    let labels = [("container", "c"), ("peer_kind", "external"), ("direction", "transmit"), ("protocol", "udp")];
    let found = samples.select("observer_traffic_packets_total", &labels);
    found
        .map(|sample| {
            let labels = (sample.label("peer_name").to_owned(), sample.label("port").to_owned());
            (labels, sample.value as u64)
        })
        .collect()
}

/// Each of 2,000 peers is asked for by its name and called once, with a budget of 100 for names and for peers.
#[test]
fn names_beyond_the_budget_are_folded() {
    const PEERS: u32 = 2_000;
    const BUDGET: u64 = 100;
    /// Addresses of which a container's names are remembered.
    const REMEMBERED: f64 = 512.0;
    /// Fewer.
    const AT_ONCE: usize = 400;
    const NETWORK: (Ipv4Addr, u8) = (Ipv4Addr::new(198, 18, 0, 0), 16);
    const PORT: u16 = 9_999;
    let budgets = ["--traffic.peer-names", "500", "--traffic.peer-names-per-container", "100"];
    let scene = Scene::new(None, &[&budgets[..], &["--traffic.peers-per-container", "100"]].concat()).unwrap();
    let _resolver = Resolver::start(&scene.server, scene.s().unwrap()).unwrap();
    scene.client.introduce(&scene.server).unwrap();
    scene.client.route(NETWORK, &scene.server).unwrap();
    scene.s().unwrap().hold_udp((Ipv4Addr::UNSPECIFIED, PORT).into(), 1 << 20).unwrap();
    let [resolver, _] = scene.addresses();
    let first = u32::from(NETWORK.0) + 1;
    let addresses: Vec<Ipv4Addr> = (first..first + PEERS).map(Ipv4Addr::from).collect();
    for some in addresses.chunks(AT_ONCE) {
        let name = |address: &Ipv4Addr| format!("{}.test", address.to_string().replace('.', "-"));
        let questions: Vec<_> = some.iter().map(|address| question(&name(address), 1)).collect();
        let answers = ask(scene.c().unwrap(), resolver, DnsWay::Udp { connected: true }, &questions, 1).unwrap();
        assert_eq!(answers.answers, [(1, 0, some.len() as u64)], "{answers:?}");
        let call = |address: &Ipv4Addr| Command::UdpSend {
            to: (*address, PORT).into(),
            sizes: Sizes::List(vec![100]),
            connected: false,
            pace: Pace::Free,
        };
        let job = scene.c().unwrap().start(some.iter().map(call).collect(), Duration::from_millis(1), Some(1)).unwrap();
        let sent = scene.c().unwrap().join(job).unwrap();
        assert_eq!((sent.failures, sent.sent_datagrams), (0, some.len() as u64));
        scene.agent().unwrap().scrape().unwrap();
    }
    let samples = scene.agent().unwrap().scrape().unwrap();
    assert_eq!(samples.get("observer_agent_peer_names", &[]), Some(BUDGET as f64));
    let folded = samples.get("observer_agent_peer_names_folded_total", &[]);
    assert_eq!(folded, Some((u64::from(PEERS) - BUDGET) as f64));
    // Each was asked for once, and had one address.
    let forgotten = samples.get("observer_agent_peer_names_forgotten_total", &[]);
    assert_eq!(forgotten, Some(f64::from(PEERS) - REMEMBERED));
    let port = PORT.to_string();
    let called = [("container", "c"), ("direction", "transmit"), ("protocol", "udp")];
    // What finds no place among the peers stands under no port, with the questions that did not, either.
    let at_port = [&called[..], &[("port", &port)]].concat();
    let named: Vec<_> = samples
        .select("observer_traffic_packets_total", &at_port)
        .filter(|sample| !sample.label("peer_name").is_empty())
        .collect();
    // The resolver is a peer, too, and so is what has no name.
    assert!((BUDGET * 9 / 10..=BUDGET).contains(&(named.len() as u64)), "{} names", named.len());
    assert!(named.iter().all(|sample| sample.value == 1.0), "{named:#?}");
    // IPv4 and UDP headers are 28 bytes; a question is its name's text and 46 bytes, headers included.
    let asked: u64 = addresses.iter().map(|address| address.to_string().len() as u64 + 5 + 46).sum();
    let packets = samples.sum("observer_traffic_packets_total", &called);
    let bytes = samples.sum("observer_traffic_bytes_total", &called);
    let peers = u64::from(PEERS);
    assert_eq!((packets, bytes), ((2 * peers) as f64, (peers * 128 + asked) as f64));
    // The other end, which has heard them all from one peer.
    let heard = [("container", "s"), ("direction", "receive"), ("protocol", "udp"), ("port", port.as_str())];
    let [packets, bytes] = ["packets", "bytes"].map(|of| samples.sum(&format!("observer_traffic_{of}_total"), &heard));
    assert_eq!((packets, bytes), (peers as f64, (peers * 128) as f64));
    scene.check_nothing_lost(&samples).unwrap();
}

fn ip(arguments: &str) -> Result<()> {
    let output = Process::new("ip").args(arguments.split(' ')).output().context("running ip (package iproute2)")?;
    ensure!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
