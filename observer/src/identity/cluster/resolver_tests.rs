use std::{net::SocketAddr, thread::JoinHandle};

use tokio::sync::oneshot;

use super::*;
use crate::{
    identity::cluster::{ClusterFeed, Coverage, PeerRecord, PodRanges},
    metrics::BuildInfo,
    resolver::{CertificateFiles, Listener, Listening, Shared as Table},
};

/// Long enough for any machine.
const LONG: Duration = Duration::from_secs(30);

/// A resolver on a thread of its own. Dropping it stops it.
struct Running {
    table: Arc<Table>,
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    fn start(listening: Listening) -> Self {
        let table = Arc::new(Table::default());
        let (stop, stopped) = oneshot::channel::<()>();
        let (told, address) = std::sync::mpsc::channel();
        let served = Arc::clone(&table);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let listener = Listener::bind(listening).unwrap();
                told.send(listener.address()).unwrap();
                listener.serve(served, async { drop(stopped.await) }).await.unwrap();
            });
        });
        Self { table, address: address.recv().unwrap(), stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.stop.take());
        self.thread.take().unwrap().join().unwrap();
    }
}

impl Running {
    fn tell(&self, address: IpAddr, record: Option<Arc<PeerRecord>>) {
        ClusterFeed::tell(&*self.table, vec![(address, record)], 0);
    }
}

fn plain(address: &str) -> Listening {
    Listening { address: address.parse().unwrap(), tls: None, token: None }
}

struct Agent {
    resolver: Resolver,
    _source: Source,
    book: Arc<PeerBook>,
    metrics: Arc<AgentMetrics>,
}

impl Agent {
    fn of(options: ResolverOptions, most: usize) -> Self {
        let book = Arc::new(PeerBook::default());
        let metrics = Arc::new(AgentMetrics::new(BuildInfo::default()));
        let (source, resolver) =
            Resolver::with_room_for(most, options, Arc::clone(&book), Arc::clone(&metrics)).unwrap();
        Self { resolver, _source: source, book, metrics }
    }

    fn at(address: SocketAddr) -> Self {
        Self::of(options(&format!("http://{address}")), 100)
    }

    fn see(&self, addresses: &[&str]) {
        self.resolver.see(addresses.iter().map(|address| ip(address)), Instant::now() + LONG);
    }

