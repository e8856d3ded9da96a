//! What the agent says and does when something is missing or wrong: a clear error, or the rest goes on and says so.
//! Needs root.

mod support;

use std::fs;
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use observer_lab::agent::{Agent, AgentOptions, find_binary};
use observer_lab::bpffs::BpfFs;
use observer_lab::launch::Launcher;
use observer_lab::pod::{Pod, PodSpec};
use observer_lab::samples::Samples;
use support::{Ending, node};

/// Runs the agent's binary to its end.
fn observer(arguments: &[&str]) -> Output {
    Command::new(find_binary().unwrap()).args(arguments).output().unwrap()
}

/// What it wrote, both streams.
fn words(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn launcher() -> Launcher {
    Launcher::at(env!("CARGO_BIN_EXE_observer-lab"))
}

fn run_with(options: &AgentOptions) -> Agent {
    Agent::start(&launcher(), options).unwrap()
}

/// The state of the probe that counts traffic, and why.
fn probe(agent: &Agent) -> (String, String) {
    state_of(&agent.scrape().unwrap(), "cgroup_skb")
}

fn state_of(samples: &Samples, probe: &str) -> (String, String) {
    let labels = [("probe", probe)];
    let sample = samples.select("observer_agent_probe_state", &labels).next().unwrap();
    (sample.label("state").to_owned(), sample.label("reason").to_owned())
}

/// Where the packets of this pod are counted, as `observer_sandbox_info` says.
fn attached(samples: &Samples, pod: &Pod) -> Vec<String> {
    let labels = [("pod", pod.uid())];
    samples.select("observer_sandbox_info", &labels).map(|sample| sample.label("attached").to_owned()).collect()
}

#[test]
fn a_port_in_use_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let bpffs = BpfFs::create().unwrap();
    let path = bpffs.path().to_str().unwrap();
    let output = observer(&["run", "--web.listen-address", &address, "--path.bpffs", path]);
    assert!(!output.status.success());
    let said = words(&output);
    assert!(said.contains(&address) && said.contains("--web.listen-address"), "{said}");
}

#[test]
fn a_second_agent_says_so_and_does_not_start() {
    let bpffs = BpfFs::create().unwrap();
    let path = bpffs.path().to_owned();
    let first = run_with(&AgentOptions { bpffs: Some(path.clone()), ..AgentOptions::default() });
    let output = observer(&["run", "--web.listen-address", "127.0.0.1:0", "--path.bpffs", path.to_str().unwrap()]);
    assert!(!output.status.success());
    assert!(words(&output).contains("another observer is running"), "{}", words(&output));
    let output = observer(&["uninstall", "--path.bpffs", path.to_str().unwrap()]);
    assert!(!output.status.success(), "it must not be taken from under a running agent");
    assert_eq!(probe(&first).0, "ok", "the first one is untouched");
    first.terminate().unwrap();
    let output = observer(&["uninstall", "--path.bpffs", path.to_str().unwrap()]);
    assert!(output.status.success() && words(&output).contains("removed"), "{}", words(&output));
    assert!(!path.join("observer").exists());
}

#[test]
fn without_root_the_rest_goes_on_and_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let binary = directory.path().join("observer");
    fs::copy(find_binary().unwrap(), &binary).unwrap();
    for path in [directory.path(), &binary] {
        fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }
    // The check says what is missing, and its status says that the main job cannot run.
    let output = Command::new(&binary).arg("check").uid(65_534).gid(65_534).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = words(&output);
    assert!(said.contains("CAP_BPF") || said.contains("CAP_NET_ADMIN"), "{said}");
    assert!(said.contains("MISSING"), "{said}");
    let output = Command::new(&binary).arg("pods").uid(65_534).gid(65_534).output().unwrap();
    assert!(output.status.success(), "{}", words(&output));

    // The agent serves what it can read, and its probe says why it counts nothing.
    let node = node();
    let pod = Pod::create(&node, PodSpec::new("ns", "uncounted", &["c"])).unwrap();
    let address = observer_lab::agent::free_address().unwrap().to_string();
    let mut run = Command::new(&binary);
    run.args(["run", "--web.listen-address", &address, "--path.bpffs", directory.path().to_str().unwrap()]);
    let child = Ending(run.uid(65_534).gid(65_534).stderr(std::process::Stdio::null()).spawn().unwrap());
    let request = Some(Duration::from_secs(10));
    let client: ureq::Agent = ureq::Agent::config_builder().timeout_global(request).build().into();
    let scrape = || client.get(format!("http://{address}/metrics")).call()?.body_mut().read_to_string();
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut text = String::new();
    let complete = |text: &str| text.contains("observer_agent_probe_state{") && text.contains(pod.uid());
    while !complete(&text) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(50));
        text = scrape().unwrap_or_else(|error| format!("no scrape: {error}"));
    }
    drop(child);
    assert!(text.contains("probe=\"cgroup_skb\",state=\"failed\""), "{text}");
    assert!(text.contains("process_resident_memory_bytes"), "{text}");
    assert_eq!(attached(&Samples::parse(&text).unwrap(), &pod), ["none"], "{text}");
}

