//! What containers ask and are answered is what the agent shows, answer by answer. Needs root, `dnsmasq` and `ip`.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::process::{Child, Command as Process, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use observer_lab::actor::{Answer, Command, DnsAnswers, DnsFault, DnsQuestion, DnsWay, Pace, Sizes};
use observer_lab::agent::Agent;
use observer_lab::cases::Stage;
use observer_lab::pod::{Container, Pod, PodSpec};
use observer_lab::samples::{Samples, buckets};
use rustix::process::{Pid, Signal, kill_process};

const PATIENCE: Duration = Duration::from_secs(20);
const DNS: u16 = 53;
/// Addresses of the world outside (RFC 5737, RFC 3849).
const OUTSIDE: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(203, 0, 113, 7)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7))];

/// Answers by type and outcome.
type Counts = BTreeMap<(String, String), u64>;

/// Two pods, one with a resolver, and the agent.
struct Scene {
    stage: Stage,
    agent: Option<Agent>,
    client: Pod,
    server: Pod,
    _resolver: Option<Resolver>,
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
        while pod.netns().run(|| Ok(std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, DNS)).is_err()))? {
            ensure!(child.try_wait()?.is_none(), "dnsmasq (package dnsmasq-base) has ended");
            ensure!(Instant::now() < deadline, "dnsmasq does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(Self(child))
    }
}

impl Scene {
    fn new(resolver: bool) -> Result<Self> {
        Self::with(resolver, &[])
    }

    /// With these arguments for the agent.
    fn with(resolver: bool, more: &[&str]) -> Result<Self> {
        let stage = Stage::new(None)?;
        let agent = stage.agent_with(None, more)?;
        let client = Pod::create(&stage.node, PodSpec::new("cases", "client", &["c"]))?;
        let server = Pod::create(&stage.node, PodSpec::new("cases", "server", &["s", "app"]))?;
        stage.announce(&[&client, &server])?;
        let known = |samples: &Samples| {
            ["client", "server"].iter().all(|name| {
                samples.select("observer_pod_info", &[("pod", name)]).any(|sample| !sample.label("pod_ip").is_empty())
            })
        };
        let samples = agent.scrape_until(PATIENCE, known)?;
        ensure!(known(&samples), "the pods are not there; the log:\n{}", agent.log());
        let state = [("probe", "dns"), ("state", "ok")];
        ensure!(samples.get("observer_agent_probe_state", &state) == Some(1.0), "no probe; log:\n{}", agent.log());
        let _resolver = if resolver { Some(Resolver::start(&server, server.container("s")?)?) } else { None };
        Ok(Self { stage, agent: Some(agent), client, server, _resolver })
    }

    fn agent(&self) -> &Agent {
        self.agent.as_ref().unwrap()
    }

    fn c(&self) -> &Container {
        self.client.container("c").unwrap()
    }

    /// The resolver's addresses for other pods.
    fn addresses(&self) -> [SocketAddr; 2] {
        [SocketAddr::new(self.server.ipv4().into(), DNS), SocketAddr::new(self.server.ipv6().into(), DNS)]
    }

    /// Nothing was lost on the way.
    fn check_nothing_lost(&self, samples: &Samples) {
        assert_eq!(samples.sum("observer_agent_dns_lost_packets_total", &[]), 0.0, "{}", self.agent().log());
        assert_eq!(samples.sum("observer_agent_pending_dns_responses", &[]), 0.0);
        assert_eq!(samples.get("observer_agent_untimed_dns_questions_total", &[]), Some(0.0));
    }
}

fn question(name: &str, qtype: u16) -> DnsQuestion {
    DnsQuestion { name: name.to_owned(), qtype }
}

fn ask(who: &Container, to: SocketAddr, way: DnsWay, questions: &[DnsQuestion], rounds: u32) -> Result<DnsAnswers> {
    let patient = true;
    asked(who, &Command::DnsAsk { to, way, questions: questions.to_vec(), rounds, patient })
}

fn asked(who: &Container, command: &Command) -> Result<DnsAnswers> {
    match who.run(command)? {
        Answer::Dns(answers) => Ok(answers),
        other => bail!("{command:?} was answered with {other:?}"),
    }
}

/// Adds what a client was answered, with the names that the numbers have at IANA.
fn add(counts: &mut Counts, answers: &DnsAnswers) {
    for (qtype, rcode, count) in &answers.answers {
        let qtype = match qtype {
            1 => "A",
            2 => "NS",
            5 => "CNAME",
            6 => "SOA",
            12 => "PTR",
            15 => "MX",
            16 => "TXT",
            28 => "AAAA",
            33 => "SRV",
            64 => "SVCB",
            65 => "HTTPS",
            255 => "ANY",
            _ => "other",
        };
        let rcode = match rcode {
            0 => "NOERROR",
            1 => "FORMERR",
            2 => "SERVFAIL",
            3 => "NXDOMAIN",
            4 => "NOTIMP",
            5 => "REFUSED",
            _ => "other",
        };
        *counts.entry((qtype.to_owned(), rcode.to_owned())).or_default() += count;
    }
}

