//! A real Prometheus reads the agent: every endpoint is scraped, promtool finds nothing that it does not find at the
//! kubelet, and the recording rules give data. Needs root, and `prometheus` with `promtool` (Debian: prometheus).

mod support;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use observer_lab::actor::{self, UnixKind};
use observer_lab::agent::{Agent, AgentOptions};
use observer_lab::bpffs::BpfFs;
use observer_lab::launch::Launcher;
use observer_lab::node::{ADDRESS_V4, Node};
use observer_lab::pod::{Pod, PodSpec};
use observer_lab::{podsfile, process};
use serde_json::Value;
use support::node;
use tempfile::TempDir;

/// The jobs, with the paths that they scrape.
const JOBS: [(&str, &str); 3] =
    [("observer", "/metrics"), ("cadvisor", "/metrics/cadvisor"), ("resource", "/metrics/resource")];
/// Longer than this takes nothing here.
const PATIENCE: Duration = Duration::from_secs(90);
const NODE: &str = "node-one";

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The pods, and an agent that knows them.
struct Stage {
    agent: Agent,
    pods: Vec<Pod>,
    _directory: TempDir,
    _bpffs: BpfFs,
    _node: Node,
}

fn stage() -> Stage {
    let node = node();
    let (directory, bpffs) = (tempfile::tempdir().unwrap(), BpfFs::create().unwrap());
    let web = PodSpec::new("shop", "web-1", &["app", "proxy"]).owner("StatefulSet", "web");
    let pods = vec![
        Pod::create(&node, web).unwrap(),
        Pod::create(&node, PodSpec::new("kube-system", "agent-1", &["agent"]).host_network()).unwrap(),
    ];
    let pods_file = directory.path().join("pods.json");
    podsfile::write(&pods_file, &pods).unwrap();
    let options = AgentOptions {
        pods_file: Some(pods_file),
        bpffs: Some(bpffs.path().to_owned()),
        // What is off by default is shown too.
        arguments: ["--node.name", NODE, "--resources.runqueue", "--traffic.unix-sockets"].map(Into::into).to_vec(),
        ..AgentOptions::default()
    };
    let agent = Agent::start(&Launcher::at(env!("CARGO_BIN_EXE_observer-lab")), &options).unwrap();
    Stage { agent, pods, _directory: directory, _bpffs: bpffs, _node: node }
}

/// What promtool complains about, line by line.
fn complaints(text: &str) -> BTreeSet<String> {
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool is not here: `cargo xtask test` installs Debian's package prometheus");
    promtool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    let lines: BTreeSet<String> = said.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect();
    assert_eq!(output.status.success(), lines.is_empty(), "{said}");
    lines
}

/// Gives the families that are off by default something to show, as far as this kernel has them.
fn optional(stage: &Stage) {
    let volume = tempfile::tempdir().unwrap();
    let path = volume.path().join("socket");
    let (app, proxy) = (stage.pods[0].container("app").unwrap(), stage.pods[0].container("proxy").unwrap());
    app.run(&actor::Command::UnixServe { path: path.clone(), kind: UnixKind::Stream }).unwrap();
    for (probe, family) in
        [("runqueue", "observer_cpu_runqueue_seconds_count{"), ("unix", "observer_unix_socket_bytes_total{")]
    {
        let state = [("probe", probe)];
        let samples = stage.agent.scrape().unwrap();
        if samples.select("observer_agent_probe_state", &state).any(|sample| sample.label("state") != "ok") {
            support::skipped(&format!("{probe} does not run on this kernel"));
            continue;
        }
        let deadline = Instant::now() + PATIENCE;
        while !stage.agent.fetch("/metrics").unwrap().contains(family) {
            assert!(Instant::now() < deadline, "no {family} of pods: {}", stage.agent.log());
            let send = actor::Command::UnixSend { path: path.clone(), kind: UnixKind::Stream, messages: 10, size: 100 };
            proxy.run(&send).unwrap();
        }
    }
}