#[test]
fn no_bpffs_and_none_to_be_mounted() {
    let node = node();
    let pod = Pod::create(&node, PodSpec::new("ns", "uncounted", &["c"])).unwrap();
    let agent = run_with(&AgentOptions { bpffs: Some("/proc/self/nothing".into()), ..AgentOptions::default() });
    let samples = agent.scrape_until(Duration::from_secs(15), |samples| !attached(samples, &pod).is_empty()).unwrap();
    assert_eq!(attached(&samples, &pod), ["none"]);
    let (state, reason) = probe(&agent);
    assert_eq!(state, "failed");
    assert!(reason.contains("--path.bpffs") && reason.contains("/proc/self/nothing"), "{reason}");
    assert!(agent.fetch("/").unwrap().contains("failed"), "the landing page shows it");
    agent.terminate().unwrap();
}

#[test]
fn no_cgroup_tree_at_all() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_str().unwrap();
    let output = observer(&["run", "--web.listen-address", "127.0.0.1:0", "--path.cgroupfs", path]);
    assert!(!output.status.success());
    assert!(words(&output).contains("--path.cgroupfs"), "{}", words(&output));
    let output = observer(&["check", "--path.cgroupfs", path]);
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn no_cgroup_v2_tree() {
    // A v1 hierarchy alone, as the only thing below the path: a host without a v2 tree.
    let Some(v1) = observer_lab::cgroup::detect()
        .unwrap()
        .into_iter()
        .find(|hierarchy| hierarchy.has("memory") && hierarchy.mount.ends_with("memory"))
    else {
        return support::skipped("this machine has no v1 hierarchy");
    };
    let bpffs = BpfFs::create().unwrap();
    let node = node();
    let pod = Pod::create(&node, PodSpec::new("ns", "starved", &["c"])).unwrap();
    let agent = run_with(&AgentOptions {
        bpffs: Some(bpffs.path().to_owned()),
        arguments: vec!["--path.cgroupfs".into(), v1.mount.clone().into()],
        ..AgentOptions::default()
    });
    let (state, reason) = probe(&agent);
    assert_eq!(state, "unsupported");
    assert!(reason.contains("cgroup v2"), "{reason}");

    // A kill that no program can tell the container of: the series is absent, and not 0.
    let container = pod.container("c").unwrap();
    container.cgroup().limit_memory(32 << 20).unwrap();
    let _ = container.run(&observer_lab::actor::Command::Touch { mib: 96 }).unwrap_err();
    assert_eq!(container.cgroup().oom_kills().unwrap(), 1);
    let killed = [("event", "oom_kill"), ("pod", pod.uid())];
    let told = |samples: &Samples| samples.sum("observer_memory_events_total", &killed) >= 1.0;
    let samples = agent.scrape_until(Duration::from_secs(15), told).unwrap();
    assert_eq!(samples.sum("observer_memory_events_total", &killed), 1.0, "{}", agent.log());
    assert_eq!(samples.select("observer_oom_kills_total", &[]).count(), 0);
    let (state, reason) = state_of(&samples, "oom");
    assert_eq!(state, "unsupported");
    assert!(reason.contains("cgroup v2"), "{reason}");
    agent.terminate().unwrap();
}