fn shown(samples: &Samples, container: &str) -> Counts {
    let labels = [("container", container), ("namespace", "cases")];
    let mut counts = Counts::new();
    for sample in samples.select("observer_dns_responses_total", &labels) {
        let labels = (sample.label("qtype").to_owned(), sample.label("rcode").to_owned());
        assert!(counts.insert(labels, sample.value as u64).is_none(), "a series stands there twice");
    }
    counts
}

/// Each outcome has as many durations as answers. Samples leave histograms out: this reads the text.
fn check_durations(agent: &Agent, container: &str, wanted: &Counts) -> Result<()> {
    let mut by_rcode: BTreeMap<&str, u64> = BTreeMap::new();
    for ((_, rcode), count) in wanted {
        *by_rcode.entry(rcode).or_default() += count;
    }
    let text = agent.fetch("/metrics")?;
    let value = |suffix: &str, rcode: &str, le: &str| -> Result<f64> {
        let series = format!(
            "observer_dns_duration_seconds{suffix}{{namespace=\"cases\",pod=\"{}\",container=\"{container}\",rcode=\"{rcode}\"{le}}} ",
            if container == "c" { "client" } else { "server" }
        );
        let line = text.lines().find_map(|line| line.strip_prefix(&series));
        Ok(line.with_context(|| format!("there is no {series}"))?.parse()?)
    };
    for (rcode, count) in by_rcode {
        ensure!(value("_count", rcode, "")? == count as f64, "{rcode}: not {count} durations");
        ensure!(value("_bucket", rcode, ",le=\"+Inf\"")? == count as f64, "{rcode}: not {count} in buckets");
        ensure!(value("_sum", rcode, "")? > 0.0, "{rcode}: no time has passed");
    }
    Ok(())
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
    let scene = Scene::new(true).unwrap();
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
    let inside = scene.server.container("app").unwrap();
    let locals = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    let ask = |who, to, way, counts: &mut Counts| {
        let batches = ask_in_batches(scene.agent(), who, to, way, &questions, ROUNDS).unwrap();
        batches.iter().for_each(|answers| add(counts, answers));
    };
    for way in ways {
        for to in scene.addresses() {
            ask(scene.c(), to, way, &mut client);
        }
        for local in locals {
            ask(inside, SocketAddr::new(local, DNS), way, &mut app);
        }
    }
    let total = u64::from(ROUNDS) * questions.len() as u64 * 8;
    assert_eq!((client.values().sum::<u64>(), app.values().sum::<u64>()), (total, total), "12,000 each were answered");
    for outcome in ["NOERROR", "NXDOMAIN", "REFUSED"] {
        assert!(client.keys().any(|(_, rcode)| rcode == outcome), "the resolver never says {outcome}: {client:?}");
    }
    let samples = scene.agent().scrape().unwrap();
    scene.check_nothing_lost(&samples);
    assert_eq!(shown(&samples, "c"), client);
    assert_eq!(shown(&samples, "app"), app);
    assert_eq!(shown(&samples, "s"), Counts::new(), "the resolver itself was answered nothing");
    check_durations(scene.agent(), "c", &client).unwrap();
    check_durations(scene.agent(), "app", &app).unwrap();
    assert_eq!(samples.sum("observer_dns_malformed_total", &[]), 0.0);

    // Series go with their pod.
    let Scene { stage, agent, client, server, _resolver } = scene;
    let agent = agent.unwrap();
    drop(client);
    let gone = |samples: &Samples| shown(samples, "c").is_empty();
    assert!(gone(&agent.scrape_until(PATIENCE, gone).unwrap()));
    drop((_resolver, server, stage));
}

