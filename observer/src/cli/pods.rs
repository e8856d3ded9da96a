//! `observer pods`: the sandboxes as a tree, the way `lsns`, `crictl` and `systemd-cgls` would show them together.

use std::{
    fmt::Write,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::shares::{Namespaces, Sharing, by_namespace, called, in_words};
use crate::{
    config::{PathOptions, SourceOptions},
    identity::{Names, PodsFile},
    kernel::{
        attach::attached,
        interface::attached_at,
        links::{self, HostLink},
    },
    metrics::{AgentMetrics, BuildInfo, ProbeState},
    sandbox::{
        Container, ContainerKind, Hierarchies, Hook, QosClass, Sandbox, SandboxTable,
        process::{self, INIT},
    },
};

/// How long the sources of names may take to tell their pods.
const NAMES_WAIT: Duration = Duration::from_secs(2);

/// Options of `observer pods`.
#[derive(Debug, Args)]
pub struct PodsOptions {
    /// How to print it.
    #[arg(short = 'o', long = "output", value_enum, default_value_t = Output::Text)]
    output: Output,
    /// A kubelet `/pods` document that names pods.
    #[arg(long = "pods.file", value_name = "FILE")]
    pods_file: Option<PathBuf>,
    #[command(flatten)]
    sources: SourceOptions,
    #[command(flatten)]
    paths: PathOptions,
}

/// A way to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// A tree for people.
    Text,
    /// JSON for machines.
    Json,
}

