//! `observer pods`: the sandboxes as a tree, the way `lsns`, `crictl` and `systemd-cgls` would show them together.

use std::{fmt::Write, path::PathBuf, process::ExitCode};

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use crate::{
    config::PathOptions,
    kernel::attach::attached,
    sandbox::{Container, ContainerKind, Hierarchies, QosClass, Sandbox, SandboxTable},
};

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
    let mut table =
        SandboxTable::new(&hierarchies, &paths.procfs, options.pods_file.clone(), String::new(), Vec::new());
    let snapshot = table.scan()?.snapshot;
    let mut sandboxes: Vec<&Sandbox> =
        snapshot.sandboxes().iter().map(AsRef::as_ref).filter(|sandbox| sandbox.alive).collect();
    sandboxes.sort_by(|a, b| (&a.namespace, &a.name, &a.key).cmp(&(&b.namespace, &b.name, &b.key)));
    match options.output {
        Output::Text if sandboxes.is_empty() => println!("no pods on this node ({} cgroups)", hierarchies.mode()),
        Output::Text => sandboxes.iter().for_each(|sandbox| print!("{}", tree(sandbox, &hooks(sandbox)))),
        Output::Json => {
            let list: Vec<Value> = sandboxes.iter().map(|sandbox| document(sandbox, &hooks(sandbox))).collect();
            println!("{}", serde_json::to_string_pretty(&list)?);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What the kernel says is attached: directions that all of the sandbox's attach points have.
fn hooks(sandbox: &Sandbox) -> Vec<String> {
    let mut points = sandbox.attach_points.iter().map(|point| attached(&point.path));
    let first = points.next().unwrap_or_default();
    points.fold(first, |common, point| common.into_iter().filter(|hook| point.contains(hook)).collect())
}

/// The container that the others are compared with: pause, else the first.
fn holder(sandbox: &Sandbox) -> Option<&Container> {
    let pause = sandbox.containers.iter().find(|container| container.kind == ContainerKind::Pause);
    pause.or_else(|| sandbox.containers.first())
}

/// Names of namespaces in which a container is together with the sandbox.
fn shared<'a>(container: &'a Container, sandbox: &Sandbox) -> Vec<&'a str> {
    let Some(holder) = holder(sandbox) else { return Vec::new() };
    container.namespaces.iter().filter(|ns| holder.namespaces.contains(ns)).map(|(name, _)| name.as_str()).collect()
}

fn tree(sandbox: &Sandbox, hooks: &[String]) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write_tree(&mut out, sandbox, hooks);
    out
}

fn write_tree(out: &mut String, sandbox: &Sandbox, hooks: &[String]) -> std::fmt::Result {
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
        let kind = if container.kind == ContainerKind::Pause { "(pause)" } else { container.name.as_str() };
        let pid = container.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
        writeln!(out, "{branch} {kind}  pid {pid}  image {}", or_dash(&container.image))?;
        writeln!(out, "{bar}   id {}", container.id)?;
        writeln!(out, "{bar}   cgroup {}", container.cgroup)?;
        writeln!(out, "{bar}   shares {}", or_dash(&shared(container, sandbox).join(" ")))?;
    }
    writeln!(out)
}

fn document(sandbox: &Sandbox, hooks: &[String]) -> Value {
    let containers: Vec<Value> = sandbox
        .containers
        .iter()
        .filter(|container| container.alive)
        .map(|container| {
            json!({
                "name": container.name,
                "id": container.id,
                "image": container.image,
                "pause": container.kind == ContainerKind::Pause,
                "pid": container.pid,
                "cgroup": container.cgroup,
                "cgroupId": container.cgroup_id,
                "namespaces": container.namespaces.iter().cloned().collect::<std::collections::BTreeMap<_, _>>(),
                "shares": shared(container, sandbox),
            })
        })
        .collect();
    json!({
        "namespace": sandbox.namespace,
        "name": sandbox.name,
        "uid": sandbox.uid,
        "qosClass": sandbox.qos.map(QosClass::as_str),
        "runtime": sandbox.runtime.as_str(),
        "workloadKind": sandbox.workload_kind,
        "workload": sandbox.workload,
        "sandboxId": sandbox.sandbox_id,
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
    use crate::resources::testing;

    #[test]
    fn a_tree_and_a_document_of_the_same_pod() {
        let snapshot = testing::snapshot(vec![("web", vec![testing::container("app", "/kubepods/pod1/a")])]);
        let sandbox = snapshot.sandboxes()[0].as_ref();
        let hooks = ["ingress".to_owned(), "egress".to_owned()];
        let text = tree(sandbox, &hooks);
        assert!(text.contains("app  pid") && text.contains("hooks ingress, egress"), "{text}");
        let json = document(sandbox, &hooks);
        assert_eq!(json["containers"][0]["name"], "app");
        assert_eq!(json["hooks"][1], "egress");
    }
}
