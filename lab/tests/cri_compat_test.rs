//! Pods of a real containerd node at `/metrics/cadvisor` and `/metrics/resource`: the families, types and label names
//! that a kubelet was seen to serve for such pods, the label values that the runtime tells, and the values of the cgroup
//! files. Needs root.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use observer::metrics::compat::{CADVISOR_PATH, MISSING, RESOURCE_PATH};
use observer_lab::agent::{Agent, AgentOptions};
use observer_lab::bpffs::BpfFs;
use observer_lab::cri_node::{CriContainer, CriContainerSpec, CriNode, CriPod, CriPodSpec, IMAGE};
use observer_lab::kubelet::{self, Files, Kind, Shape, Shapes, Subject};
use observer_lab::launch::Launcher;
use observer_lab::metrics_server::{self, Batch};
use observer_lab::samples::{Sample, Samples};

const PATIENCE: Duration = Duration::from_secs(20);
const NAMESPACE: &str = "parity";
/// Families of a CPU quota.
const OF_QUOTA: [&str; 6] = [
    "container_cpu_cfs_burst_periods_total",
    "container_cpu_cfs_burst_seconds_total",
    "container_cpu_cfs_periods_total",
    "container_cpu_cfs_throttled_periods_total",
    "container_cpu_cfs_throttled_seconds_total",
    "container_spec_cpu_quota",
];
const NAMES: [&str; 2] = ["first", "second"];

/// A pod with its containers.
type Filled<'a> = (CriPod<'a>, Vec<CriContainer<'a>>);

/// Two pods of two containers: one of them held to a quota as a whole and in one container, as the kubelet does it.
fn pods<'a>(node: &'a CriNode, files: &Files) -> [Filled<'a>; 2] {
    NAMES.map(|name| {
        let pod = node.pod(&CriPodSpec::new(NAMESPACE, name).label("app", name)).unwrap();
        if name == NAMES[0] {
            files.limit(pod.cgroup()).unwrap();
        }
        // Works a little, then sleeps.
        let work = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo done; exec sleep 10000";
        let app = CriContainerSpec::new("app", &["sh", "-c", work]);
        let app = if name == NAMES[0] { app.limits(500, 64 << 20) } else { app };
        let containers = [app, CriContainerSpec::new("side", &[])].map(|spec| pod.container(&spec).unwrap());
        (pod, containers.into())
    })
}

/// What the runtime says of a pod, and where its files are. The pod comes first.
fn subjects((pod, containers): &Filled<'_>) -> Vec<Subject> {
    let told = pod.status().unwrap().metadata.unwrap();
    let of_pod = (told.namespace.as_str(), told.name.as_str());
    let mut all = vec![
        Subject::new(of_pod, "", "", "", pod.cgroup()),
        Subject::new(of_pod, "", pod.id(), IMAGE, &pod.cgroup_of(pod.id())),
    ];
    for container in containers {
        let told = container.status().unwrap();
        let (metadata, image) = (told.metadata.unwrap(), told.image.unwrap());
        all.push(Subject::new(of_pod, &metadata.name, &told.id, &image.image, &pod.cgroup_of(&told.id)));
    }
    all
}

/// What a kubelet served, on a node of this kind and on the other kind too.
fn kubelet_s(path: &str, hybrid: bool) -> (Shapes, Shapes) {
    let name = path.rsplit('/').next().unwrap();
    let [hybrid_s, v2_s] = ["hybrid", "v2"].map(|kind| {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../observer/tests/fixtures/kubelet");
        let text = std::fs::read_to_string(directory.join(format!("{kind}_{name}.prom"))).unwrap();
        let shapes = Shapes::parse(&text, |_| true).unwrap();
        assert!(shapes.of_pods().count() > 5, "{kind} {name}");
        shapes
    });
    let any = hybrid_s.and(&v2_s);
    (if hybrid { hybrid_s } else { v2_s }, any)
}

