//! An agent whose wall clock is set, forward and back, while pods come and go and talk: nothing that it counts and nobody
//! whom it names depends on it. Debian's `libfaketime` sets the clock of the agent alone. Needs root.

mod support;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use observer_lab::actor::{Command, Pace, ServeMode, Sizes};
use observer_lab::agent::{Agent, AgentOptions};
use observer_lab::bpffs::BpfFs;
use observer_lab::launch::Launcher;
use observer_lab::node::Node;
use observer_lab::pod::{Pod, PodSpec};
use observer_lab::podsfile;
use observer_lab::samples::Samples;
use support::kubernetes::PATIENCE;
use tempfile::TempDir;

const HOUR: i64 = 3_600;
const YEAR: i64 = 365 * 24 * HOUR;
const PORTS: (u16, u16) = (7_000, 7_001);
const DATAGRAMS: u32 = 40;
const SIZE: u32 = 100;
/// What they are at IP level.
const BYTES: f64 = (DATAGRAMS * (SIZE + 28)) as f64;

/// The library that sets a program's clock, as Debian has it.
fn library() -> PathBuf {
    let found = std::fs::read_dir("/usr/lib").unwrap().flatten().map(|entry| {
        // Of programs with threads.
        entry.path().join("faketime/libfaketimeMT.so.1")
    });
    let found = found.into_iter().find(|path| path.is_file());
    found.expect("no /usr/lib/*/faketime/libfaketimeMT.so.1: install Debian's package libfaketime")
}

struct Scene {
    agent: Agent,
    node: Node,
    here: Pod,
    directory: TempDir,
    bpffs: BpfFs,
}

fn clock(directory: &Path) -> PathBuf {
    directory.join("clock")
}

fn pods_file(directory: &Path) -> PathBuf {
    directory.join("pods.json")
}

fn start(directory: &Path, bpffs: &BpfFs) -> Agent {
    let environment = [
        ("LD_PRELOAD", library()),
        ("FAKETIME_TIMESTAMP_FILE", clock(directory)),
        // The file is read at each question for the time.
        ("FAKETIME_NO_CACHE", "1".into()),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".into()),
        ("FAKETIME_DISABLE_SHM", "1".into()),
        ("NO_FAKE_STAT", "1".into()),
    ];
    let arguments = ["--cri.endpoint", "none", "--kubernetes", "none", "--traffic.peer-detail", "pod"];
    let options = AgentOptions {
        bpffs: Some(bpffs.path().to_owned()),
        pods_file: Some(pods_file(directory)),
        arguments: arguments.map(Into::into).to_vec(),
        environment: environment.map(|(name, value)| (name.into(), value.into())).to_vec(),
        ..AgentOptions::default()
    };
    Agent::start(&Launcher::at(env!("CARGO_BIN_EXE_observer-lab")), &options).unwrap()
}

impl Scene {
    fn new() -> Self {
        let (directory, bpffs) = (TempDir::new().unwrap(), BpfFs::create().unwrap());
        set(directory.path(), 0);
        podsfile::write(&pods_file(directory.path()), []).unwrap();
        let node = support::node();
        let agent = start(directory.path(), &bpffs);
        let here = Pod::create(&node, PodSpec::new("clock", "here", &["client"])).unwrap();
        Self { agent, node, here, directory, bpffs }
    }

    /// Makes a pod that serves, at an address, and waits until the agent knows it.
    fn peer(&self, name: &str, address: Option<Ipv4Addr>) -> Pod {
        let spec = PodSpec { address, ..PodSpec::new("clock", name, &["server"]) };
        let pod = Pod::create(&self.node, spec).unwrap();
        self.here.introduce(&pod).unwrap();
        let server = pod.container("server").unwrap();
        server.serve_udp(SocketAddr::new(pod.ipv4().into(), PORTS.0), true).unwrap();
        server.serve_tcp((Ipv4Addr::UNSPECIFIED, PORTS.1).into(), ServeMode::Echo).unwrap();
        podsfile::write(&pods_file(self.directory.path()), [&self.here, &pod]).unwrap();
        self.until(&format!("the pod {name}"), |samples| {
            samples.select("observer_pod_info", &[("pod", name), ("uid", pod.uid())]).next().is_some()
        });
        pod
    }

    fn until(&self, what: &str, is: impl Fn(&Samples) -> bool) -> Samples {
        let samples = self.agent.scrape_until(PATIENCE, &is).unwrap();
        let udp: Vec<_> =
            samples.select("observer_traffic_bytes_total", &[("pod", "here"), ("protocol", "udp")]).collect();
        assert!(is(&samples), "{what}, but {udp:#?}; the agent's log:\n{}", self.agent.log());
        samples
    }