/// Prints the sandboxes that are there now.
///
/// # Errors
/// When there is no cgroup tree, or it cannot be read.
pub(super) fn run(options: &PodsOptions) -> anyhow::Result<ExitCode> {
    let paths = &options.paths;
    let hierarchies = Hierarchies::detect(&paths.procfs, &paths.cgroupfs)?;
    let mut table = SandboxTable::new(&hierarchies, &paths.procfs, names(options), String::new(), Vec::new());
    let snapshot = table.scan()?.snapshot;
    let mut sandboxes: Vec<&Sandbox> =
        snapshot.sandboxes().iter().map(AsRef::as_ref).filter(|sandbox| sandbox.alive).collect();
    sandboxes.sort_by(|a, b| (&a.namespace, &a.name, &a.key).cmp(&(&b.namespace, &b.name, &b.key)));
    // Without them no interface is shown to be attached to.
    let links = links::read().unwrap_or_default();
    let hooks = |sandbox: &Sandbox| hooks(sandbox, &paths.procfs, &links);
    let sharing = Sharing::of(&sandboxes, node_namespaces(&paths.procfs));
    match options.output {
        Output::Text if sandboxes.is_empty() => println!("no pods on this node ({} cgroups)", hierarchies.mode()),
        Output::Text => sandboxes.iter().for_each(|sandbox| print!("{}", tree(sandbox, &hooks(sandbox), &sharing))),
        Output::Json => {
            let list: Vec<Value> =
                sandboxes.iter().map(|sandbox| document(sandbox, &hooks(sandbox), &sharing)).collect();
            println!("{}", serde_json::to_string_pretty(&list)?);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The node's namespaces; ours where the node's are closed to us.
fn node_namespaces(procfs: &Path) -> Namespaces {
    let own = || i32::try_from(std::process::id()).ok();
    let read = |pid| process::read(procfs, pid).map(|facts| facts.namespaces).filter(|found| !found.is_empty());
    read(INIT).or_else(|| read(own()?)).unwrap_or_default()
}

/// All sources that know this node's pods, each asked once. What goes wrong is said on standard error; the pods are shown
/// all the same.
fn names(options: &PodsOptions) -> Names {
    let metrics = Arc::new(AgentMetrics::new(BuildInfo::default()));
    let following = options.sources.follow_own_pods(&metrics);
    following.wait_first(NAMES_WAIT);
    metrics.probes().iter().filter(|probe| probe.state == ProbeState::Failed).for_each(|probe| {
        eprintln!("observer: {}", probe.reason);
    });
    Names::new(PodsFile::new(options.pods_file.clone()), following.sources())
}

/// What the kernel says is attached: directions that all of the sandbox's attach points have, or the interface.
fn hooks(sandbox: &Sandbox, procfs: &Path, links: &[HostLink]) -> Vec<String> {
    if sandbox.hook == Hook::Interface {
        let ends = links::ends_of(links, &sandbox.netns_paths(procfs), &sandbox.told.host_interface);
        let counted =
            !ends.is_empty() && ends.iter().all(|end| attached_at(end.index).is_ok_and(|programs| programs == 2));
        return counted.then(|| "interface".to_owned()).into_iter().collect();
    }
    let mut points = sandbox.attach_points.iter().map(|point| attached(&point.path));
    let first = points.next().unwrap_or_default();
    points.fold(first, |common, point| common.into_iter().filter(|hook| point.contains(hook)).collect())
}

fn tree(sandbox: &Sandbox, hooks: &[String], sharing: &Sharing<'_>) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write_tree(&mut out, sandbox, hooks, sharing);
    out
}

fn write_tree(out: &mut String, sandbox: &Sandbox, hooks: &[String], sharing: &Sharing<'_>) -> std::fmt::Result {
    let or_dash = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
    let name = if sandbox.namespace.is_empty() {
        sandbox.name.clone()
    } else {
        format!("{}/{}", sandbox.namespace, sandbox.name)
    };
    writeln!(out, "{name}")?;
    let addresses: Vec<String> = sandbox.addresses.iter().map(ToString::to_string).collect();
    let network = if sandbox.host_network { "host network".to_owned() } else { or_dash(&addresses.join(", ")) };
    writeln!(
        out,
        "│  uid {}  qos {}  runtime {}  owner {}",
        or_dash(&sandbox.uid),
        sandbox.qos.map_or("-", QosClass::as_str),
        or_dash(sandbox.runtime.as_str()),
        or_dash([sandbox.workload_kind.as_str(), sandbox.workload.as_str()].join("/").trim_matches('/')),
    )?;
    let netns = sandbox.netns.map_or_else(|| "-".to_owned(), |inode| inode.to_string());
    writeln!(out, "│  network {network}  netns {netns}")?;
    writeln!(out, "│  cgroup {}", sandbox.cgroup.as_deref().unwrap_or("-"))?;
    let attached = if hooks.is_empty() { "none".to_owned() } else { hooks.join(", ") };
    writeln!(out, "│  hooks {attached}")?;
    let living: Vec<&Container> = sandbox.containers.iter().filter(|container| container.alive).collect();
    for (at, container) in living.iter().enumerate() {
        let last = at + 1 == living.len();
        let (branch, bar) = if last { ("└─", "  ") } else { ("├─", "│ ") };
        let pid = container.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
        writeln!(out, "{branch} {}  pid {pid}  image {}", called(container), or_dash(&container.image))?;
        writeln!(out, "{bar}   id {}", container.id)?;
        writeln!(out, "{bar}   cgroup {}", container.cgroup)?;
        let namespaces = container.namespaces.iter().map(|(name, inode)| format!("{name} {inode}"));
        writeln!(out, "{bar}   namespaces {}", or_dash(&namespaces.collect::<Vec<_>>().join(", ")))?;
        writeln!(out, "{bar}   shares {}", or_dash(&in_words(&sharing.shares(container, sandbox))))?;
    }
    writeln!(out)
}

fn document(sandbox: &Sandbox, hooks: &[String], sharing: &Sharing<'_>) -> Value {
    let containers: Vec<Value> = sandbox
        .containers
        .iter()
        .filter(|container| container.alive)
        .map(|container| {
            json!({
                "name": container.name,
                "id": container.id,
                "image": container.image,
                "attempt": container.attempt,
                "requests": { "cpuCores": container.requests.cores(), "memoryBytes": container.requests.memory_bytes },
                "limits": { "cpuCores": container.limits.cores(), "memoryBytes": container.limits.memory_bytes },
                "pause": container.kind == ContainerKind::Pause,
                "pid": container.pid,
                "cgroup": container.cgroup,
                "cgroupId": container.cgroup_id,
                "namespaces": container.namespaces.iter().cloned().collect::<std::collections::BTreeMap<_, _>>(),
                "shares": by_namespace(&sharing.shares(container, sandbox)),
            })
        })
        .collect();
    json!({
        "namespace": sandbox.namespace,
        "name": sandbox.name,
        "uid": sandbox.uid,
        "phase": sandbox.phase,
        "runtimeClass": sandbox.runtime_class,
        "qosClass": sandbox.qos.map(QosClass::as_str),
        "runtime": sandbox.runtime.as_str(),
        "workloadKind": sandbox.workload_kind,
        "workload": sandbox.workload,
        "sandboxId": sandbox.sandbox_id,
        "runtimeHandler": sandbox.runtime_handler,
        "hostInterface": sandbox.told.host_interface,
        "networkNamespacePath": sandbox.told.netns,
        "labels": *sandbox.labels,
        "annotations": *sandbox.annotations,
        "hostNetwork": sandbox.host_network,
        "addresses": sandbox.addresses,
        "netns": sandbox.netns,
        "cgroup": sandbox.cgroup,
        "hooks": hooks,
        "containers": containers,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        identity::{Limits, Requests},
        resources::testing,
    };

    fn namespaces(of: &[(&str, u64)]) -> Vec<(String, u64)> {
        of.iter().map(|(name, inode)| ((*name).to_owned(), *inode)).collect()
    }

    fn pod() -> Sandbox {
        let mut pause = testing::container("0123", "/kubepods/podu/0123");
        pause.kind = ContainerKind::Pause;
        pause.image = "pause:3.10".into();
        pause.pid = Some(41);
        pause.namespaces = namespaces(&[("net", 7), ("ipc", 8), ("pid", 20), ("user", 3)]);
        let mut app = testing::container("app", "/kubepods/podu/app");
        app.pid = Some(42);
        app.image = "web:1".into();
        app.namespaces = namespaces(&[("net", 7), ("ipc", 8), ("pid", 1), ("user", 3)]);
        app.requests = Requests { cpu_millis: Some(250), memory_bytes: None };
        app.limits = Limits { cpu_millis: Some(1500), memory_bytes: Some(1 << 20) };
        let mut ended = testing::container("ended", "/kubepods/podu/ended");
        ended.alive = false;
        let side = testing::container("side", "/kubepods/podu/side");
        let mut pod = testing::sandbox("web", vec![pause, app, ended, side]);
        pod.uid = "u".into();
        pod.cgroup = Some("/kubepods/podu".into());
        pod.addresses = vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()];
        pod.netns = Some(7);
        pod.workload_kind = "Deployment".into();
        pod.workload = "web".into();
        pod.phase = "Running".into();
        pod.runtime_class = "slow".into();
        pod
    }

    fn sharing<'a>(all: &[&'a Sandbox]) -> Sharing<'a> {
        Sharing::of(all, namespaces(&[("net", 2), ("ipc", 4), ("pid", 1), ("user", 3)]))
    }

    #[test]
    fn a_tree() {
        let (pod, hooks) = (pod(), ["ingress".to_owned(), "egress".to_owned()]);
        assert_eq!(
            tree(&pod, &hooks, &sharing(&[&pod])),
            "\
n/web
│  uid u  qos Burstable  runtime -  owner Deployment/web
│  network 10.0.0.1, fd00::1  netns 7
│  cgroup /kubepods/podu
│  hooks ingress, egress
├─ (pause)  pid 41  image pause:3.10
│    id 0123
│    cgroup /kubepods/podu/0123
│    namespaces net 7, ipc 8, pid 20, user 3
│    shares net ipc with app; user with (node), app
├─ app  pid 42  image web:1
│    id app
│    cgroup /kubepods/podu/app
│    namespaces net 7, ipc 8, pid 1, user 3
│    shares net ipc with (pause); pid with (node); user with (node), (pause)
└─ side  pid -  image -
     id side
     cgroup /kubepods/podu/side
     namespaces -
     shares -

"
        );
        let bare = tree(&testing::sandbox("bare", vec![]), &[], &sharing(&[]));
        assert!(bare.contains("uid -") && bare.contains("owner -") && bare.contains("hooks none"), "{bare}");
    }

    #[test]
    fn a_document() {
        let pod = pod();
        let mut joined = testing::container("joined", "/docker/joined");
        joined.namespaces = namespaces(&[("net", 7), ("user", 3)]);
        let joined = testing::sandbox("other", vec![joined]);
        let sharing = sharing(&[&pod, &joined]);
        let json = document(&pod, &["interface".to_owned()], &sharing);
        assert_eq!((&json["phase"], &json["runtimeClass"]), (&json!("Running"), &json!("slow")));
        assert_eq!((&json["hooks"], &json["qosClass"]), (&json!(["interface"]), &json!("Burstable")));
        let containers = json["containers"].as_array().unwrap();
        let names: Vec<_> = containers.iter().map(|container| &container["name"]).collect();
        assert_eq!(names, ["0123", "app", "side"], "what has ended is not shown");
        assert_eq!(containers[1]["namespaces"], json!({ "net": 7, "ipc": 8, "pid": 1, "user": 3 }));
        assert_eq!(containers[1]["requests"], json!({ "cpuCores": 0.25, "memoryBytes": null }));
        assert_eq!(containers[1]["limits"], json!({ "cpuCores": 1.5, "memoryBytes": 1 << 20 }));
        let with_pause = json!(["(pause)"]);
        assert_eq!(
            containers[1]["shares"],
            json!({
                "net": ["(pause)", "n/other/joined"],
                "ipc": with_pause,
                "pid": ["(node)"],
                "user": ["(node)", "(pause)"],
            })
        );
        assert_eq!((&containers[0]["pause"], &containers[2]["shares"]), (&json!(true), &json!({})));
        let text = tree(&joined, &[], &sharing);
        assert!(text.contains("shares net with n/web/(pause), n/web/app; user with (node)"), "{text}");
    }
}