#[test]
fn promtool_finds_nothing_that_it_does_not_find_at_the_kubelet() {
    let stage = stage();
    let fixtures = repository().join("observer/tests/fixtures/kubelet");
    let kubelet = |name: &str| complaints(&std::fs::read_to_string(fixtures.join(name)).unwrap());
    optional(&stage);
    let known = [
        ("/metrics", BTreeSet::new()),
        ("/metrics/cadvisor", &kubelet("hybrid_cadvisor.prom") | &kubelet("v2_cadvisor.prom")),
        ("/metrics/resource", &kubelet("hybrid_resource.prom") | &kubelet("v2_resource.prom")),
    ];
    assert!(!known[1].1.is_empty(), "promtool finds nothing at the kubelet: it does not look");
    for (path, known) in known {
        let text = stage.agent.fetch(path).unwrap();
        assert!(text.contains("pod=\"web-1\""), "{path} does not show the pod");
        let new: Vec<String> = complaints(&text).difference(&known).cloned().collect();
        assert!(new.is_empty(), "{path}: {new:#?}");
    }
}

/// A Prometheus on loopback that scrapes the agent every second. It ends when it is dropped.
struct Prometheus {
    child: Child,
    address: String,
    _directory: TempDir,
    log: PathBuf,
}

impl Prometheus {
    fn start(agent: &Agent) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let rules = repository().join("deploy/prometheus/rules.yaml").canonicalize().unwrap();
        let mut config = format!(
            "global: {{ scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s }}\n\
             rule_files: [{rules:?}]\nscrape_configs:\n"
        );
        for (job, path) in JOBS {
            let target = agent.address();
            writeln!(
                config,
                "- {{ job_name: {job}, metrics_path: {path}, static_configs: [{{ targets: [\"{target}\"] }}] }}"
            )
            .unwrap();
        }
        let file = directory.path().join("prometheus.yml");
        std::fs::write(&file, config).unwrap();
        let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let log = directory.path().join("log");
        let mut command = Launcher::at(env!("CARGO_BIN_EXE_observer-lab")).guarded(&program("prometheus"));
        command
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", directory.path().join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&log).unwrap());
        let child = process::spawn(command).unwrap();
        Self { child, address, _directory: directory, log }
    }

    /// The data of an answer of the API; `None` until Prometheus answers.
    fn get(&self, path: &str, parameters: &[(&str, &str)]) -> Option<Value> {
        let url = format!("http://{}/api/v1/{path}", self.address);
        let mut response = ureq::get(&url).query_pairs(parameters.iter().copied()).call().ok()?;
        let mut answer: Value = serde_json::from_str(&response.body_mut().read_to_string().ok()?).ok()?;
        Some(answer["data"].take())
    }

    /// The result of an instant query.
    fn ask(&self, expression: &str) -> Option<Vec<Value>> {
        Some(self.get("query", &[("query", expression)])?["result"].as_array()?.clone())
    }

    /// All rules, with their health.
    fn rules(&self) -> Vec<Value> {
        let data = self.get("rules", &[]).unwrap();
        let groups = data["groups"].as_array().unwrap().iter();
        groups.flat_map(|group| group["rules"].as_array().unwrap().clone()).collect()
    }

    /// Asks until `enough` says yes.
    fn until(&self, expression: &str, enough: impl Fn(&[Value]) -> bool) -> Vec<Value> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let result = self.ask(expression).unwrap_or_default();
            if enough(&result) {
                return result;
            }
            let log = || std::fs::read_to_string(&self.log).unwrap_or_default();
            assert!(Instant::now() < deadline, "{expression}: {result:#?}; Prometheus' log:\n{}", log());
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn program(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|directory| directory.join(name))
        .find(|path| path.is_file())
        .unwrap_or_else(|| panic!("{name} is not in PATH: `cargo xtask test` installs Debian's package prometheus"))
}

/// The values of these labels, for every series.
fn labels(result: &[Value], names: &[&str]) -> BTreeSet<Vec<String>> {
    let of = |series: &Value| -> Vec<String> {
        names.iter().map(|name| series["metric"][*name].as_str().unwrap_or_default().to_owned()).collect()
    };
    result.iter().map(of).collect()
}