    fn send(&self, to: Ipv4Addr) {
        let send = Command::UdpSend {
            to: (to, PORTS.0).into(),
            sizes: Sizes::List(vec![SIZE; DATAGRAMS as usize]),
            connected: false,
            pace: Pace::Echoed { window: 1 },
        };
        let sent = self.here.container("client").unwrap().traffic(&send).unwrap();
        assert_eq!(sent.received_datagrams, u64::from(DATAGRAMS));
    }

    /// The agent's wall clock, in seconds since 1970, as it shows it.
    fn wall(&self) -> f64 {
        let samples = Samples::parse(&self.agent.fetch("/metrics/cadvisor").unwrap()).unwrap();
        samples.select("container_last_seen", &[("pod", "here")]).next().unwrap().value
    }

    fn starts(&self) -> Vec<(String, f64)> {
        let samples = Samples::parse(&self.agent.fetch("/metrics/cadvisor").unwrap()).unwrap();
        let of_here = samples.select("container_start_time_seconds", &[("pod", "here")]);
        of_here.map(|sample| (sample.label("name").to_owned(), sample.value)).collect()
    }

    /// Sets the agent's clock and sees that it is set.
    fn step(&self, seconds: i64) {
        set(self.directory.path(), seconds);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
        let off = self.wall() - now - seconds as f64;
        assert!(off.abs() < 60.0, "the agent's clock is off by {off} seconds");
    }
}

/// Seconds from the machine's clock.
fn set(directory: &Path, seconds: i64) {
    let (path, next) = (clock(directory), directory.join("next"));
    std::fs::write(&next, format!("{seconds:+}\n")).unwrap();
    std::fs::rename(next, path).unwrap();
}

fn with(samples: &Samples, peer: &str) -> [f64; 2] {
    ["transmit", "receive"].map(|direction| {
        let labels = [("pod", "here"), ("protocol", "udp"), ("direction", direction), ("peer_pod", peer)];
        samples.sum("observer_traffic_bytes_total", &labels)
    })
}

fn all(samples: &Samples) -> f64 {
    samples.sum("observer_traffic_bytes_total", &[("pod", "here"), ("protocol", "udp"), ("direction", "transmit")])
}

#[test]
fn a_clock_that_is_set_changes_no_name_and_no_sum() {
    let mut scene = Scene::new();
    let mut pod = scene.peer("pod-0", None);
    let address = pod.ipv4();
    scene.send(address);
    scene.until("the first pod's traffic", |samples| with(samples, "pod-0") == [BYTES; 2]);
    let starts = scene.starts();
    assert_eq!(starts.len(), 3, "the pod, its pause container and the other one: {starts:?}");
    let steps = [HOUR, -HOUR, 10 * YEAR, -10 * YEAR, -YEAR, 0];
    for (round, step) in steps.into_iter().enumerate() {
        let (old, name) = (format!("pod-{round}"), format!("pod-{}", round + 1));
        // While a pod talks, when it goes, and when the next one has its address.
        let (connection, _) = scene.here.container("client").unwrap().open_tcp((address, PORTS.1).into()).unwrap();
        scene.step(step);
        let write = Command::TcpWrite { connection, bytes: 1_000, reply_bytes: 1_000 };
        scene.here.container("client").unwrap().traffic(&write).unwrap();
        scene.send(address);
        drop(pod);
        pod = scene.peer(&name, Some(address));
        scene.send(address);
        if round == 3 {
            // The next agent starts ten years before the last one did.
            scene.agent.terminate().unwrap();
            scene.agent = start(scene.directory.path(), &scene.bpffs);
        }
        let samples = scene.until(&format!("{old} and {name} after {step} seconds"), |samples| {
            with(samples, &old) == [2.0 * BYTES; 2] && with(samples, &name) == [BYTES; 2]
        });
        assert_eq!(all(&samples), BYTES * (2 * round + 3) as f64, "{step}");
        assert_eq!(samples.sum("observer_agent_unattributed_bytes_total", &[]), 0.0);
        // Starts are counted from the moment of boot that the agent was told when it began.
        let now = scene.starts();
        assert!(
            starts.iter().zip(&now).all(|((name, then), (same, now))| name == same && (then - now).abs() <= 1.0),
            "{starts:?}, then {now:?}"
        );
    }
    // What has ended leaves: patience is not counted on the wall.
    let last = format!("pod-{}", steps.len());
    drop(pod);
    podsfile::write(&pods_file(scene.directory.path()), [&scene.here]).unwrap();
    scene.until("a pod that is gone", |samples| {
        samples.select("observer_pod_info", &[]).count() == 1
            && samples.select("observer_traffic_bytes_total", &[("pod", &last)]).next().is_none()
    });
    let log = scene.agent.log();
    assert!(!log.contains("panicked"), "{log}");
    scene.agent.terminate().unwrap();
}