fn compare_shapes(agent: &Agent, path: &str, of_limits: &[&str], hybrid: bool) {
    let (here, any) = kubelet_s(path, hybrid);
    let ours = |pod: &'static str| {
        let wanted = move |sample: &Sample| sample.matches(&[("namespace", NAMESPACE), ("pod", pod)]);
        Shapes::parse(&agent.fetch(path).unwrap(), wanted).unwrap()
    };
    let [limited, unlimited] = NAMES.map(ours);
    let more: Vec<&Shape> =
        [&limited, &unlimited].into_iter().flat_map(Shapes::of_pods).filter(|s| !any.has(s)).collect();
    assert!(more.is_empty(), "{path} has what no kubelet has: {more:#?}");
    let missing = |shape: &&Shape| MISSING.iter().any(|row| row.path == path && row.name == shape.family);
    let due: Vec<&Shape> = here.of_pods().filter(|shape| !missing(shape)).collect();
    let absent: Vec<&&Shape> = due.iter().filter(|shape| !limited.has(shape)).collect();
    assert!(absent.is_empty(), "{path} lacks what the kubelet has: {absent:#?}");
    // Without limits no series that tell of them; the kubelet's container_swap_limit_bytes is there all the same.
    let absent: BTreeSet<&str> =
        due.iter().filter(|shape| !unlimited.has(shape)).map(|shape| shape.family.as_str()).collect();
    assert_eq!(absent, BTreeSet::from_iter(of_limits.iter().copied()), "{path}, a pod without limits");
}

/// What is not the same above pods, for the node (true) or a cgroup between (false), and why.
const ABOVE: [(&str, bool, &str); 3] = [
    (
        "container_start_time_seconds",
        false,
        "The kubelet takes the time of a directory, and nobody asks when it began.",
    ),
    ("container_threads", true, "The root has no pids.current. The kubelet serves 0, which is wrong."),
    ("container_threads_max", true, "The root has no pids.max. The kubelet serves 0."),
];

/// What the root of a v2 tree has no file for, and why that is no loss. With v1 it has them.
const V2_ROOT: [(&str, &str); 3] = [
    ("container_memory_max_usage_bytes", "The kubelet serves 0, which is wrong."),
    ("container_spec_cpu_shares", "Nobody shares with the root. The kubelet serves 0."),
    ("container_spec_cpu_period", "The root has no quota. The kubelet serves 0."),
];

/// The node and the cgroups between it and pods, told apart: what the kubelet has is here, and nothing else.
fn compare_above(agent: &Agent, path: &str, hybrid: bool) {
    let (here, any) = kubelet_s(path, hybrid);
    let ours = Shapes::parse(&agent.fetch(path).unwrap(), |_| false).unwrap();
    assert!(ours.of_pods().next().is_none());
    let excepted = |shape: &&Shape| {
        let of = |row: &&(&str, bool, &str)| (row.0, row.1) == (shape.family.as_str(), shape.kind == Kind::Node);
        let of_root = |row: &(&str, &str)| !hybrid && row.0 == shape.family && shape.kind == Kind::Node;
        ABOVE.iter().any(|row| of(&row))
            || V2_ROOT.iter().any(of_root)
            || MISSING.iter().any(|row| row.path == path && row.name == shape.family)
    };
    let absent: Vec<&Shape> =
        here.above_pods().filter(|shape| !ours.has_exactly(shape)).filter(|shape| !excepted(shape)).collect();
    let more: Vec<&Shape> =
        ours.above_pods().filter(|shape| !any.has_exactly(shape)).filter(|shape| !excepted(shape)).collect();
    let short =
        |shapes: &[&Shape]| shapes.iter().map(|shape| format!("{} {:?}", shape.family, shape.kind)).collect::<Vec<_>>();
    assert!(
        absent.is_empty() && more.is_empty(),
        "{path} lacks {:#?} and has {:#?} more",
        short(&absent),
        short(&more)
    );
}

/// Of the file system at the root, what statvfs(3) says, where that is on a device.
fn file_systems(agent: &Agent) {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let root = mounts.lines().find_map(|line| {
        let words: Vec<&str> = line.split(' ').collect();
        (words[1] == "/" && words[0].starts_with("/dev/") && words[2].starts_with("ext")).then(|| words[0].to_owned())
    });
    let Some(device) = root else { return println!("not compared: the root is not on a device") };
    let truth = || {
        let status = rustix::fs::statvfs("/").unwrap();
        let used = (status.f_blocks - status.f_bfree) * status.f_frsize;
        [status.f_blocks * status.f_frsize, used, status.f_files, status.f_ffree].map(|value| value as f64)
    };
    for _ in 0..1_000 {
        let (before, text, after) = (truth(), agent.fetch(CADVISOR_PATH).unwrap(), truth());
        if before != after {
            continue;
        }
        let samples = Samples::parse(&text).unwrap();
        let shown = ["limit_bytes", "usage_bytes", "inodes_total", "inodes_free"].map(|name| {
            let labels = [("device", device.as_str()), ("id", "/"), ("pod", ""), ("container", "")];
            samples.get(&format!("container_fs_{name}"), &labels)
        });
        assert_eq!(shown, before.map(Some), "{device}");
        return;
    }
    panic!("the file system of the root did not stand still for a scrape");
}