#[test]
fn a_pods_file_that_is_missing_broken_and_mended() {
    let node = node();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("pods.json");
    let bpffs = BpfFs::create().unwrap();
    let agent = run_with(&AgentOptions {
        bpffs: Some(bpffs.path().to_owned()),
        pods_file: Some(file.clone()),
        ..AgentOptions::default()
    });
    assert!(agent.log().contains("cannot read the pods file"), "{}", agent.log());
    let pod = Pod::create(&node, PodSpec::new("ns", "named-later", &["c"])).unwrap();
    let uid = pod.uid().to_owned();
    let has = |name: &str| {
        let labels = [("pod", name)];
        let has = |samples: &Samples| samples.select("observer_pod_info", &labels).next().is_some();
        let samples = agent.scrape_until(Duration::from_secs(15), has).unwrap();
        assert!(has(&samples), "{name} is not there; the agent's log:\n{}", agent.log());
    };
    // Without a name it is known by its UID.
    has(&uid);
    fs::write(&file, "{\"items\": [\n  \"junk\"").unwrap();
    has(&uid);
    observer_lab::podsfile::write(&file, [&pod]).unwrap();
    has("named-later");
    // Broken again: the names stay. That it was broken once before is in the log already.
    let before = agent.log().len();
    fs::write(&file, "\0\0\0").unwrap();
    let said = || agent.log()[before..].contains("is not a kubelet /pods document");
    let deadline = Instant::now() + Duration::from_secs(30);
    while !said() {
        assert!(Instant::now() < deadline, "{}", agent.log());
        std::thread::sleep(Duration::from_millis(50));
    }
    has("named-later");
    agent.terminate().unwrap();
}

/// A program attached in exclusive mode (without `BPF_F_ALLOW_MULTI`), as an old tool would.
fn attach_exclusively(cgroup: &Path) -> aya::Ebpf {
    use aya::programs::CgroupSkb;
    use std::os::fd::{AsFd, AsRawFd};
    let mut ebpf = observer::kernel::Kernel::load_empty().unwrap();
    let program: &mut CgroupSkb = ebpf.program_mut("empty_egress").unwrap().try_into().unwrap();
    let directory = fs::File::open(cgroup).unwrap();
    // `attr` of BPF_PROG_ATTACH: target_fd, attach_bpf_fd, attach_type, attach_flags (0: exclusive).
    let egress = 1u32;
    let attr =
        [directory.as_raw_fd().cast_unsigned(), program.fd().unwrap().as_fd().as_raw_fd().cast_unsigned(), egress, 0];
    // SAFETY: bpf(2) reads 16 bytes of a live array of plain integers.
    let result = unsafe { libc::syscall(libc::SYS_bpf, 8, attr.as_ptr(), size_of_val(&attr)) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    ebpf
}

#[test]
fn a_cgroup_that_somebody_else_holds_exclusively() {
    let node = node();
    let bpffs = BpfFs::create().unwrap();
    let held = Pod::create(&node, PodSpec::new("ns", "held", &["c"])).unwrap();
    let free = Pod::create(&node, PodSpec::new("ns", "free", &["c"])).unwrap();
    let _program = attach_exclusively(&held.cgroup().unified().unwrap());
    let agent = run_with(&AgentOptions { bpffs: Some(bpffs.path().to_owned()), ..AgentOptions::default() });
    let (state, reason) = probe(&agent);
    assert_eq!(state, "failed");
    assert!(reason.contains("another tool has attached") && reason.contains(held.uid()), "{reason}");
    assert!(agent.scrape().unwrap().sum("observer_agent_attach_errors_total", &[]) >= 1.0);
    // The other pod is counted all the same.
    let to = std::net::SocketAddr::from(([127, 0, 0, 1], 9));
    free.container("c")
        .unwrap()
        .run(&observer_lab::actor::Command::UdpSend {
            to,
            sizes: observer_lab::actor::Sizes::List(vec![100]),
            connected: false,
            pace: observer_lab::actor::Pace::Free,
        })
        .unwrap();
    let samples = agent.scrape().unwrap();
    let sent = samples.sum("observer_traffic_bytes_total", &[("pod", free.uid()), ("direction", "transmit")]);
    assert_eq!(sent, 128.0);
    assert_eq!([&held, &free].map(|pod| attached(&samples, pod)), [["none"], ["cgroup"]]);
    agent.terminate().unwrap();
}