#[test]
fn what_is_no_answer_is_none() {
    const ROUNDS: u32 = 7;
    let scene = Scene::new(false).unwrap();
    let server = scene.server.container("s").unwrap();
    let questions = [question("host.test", 1), question("host.test", 28), question("host.test", 16)];
    let mut wanted = Counts::new();
    let (mut malformed, mut unanswered) = (0, 0);
    // Each at an address of its own: 127.0.0.0/8 is all loopback.
    let faults = [
        DnsFault::Rcode(2),
        DnsFault::Rcode(4),
        DnsFault::Rcode(9),
        DnsFault::NoQuestion(1),
        DnsFault::Loop,
        DnsFault::Short,
        DnsFault::Silent,
    ];
    for (fault, last) in faults.into_iter().zip(1..) {
        let listen = SocketAddr::new(Ipv4Addr::new(127, 0, 0, last).into(), DNS);
        server.run(&Command::DnsServe { listen, fault }).unwrap();
        let command = Command::DnsAsk {
            to: listen,
            way: DnsWay::Udp { connected: true },
            questions: questions.to_vec(),
            rounds: ROUNDS,
            patient: fault != DnsFault::Silent,
        };
        let answers = asked(scene.server.container("app").unwrap(), &command).unwrap();
        // The client looks at the header alone.
        if fault == DnsFault::Loop {
            malformed += answers.answers.iter().map(|(_, _, count)| count).sum::<u64>();
        } else {
            add(&mut wanted, &answers);
        }
        malformed += answers.malformed;
        unanswered += answers.unanswered;
    }
    let each = u64::from(ROUNDS) * 3;
    assert_eq!((malformed, unanswered, wanted.values().sum::<u64>()), (2 * each, each, 4 * each));
    let samples = scene.agent().scrape().unwrap();
    assert_eq!(shown(&samples, "app"), wanted);
    check_durations(scene.agent(), "app", &wanted).unwrap();
    assert_eq!(samples.sum("observer_dns_malformed_total", &[("container", "app")]), malformed as f64);
    assert_eq!(samples.sum("observer_dns_malformed_total", &[]), malformed as f64);
    scene.check_nothing_lost(&samples);
}

/// What a resolver says over TCP and is no message is counted, and what comes after it is read as if it had not been.
#[test]
fn what_is_no_answer_over_tcp_does_no_harm() {
    const ROUNDS: u32 = 7;
    let scene = Scene::new(false).unwrap();
    let (server, app) = (scene.server.container("s").unwrap(), scene.server.container("app").unwrap());
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
        let listen = SocketAddr::new(Ipv4Addr::new(127, 0, 1, last).into(), DNS);
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
            let samples = scene.agent().scrape().unwrap();
            assert_eq!(shown(&samples, "app"), wanted, "{fault:?}");
            assert_eq!(
                samples.sum("observer_dns_malformed_total", &[("container", "app")]),
                malformed as f64,
                "{fault:?}"
            );
        }
    }
    let samples = scene.agent().scrape().unwrap();
    assert_eq!(wanted.values().sum::<u64>(), 8 * each);
    check_durations(scene.agent(), "app", &wanted).unwrap();
    scene.check_nothing_lost(&samples);
}