    fn until(&self, what: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + LONG;
        while !what(self) {
            assert!(Instant::now() < deadline, "{:?}", self.state());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn state(&self) -> Option<(ProbeState, String)> {
        self.metrics.probes().pop().map(|probe| (probe.state, probe.reason))
    }

    fn is(&self, state: ProbeState) -> bool {
        self.state().is_some_and(|(is, _)| is == state)
    }

    fn now(&self, address: &str) -> Known {
        self.book.who(ip(address), u64::MAX)
    }
}

fn options(url: &str) -> ResolverOptions {
    ResolverOptions { url: url.parse().unwrap(), ca_file: "/nonexistent".into(), token_file: None }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn node(name: &str) -> Arc<PeerRecord> {
    Arc::new(PeerRecord::Node { name: name.into() })
}

fn by(name: &str) -> Known {
    Known::By(node(name))
}

#[test]
fn an_agent_is_told_who_has_what_it_sees_and_when_that_changes() {
    let running = Running::start(plain("127.0.0.1:0"));
    let agent = Agent::at(running.address);
    agent.until(|agent| agent.is(ProbeState::Ok));
    running.tell(ip("10.0.0.1"), Some(node("a")));
    running.tell(ip("10.0.0.2"), Some(node("b")));
    agent.resolver.see(["10.0.0.1", "10.0.0.3"].map(ip).into_iter(), Instant::now());
    assert_eq!(agent.now("10.0.0.1"), Known::Unknown, "its lists are not complete");
    running.table.covers(Coverage::Whole);
    agent.until(|agent| agent.now("10.0.0.3") == Known::Nobody);
    assert_eq!([agent.now("10.0.0.1"), agent.now("10.0.0.2")], [by("a"), Known::Unknown]);
    agent.see(&["10.0.0.2", "fd00::1"]);
    assert_eq!([agent.now("10.0.0.2"), agent.now("fd00::1")], [by("b"), Known::Nobody], "seeing waits for answers");
    assert_eq!(agent.book.who(ip("10.0.0.2"), 0), by("b"), "nobody else had it");

    let before = monotonic();
    running.tell(ip("10.0.0.1"), Some(node("c")));
    agent.until(|agent| agent.now("10.0.0.1") == by("c"));
    assert_eq!(agent.book.who(ip("10.0.0.1"), before - 1_000_000), by("a"), "what was before stays so");
    running.tell(ip("10.0.0.3"), Some(node("d")));
    agent.until(|agent| agent.now("10.0.0.3") == by("d"));
    assert_eq!(running.table.sizes().subscriptions, 4);
    assert_eq!(agent.metrics.source_errors(RESOLVER), 0);
    drop(agent);
    let deadline = Instant::now() + LONG;
    while running.table.sizes().agents > 0 {
        assert!(Instant::now() < deadline);
    }
    assert_eq!(running.table.sizes().subscriptions, 0);
}

#[test]
fn what_is_known_stays_while_the_resolver_is_away_and_is_put_right_when_it_is_back() {
    let running = Running::start(plain("127.0.0.1:0"));
    let address = running.address;
    running.tell(ip("10.0.0.1"), Some(node("a")));
    running.tell(ip("10.0.0.2"), Some(node("b")));
    running.table.covers(Coverage::Whole);
    let agent = Agent::at(address);
    agent.until(|agent| agent.is(ProbeState::Ok));
    agent.see(&["10.0.0.1", "10.0.0.2"]);
    drop(running);
    agent.until(|agent| agent.is(ProbeState::Failed));
    let (_, reason) = agent.state().unwrap();
    assert!(reason.contains("--kubernetes.peers") && reason.contains(&address.to_string()), "{reason}");
    let away = monotonic();
    agent.see(&["10.0.0.1", "10.0.0.3"]);
    assert_eq!([agent.now("10.0.0.1"), agent.now("10.0.0.3")], [by("a"), Known::Unknown]);

    let running = Running::start(plain(&address.to_string()));
    agent.until(|agent| agent.is(ProbeState::Ok));
    running.tell(ip("10.0.0.1"), Some(node("c")));
    running.tell(ip("10.0.0.3"), Some(node("d")));
    agent.until(|_| running.table.sizes().subscriptions == 3);
    assert_eq!([agent.now("10.0.0.1"), agent.now("10.0.0.2")], [by("a"), by("b")], "it does not know enough yet");
    running.table.covers(Coverage::Whole);
    agent.until(|agent| agent.now("10.0.0.1") == by("c") && agent.now("10.0.0.3") == by("d"));
    agent.until(|agent| agent.now("10.0.0.2") == Known::Vacant);
    assert_eq!(agent.book.who(ip("10.0.0.1"), away), by("a"), "it had it when it was heard of last");
    assert_eq!(agent.book.who(ip("10.0.0.3"), away), by("d"));
    assert!(agent.metrics.source_errors(RESOLVER) > 0);
}

#[test]
fn addresses_that_leave_for_others_are_forgotten_on_both_sides() {
    let running = Running::start(plain("127.0.0.1:0"));
    for number in 1..=4 {
        running.tell(IpAddr::from([10, 0, 0, number]), Some(node("n")));
    }
    running.table.covers(Coverage::Whole);
    let agent = Agent::of(options(&format!("http://{}", running.address)), 2);
    agent.until(|agent| agent.is(ProbeState::Ok));
    agent.see(&["10.0.0.1", "10.0.0.2"]);
    agent.see(&["10.0.0.2", "10.0.0.3"]);
    assert_eq!(agent.now("10.0.0.1"), Known::Unknown);
    assert_eq!([agent.now("10.0.0.2"), agent.now("10.0.0.3")], [by("n"), by("n")]);
    agent.until(|_| running.table.sizes().subscriptions == 2);
    agent.see(&["10.0.0.2", "10.0.0.3", "10.0.0.4"]);
    assert_eq!((agent.book.usage().folded, agent.now("10.0.0.4")), (1, Known::Unknown));
}

#[test]
fn addresses_that_nobody_talks_to_any_more_are_forgotten_on_both_sides() {
    let running = Running::start(plain("127.0.0.1:0"));
    running.tell(ip("10.0.0.1"), Some(node("a")));
    running.tell(ip("10.0.0.2"), Some(node("b")));
    running.table.covers(Coverage::Whole);
    let agent = Agent::at(running.address);
    agent.until(|agent| agent.is(ProbeState::Ok));
    agent.see(&["10.0.0.1", "10.0.0.2", "192.0.2.1"]);
    assert_eq!((running.table.sizes().subscriptions, agent.book.usage().addresses), (3, 3));
    let later = monotonic() + 3_600 * 1_000_000_000;
    agent.resolver.see_at([ip("10.0.0.2")].into_iter(), later, Instant::now());
    assert_eq!(
        [agent.now("10.0.0.1"), agent.now("10.0.0.2"), agent.now("192.0.2.1")],
        [Known::Unknown, by("b"), Known::Unknown]
    );
    agent.until(|_| running.table.sizes().subscriptions == 1);
    agent.see(&["10.0.0.1", "10.0.0.2"]);
    assert_eq!(agent.now("10.0.0.1"), by("a"), "it is asked for anew");
}

#[test]
fn only_those_with_the_token_are_let_in_over_tls() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    std::fs::write(path("ca"), made.cert.pem()).unwrap();
    std::fs::write(path("token"), "right").unwrap();
    std::fs::write(path("wrong"), "wrong").unwrap();
    std::fs::write(path("key"), made.signing_key.serialize_pem()).unwrap();
    let tls = Some(CertificateFiles { certificate: path("ca"), key: path("key") });
    let token = Some(Token::new(path("token")));
    let running = Running::start(Listening { tls, token, ..plain("127.0.0.1:0") });
    running.tell(ip("10.0.0.1"), Some(node("a")));
    running.table.covers(Coverage::Whole);
    let with = |ca: &str, token: &str| {
        let options = ResolverOptions {
            ca_file: path(ca),
            token_file: Some(path(token)),
            ..options(&format!("https://{}", running.address))
        };
        let agent = Agent::of(options, 10);
        agent.until(|agent| agent.state().is_some());
        agent
    };
    let reason = |agent: &Agent| agent.state().unwrap().1;
    let wrong = with("ca", "wrong");
    assert!(reason(&wrong).contains("Unauthenticated"), "{}", reason(&wrong));
    assert!(running.table.counts().refused[&crate::resolver::Refusal::Unauthenticated] > 0);
    let none = with("none", "token");
    assert!(reason(&none).contains("--resolver.ca-file"), "{}", reason(&none));
    let right = with("ca", "token");
    assert!(right.is(ProbeState::Ok), "{}", reason(&right));
    right.see(&["10.0.0.1"]);
    assert_eq!(right.now("10.0.0.1"), by("a"));
}

#[test]
fn a_certificate_that_is_replaced_is_shown_to_the_next_agent() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let make = || rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let [first, second] = [make(), make()];
    let put = |name: &str, text: String| std::fs::write(path(name), text).unwrap();
    put("first", first.cert.pem());
    put("second", second.cert.pem());
    put("certificate", first.cert.pem());
    put("key", first.signing_key.serialize_pem());
    let tls = Some(CertificateFiles { certificate: path("certificate"), key: path("key") });
    let running = Running::start(Listening { tls, ..plain("127.0.0.1:0") });
    running.table.covers(Coverage::Whole);
    let agent = |believes: &str| {
        let url = format!("https://{}", running.address);
        let agent = Agent::of(ResolverOptions { ca_file: path(believes), ..options(&url) }, 10);
        agent.until(|agent| agent.state().is_some());
        agent
    };
    let old = agent("first");
    assert!(old.is(ProbeState::Ok), "{:?}", old.state());
    assert!(agent("second").is(ProbeState::Failed));
    // The key is not there yet: nobody is turned away meanwhile.
    put("certificate", second.cert.pem());
    assert!(agent("first").is(ProbeState::Ok));
    put("key", second.signing_key.serialize_pem());
    assert!(agent("second").is(ProbeState::Ok));
    assert!(agent("first").is(ProbeState::Failed));
    assert!(old.is(ProbeState::Ok), "who is connected stays so: {:?}", old.state());
    // Someone who connects and says nothing keeps nobody waiting.
    let _silent = std::net::TcpStream::connect(running.address).unwrap();
    assert!(agent("second").is(ProbeState::Ok));
}

#[test]
fn since_when_it_is_so() {
    let reply = |name: Option<&str>, age_ms| Reply {
        address: ip("10.0.0.1"),
        record: name.map(node),
        age_ms,
        generation: 1,
        may_be_a_pods: false,
    };
    const NOW: u64 = 10_000_000_000;
    for (known, reply, expected) in [
        (Known::Unknown, reply(Some("a"), None), Some(0)),
        (Known::Unknown, reply(Some("a"), Some(4_000)), Some(6_000_000_000)),
        (Known::Unknown, reply(None, None), Some(0)),
        (Known::Unknown, reply(Some("a"), Some(u64::MAX)), Some(1)),
        (Known::Nobody, reply(None, Some(5)), None),
        (Known::Nobody, reply(Some("a"), None), Some(0)),
        (Known::Nobody, reply(Some("b"), Some(1_000)), Some(9_000_000_000)),
        (Known::Vacant, reply(None, None), None),
        (Known::Vacant, reply(Some("b"), None), Some(NOW)),
        (Known::Vacant, reply(Some("b"), Some(1_000)), Some(9_000_000_000)),
        (by("a"), reply(Some("a"), Some(5)), None),
        (by("a"), reply(Some("b"), Some(1_000)), Some(9_000_000_000)),
        (by("a"), reply(Some("b"), None), Some(NOW)),
        (by("a"), reply(None, None), Some(NOW)),
    ] {
        assert_eq!(since(&known, &reply, NOW), expected, "{known:?} {reply:?}");
    }
}

#[test]
fn who_comes_after_a_resolver_began_anew_is_not_given_what_was_anothers() {
    let shared = Shared {
        wants: Mutex::new(Wants::new(10)),
        say: Notify::new(),
        heard: Condvar::new(),
        connected: AtomicBool::new(true),
        book: Arc::new(PeerBook::default()),
    };
    let address = ip("10.0.0.1");
    shared.wants().see([address].into_iter(), 1);
    let told = |name: Option<&str>, age_ms, now| {
        let reply = Reply { address, record: name.map(node), age_ms, generation: 1, may_be_a_pods: false };
        shared.take(FollowResponse { answers: vec![reply.to_message()] }, now);
    };
    let at = |moments: [u64; 4]| moments.map(|at| shared.book.who(address, at));
    const SECOND: u64 = 1_000_000_000;
    // Nobody is known to have had it: it was the first one's before that was heard of.
    told(None, None, 5 * SECOND);
    told(Some("a"), None, 10 * SECOND);
    assert_eq!(at([0, 5 * SECOND, 10 * SECOND, u64::MAX]), [by("a"), by("a"), by("a"), by("a")]);
    told(None, Some(1_000), 21 * SECOND);
    // The resolver that knew of the first one is gone.
    told(None, None, 25 * SECOND);
    told(Some("b"), None, 30 * SECOND);
    let never_b = at([0, 15 * SECOND, 20 * SECOND, 30 * SECOND - 1]);
    assert!(!never_b.contains(&by("b")), "{never_b:?}");
    assert_eq!(at([20 * SECOND, 29 * SECOND, 30 * SECOND, u64::MAX]), [Known::Vacant, Known::Vacant, by("b"), by("b")]);
}

#[test]
fn what_may_be_a_pods_is_not_called_nobodys() {
    let running = Running::start(plain("127.0.0.1:0"));
    running.tell(ip("10.244.1.7"), Some(node("a")));
    running.table.pod_ranges(PodRanges::of(["10.244.1.0/24".parse().unwrap()]));
    running.table.covers(Coverage::Whole);
    let agent = Agent::at(running.address);
    agent.until(|agent| agent.is(ProbeState::Ok));
    agent.see(&["10.244.1.7", "10.244.1.8", "192.0.2.1"]);
    assert_eq!(
        [agent.now("10.244.1.7"), agent.now("10.244.1.8"), agent.now("192.0.2.1")],
        [by("a"), Known::Unknown, Known::Nobody]
    );
    running.tell(ip("10.244.1.8"), Some(node("b")));
    agent.until(|agent| agent.now("10.244.1.8") == by("b"));
    running.tell(ip("10.244.1.8"), None);
    agent.until(|agent| agent.now("10.244.1.8") == Known::Vacant);
}