/// What metrics-server makes of two readings: a usage for the node and for every container, and when each started.
fn usages(agent: &Agent, pods: &[Filled<'_>]) {
    let read = || -> Batch {
        let asked = SystemTime::now();
        metrics_server::decode(&agent.fetch(RESOURCE_PATH).unwrap(), asked).unwrap()
    };
    let earlier = read();
    std::thread::sleep(Duration::from_secs(1));
    let later = read();
    // An interval that begins with a question and ends with a reading is a little longer than the window.
    let most = 1.5 * std::thread::available_parallelism().unwrap().get() as f64;
    let node = later.node.unwrap().cores_since(&earlier.node.unwrap()).unwrap();
    assert!((0.0..most).contains(&node), "{node} cores of the node");
    for (pod, containers) in pods {
        let metadata = pod.status().unwrap().metadata.unwrap();
        let key = (metadata.namespace, metadata.name);
        let [earlier, later] = [&earlier, &later].map(|batch| &batch.pods[&key]);
        assert_eq!(later.len(), containers.len(), "{key:?}");
        for container in containers {
            let told = container.status().unwrap();
            let name = told.metadata.unwrap().name;
            let (earlier, later) = (earlier[&name], later[&name]);
            let cores = later.cores_since(&earlier).unwrap();
            assert!((0.0..most).contains(&cores), "{cores} cores of {key:?} {name}");
            // The kernel tells the time of boot, from which processes count theirs, in whole seconds.
            let at = |nanos: i64| UNIX_EPOCH + Duration::from_nanos(nanos.try_into().unwrap());
            let begins = at(told.created_at) - Duration::from_secs(1)..=at(told.started_at);
            assert!(begins.contains(&later.started), "{key:?} {name}: {:?} shown, {begins:?}", later.started);
            assert!(later.started < later.measured, "{key:?} {name}");
        }
    }
}

#[test]
fn pods_of_a_runtime_have_the_kubelet_s_series() {
    assert_eq!((kubelet::CADVISOR, kubelet::RESOURCE), (CADVISOR_PATH, RESOURCE_PATH));
    let node = CriNode::create(Launcher::at(env!("CARGO_BIN_EXE_observer-lab"))).unwrap();
    let bpffs = BpfFs::create().unwrap();
    let arguments = ["--cri.endpoint", &node.endpoint()].map(std::ffi::OsString::from).to_vec();
    let options = AgentOptions { bpffs: Some(bpffs.path().to_owned()), arguments, ..AgentOptions::default() };
    let agent = Agent::start(node.launcher(), &options).unwrap();
    let files = Files::detect().unwrap();
    let pods = pods(&node, &files);
    for name in NAMES {
        for container in ["app", "side"] {
            let labels = [("namespace", NAMESPACE), ("pod", name), ("container", container)];
            let named = agent.scrape_until(PATIENCE, |all| all.get("observer_processes", &labels).is_some()).unwrap();
            assert!(named.get("observer_processes", &labels).is_some(), "{labels:?}");
        }
    }
    compare_shapes(&agent, CADVISOR_PATH, &OF_QUOTA, files.memory_is_v1());
    compare_shapes(&agent, RESOURCE_PATH, &["container_swap_limit_bytes"], files.memory_is_v1());
    for path in [CADVISOR_PATH, RESOURCE_PATH] {
        compare_above(&agent, path, files.memory_is_v1());
    }
    usages(&agent, &pods);
    file_systems(&agent);
    for pod in &pods {
        kubelet::compare(&agent, &files, &subjects(pod), pod.1[0].pid()).unwrap();
    }

    // On the node's network the interfaces are the node's, and once for the pod.
    let host = node.pod(&CriPodSpec::new(NAMESPACE, "host").host_network()).unwrap();
    let app = host.container(&CriContainerSpec::new("app", &[])).unwrap();
    let labels = [("namespace", NAMESPACE), ("pod", "host"), ("container", "app")];
    let shown = |all: &Samples| all.get("observer_processes", &labels).is_some();
    agent.wait_until(PATIENCE, "the pod on the host network", shown).unwrap();
    let pid = app.pid();
    kubelet::compare(&agent, &files, &subjects(&(host, vec![app])), pid).unwrap();
}