/// A resolver that answers late: no answer is said to be faster than it was, nor all of them slower than the client's whole
/// conversation.
#[test]
fn late_answers_are_timed() {
    const ROUNDS: u32 = 3;
    const DELAY_MS: u16 = 60;
    const FAMILY: &str = "observer_dns_duration_seconds";
    let scene = Scene::new(false).unwrap();
    let server = scene.server.container("s").unwrap();
    let questions = [question("host.test", 1), question("host.test", 28)];
    let ways = [DnsWay::Udp { connected: true }, DnsWay::Udp { connected: false }, DnsWay::Tcp { split: true }];
    let labels = [("container", "c"), ("rcode", "NOERROR")];
    let delay = f64::from(DELAY_MS) / 1e3;
    let (mut count, mut sum) = (0, 0.0);
    for listen in scene.addresses() {
        server.run(&Command::DnsServe { listen, fault: DnsFault::Late(DELAY_MS) }).unwrap();
        for way in ways {
            let begin = Instant::now();
            let answers = ask(scene.c(), listen, way, &questions, ROUNDS).unwrap();
            let whole = begin.elapsed().as_secs_f64();
            let answered: u64 =
                answers.answers.iter().map(|(_, rcode, count)| if *rcode == 0 { *count } else { 0 }).sum();
            assert_eq!(answered, u64::from(ROUNDS) * 2, "{answers:?}");
            count += answered;
            let text = scene.agent().fetch("/metrics").unwrap();
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
    scene.check_nothing_lost(&scene.agent().scrape().unwrap());
}

#[test]
fn what_was_not_handed_over_is_counted() {
    let scene = Scene::new(true).unwrap();
    let [to, _] = scene.addresses();
    let agent = Pid::from_raw(i32::try_from(scene.agent().pid()).unwrap()).unwrap();
    kill_process(agent, Signal::STOP).unwrap();
    let outcome = ask(scene.c(), to, DnsWay::Udp { connected: true }, &[question("host.test", 1)], 6_000);
    kill_process(agent, Signal::CONT).unwrap();
    let received: u64 = outcome.unwrap().answers.iter().map(|(_, _, count)| count).sum();
    assert_eq!(received, 6_000);
    let samples = scene.agent().scrape().unwrap();
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
    let mut scene = Scene::new(true).unwrap();
    let [to, _] = scene.addresses();
    let ask = |scene: &Scene, rounds| {
        let questions = [question("host.test", 1), question("nobody.test", 28)];
        let answers = ask(scene.c(), to, DnsWay::Udp { connected: true }, &questions, rounds).unwrap();
        answers.answers.iter().map(|(_, _, count)| count).sum::<u64>() as f64
    };
    let counted = |samples: &Samples| samples.sum("observer_dns_responses_total", &[("container", "c")]);
    let before = ask(&scene, 100);
    assert_eq!(counted(&scene.agent().scrape().unwrap()), before);
    scene.agent.take().unwrap().kill9().unwrap();
    let all = before + ask(&scene, 50);
    scene.agent = Some(scene.stage.agent().unwrap());
    let samples = scene.agent().scrape_until(PATIENCE, |samples| counted(samples) == all).unwrap();
    assert_eq!(counted(&samples), all);
    assert_eq!(samples.sum(&format!("{FAMILY}_count"), &[("container", "c")]), all);
    scene.check_nothing_lost(&samples);
}

#[test]
fn external_peers_have_the_name_that_was_asked_for() {
    let mut scene = Scene::new(true).unwrap();
    let [v4, v6] = OUTSIDE.map(|address| echo(&scene, address).unwrap());
    let [resolver, _] = scene.addresses();
    let call = |to: SocketAddr| {
        let pace = Pace::Echoed { window: 1 };
        scene.c().traffic(&Command::UdpSend { to, sizes: Sizes::List(vec![100; 10]), connected: true, pace })
    };
    // Nobody has asked for this address before it is called.
    call(v4).unwrap();
    let before = scene.agent().scrape().unwrap();
    assert_eq!(names(&before), [("", v4, 10)].map(series).into());
    let questions = [question("host.test", 1), question("WWW.test", 1), question("WWW.test", 28)];
    ask(scene.c(), resolver, DnsWay::Udp { connected: true }, &questions, 1).unwrap();
    call(v4).unwrap();
    call(v6).unwrap();
    // A peer keeps what it was shown with; a new one has the name that was asked for, in lower case.
    let wanted = [("", v4, 20), ("www.test", v6, 10)].map(series).into();
    let after = scene.agent().scrape().unwrap();
    assert_eq!(names(&after), wanted);
    assert_eq!(after.sum("observer_agent_peer_names", &[]), 1.0);

    // Nor does the next agent call it otherwise.
    let agent = scene.agent.take().unwrap();
    agent.kill9().unwrap();
    let agent = scene.stage.agent().unwrap();
    let again = |samples: &Samples| !names(samples).is_empty();
    let samples = agent.scrape_until(PATIENCE, again).unwrap();
    assert_eq!(names(&samples), wanted);
    let questions = [question("host.test", 1), question("host.test", 28)];
    ask(scene.c(), resolver, DnsWay::Udp { connected: true }, &questions, 1).unwrap();
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
    let scene = Scene::with(true, &[&budgets[..], &["--traffic.peers-per-container", "100"]].concat()).unwrap();
    scene.client.introduce(&scene.server).unwrap();
    scene.client.route(NETWORK, &scene.server).unwrap();
    scene.server.container("s").unwrap().hold_udp((Ipv4Addr::UNSPECIFIED, PORT).into(), 1 << 20).unwrap();
    let [resolver, _] = scene.addresses();
    let first = u32::from(NETWORK.0) + 1;
    let addresses: Vec<Ipv4Addr> = (first..first + PEERS).map(Ipv4Addr::from).collect();
    for some in addresses.chunks(AT_ONCE) {
        let name = |address: &Ipv4Addr| format!("{}.test", address.to_string().replace('.', "-"));
        let questions: Vec<_> = some.iter().map(|address| question(&name(address), 1)).collect();
        let answers = ask(scene.c(), resolver, DnsWay::Udp { connected: true }, &questions, 1).unwrap();
        assert_eq!(answers.answers, [(1, 0, some.len() as u64)], "{answers:?}");
        let call = |address: &Ipv4Addr| Command::UdpSend {
            to: (*address, PORT).into(),
            sizes: Sizes::List(vec![100]),
            connected: false,
            pace: Pace::Free,
        };
        let job = scene.c().start(some.iter().map(call).collect(), Duration::from_millis(1), Some(1)).unwrap();
        let sent = scene.c().join(job).unwrap();
        assert_eq!((sent.failures, sent.sent_datagrams), (0, some.len() as u64));
        scene.agent().scrape().unwrap();
    }
    let samples = scene.agent().scrape().unwrap();
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
    scene.check_nothing_lost(&samples);
}

fn ip(arguments: &str) -> Result<()> {
    let output = Process::new("ip").args(arguments.split(' ')).output().context("running ip (package iproute2)")?;
    ensure!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