fn set(rows: &[&[&str]]) -> BTreeSet<Vec<String>> {
    rows.iter().map(|row| row.iter().map(ToString::to_string).collect()).collect()
}

fn value(series: &Value) -> f64 {
    series["value"][1].as_str().unwrap().parse().unwrap()
}

/// Half a CPU for a container, in whatever hierarchy.
fn hold(container: &observer_lab::pod::Container) {
    let write = |file: &str, value: &str| {
        let files: Vec<PathBuf> = container.cgroup().directories().map(|directory| directory.join(file)).collect();
        let there = files.iter().find(|file| file.exists());
        there.map(|file| std::fs::write(file, value).unwrap()).is_some()
    };
    assert!(write("cpu.cfs_quota_us", "50000") || write("cpu.max", "50000 100000"));
}

#[test]
fn prometheus_scrapes_every_endpoint_and_its_rules_give_data() {
    let stage = stage();
    let web = &stage.pods[0];
    let app = web.container("app").unwrap();
    hold(app);
    let often = Duration::from_millis(100);
    app.start(vec![actor::Command::Burn { cpu_ms: 60 }], often, None).unwrap();
    let ping = actor::Command::Ping { to: ADDRESS_V4.0.into(), count: 1, payload: 100, raw: false };
    web.container("proxy").unwrap().start(vec![ping], often, None).unwrap();

    let prometheus = Prometheus::start(&stage.agent);
    let up = prometheus.until("up == 1", |result| result.len() == JOBS.len());
    assert_eq!(labels(&up, &["job"]), set(&[&["observer"], &["cadvisor"], &["resource"]]));

    // Pods of other runs on this machine have no namespace here: nobody names them to this agent.
    let containers: &[&[&str]] = &[
        &["shop", "web-1", "app", NODE],
        &["shop", "web-1", "proxy", NODE],
        &["kube-system", "agent-1", "agent", NODE],
    ];
    for rule in [
        "node_namespace_pod_container:container_cpu_usage_seconds_total:sum_irate",
        "node_namespace_pod_container:container_cpu_usage_seconds_total:sum_rate5m",
        "node_namespace_pod_container:container_memory_working_set_bytes",
        "node_namespace_pod_container:container_memory_rss",
        "node_namespace_pod_container:container_memory_cache",
        "node_namespace_pod_container:container_memory_swap",
    ] {
        let result = prometheus.until(rule, |result| result.len() >= containers.len());
        assert_eq!(labels(&result, &["namespace", "pod", "container", "node"]), set(containers), "{rule}");
    }
    // The pod on the host network has the node's interfaces, and is left out.
    for direction in ["receive", "transmit"] {
        let rule = format!("namespace_pod:container_network_{direction}_bytes_total:sum_irate");
        let result = prometheus.until(&rule, |result| result.len() == 1 && value(&result[0]) > 0.0);
        assert_eq!(labels(&result, &["namespace", "pod"]), set(&[&["shop", "web-1"]]), "{rule}");
    }
    let workload = "namespace_workload:container_network_transmit_bytes_total:sum_irate";
    let result = prometheus.until(workload, |result| !result.is_empty());
    assert_eq!(labels(&result, &["namespace", "workload_kind", "workload"]), set(&[&["shop", "StatefulSet", "web"]]));
    let throttled = "namespace_pod_container:container_cpu_cfs_throttled_periods:ratio_increase5m{namespace=\"shop\"}";
    let result = prometheus.until(throttled, |result| result.len() == 1 && value(&result[0]) > 0.0);
    assert_eq!(labels(&result, &["namespace", "pod", "container"]), set(&[&["shop", "web-1", "app"]]));

    // Every rule of the file was asked for, and none failed.
    let rules = prometheus.rules();
    assert_eq!(rules.len(), 10);
    for rule in rules {
        assert_eq!(rule["health"], "ok", "{rule:#}");
    }
    // The other path has the same containers.
    let same = "container_memory_working_set_bytes{job=\"resource\", namespace=~\"shop|kube-system\"}";
    assert_eq!(prometheus.until(same, |result| result.len() >= 3).len(), containers.len());
}
