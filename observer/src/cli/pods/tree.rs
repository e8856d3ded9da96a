//! The pods as a tree for people. Pure.

use std::fmt::{self, Display};

use super::document::{ContainerLine, Document, Pod};

/// Characters of an id that people use.
const SHORT_ID: usize = 12;

/// The whole text, with a newline at the end.
pub fn text(document: &Document) -> String {
    let place = format!("{} ({} cgroups)", document.tree.display(), document.cgroups);
    if document.pods.is_empty() {
        return format!(
            "No pods below {place}.\n\
             In a container, name the host's file systems with --path.cgroupfs and --path.procfs.\n"
        );
    }
    let containers: usize = document.pods.iter().map(|pod| pod.containers.len()).sum();
    let mut text = format!("{}, {} below {place}\n", count(document.pods.len(), "pod"), count(containers, "container"));
    for pod in &document.pods {
        text.push_str(&format!("\n{}", Drawn(pod)));
    }
    text
}

fn count(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

struct Drawn<'a>(&'a Pod);

impl Display for Drawn<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pod = self.0;
        let slash = if pod.namespace.is_empty() { "" } else { "/" };
        writeln!(f, "{}{slash}{}{}", pod.namespace, pod.name, traits(pod))?;
        if let Some(cgroup) = &pod.cgroup {
            writeln!(f, "│  cgroup    {cgroup}{}", id(pod.cgroup_id))?;
        }
        writeln!(f, "│  network   {}", network(pod))?;
        for hooks in &pod.hooks {
            let attached = if hooks.attached.is_empty() { "none".to_owned() } else { hooks.attached.join(", ") };
            // With a cgroup of its own that is where they are.
            let place = if pod.cgroup.is_some() { String::new() } else { format!(" at {}", hooks.path.display()) };
            writeln!(f, "│  hooks     {attached}{place}")?;
        }
        if pod.hooks.is_empty() {
            writeln!(f, "│  hooks     none: there is no cgroup v2 tree to attach to")?;
        }
        for (at, container) in pod.containers.iter().enumerate() {
            let (branch, stem) = if at + 1 == pod.containers.len() { ("└─", "  ") } else { ("├─", "│ ") };
            writeln!(f, "{branch} {}", title(container))?;
            writeln!(f, "{stem}   cgroup      {}{}", container.cgroup, below(container))?;
            writeln!(f, "{stem}   namespaces  {}", namespaces(container))?;
        }
        Ok(())
    }
}

fn traits(pod: &Pod) -> String {
    let uid = if pod.uid.is_empty() || pod.uid == pod.name { String::new() } else { format!("uid {}", pod.uid) };
    [uid.as_str(), pod.qos, pod.runtime]
        .iter()
        .filter(|part| !part.is_empty())
        .map(|part| format!("  {part}"))
        .collect()
}

fn network(pod: &Pod) -> String {
    let namespace = match pod.netns {
        Some(_) if pod.host_network => return "the node's".into(),
        Some(inode) => format!("namespace {inode}"),
        None => return "not known (no process is running, or it may not be looked at: run as root)".into(),
    };
    let addresses: Vec<String> = pod.addresses.iter().map(ToString::to_string).collect();
    if addresses.is_empty() {
        format!("{namespace}, no address")
    } else {
        format!("{namespace}, {}", addresses.join(", "))
    }
}

fn title(container: &ContainerLine) -> String {
    let short: String = container.id.chars().take(SHORT_ID).collect();
    let name = match (container.pause, container.name == short) {
        (true, _) => format!("(pause)  {short}"),
        (false, true) => short,
        (false, false) => format!("{}  {short}", container.name),
    };
    let pid = container.pid.map_or_else(|| "no process".to_owned(), |pid| format!("pid {pid}"));
    let image = if container.image.is_empty() { String::new() } else { format!("  {}", container.image) };
    format!("{name}  {pid}{image}")
}

fn below(container: &ContainerLine) -> String {
    match container.nested_cgroups {
        0 => id(container.cgroup_id),
        more => format!("{}, {more} below it", id(container.cgroup_id)),
    }
}

fn id(cgroup_id: u64) -> String {
    if cgroup_id == 0 { String::new() } else { format!(" (id {cgroup_id})") }
}

fn namespaces(container: &ContainerLine) -> String {
    let parts = [("the pod's", &container.shared), ("its own", &container.own), ("the node's", &container.node)];
    let parts: Vec<String> = parts
        .iter()
        .filter(|(_, names)| !names.is_empty())
        .map(|(whose, names)| format!("{whose} {}", names.join(" ")))
        .collect();
    if parts.is_empty() { "not known".into() } else { parts.join("; ") }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::cli::pods::document::Hooks;

    fn container(name: &str, pause: bool) -> ContainerLine {
        ContainerLine {
            name: name.into(),
            id: "0123456789abcdef".into(),
            image: if pause { String::new() } else { "i:1".into() },
            pause,
            cgroup: format!("/kubepods/podu/{name}"),
            cgroup_id: 8,
            nested_cgroups: 2,
            pid: Some(17),
            started: None,
            shared: vec!["net".into(), "ipc".into()],
            own: vec!["mnt".into()],
            node: vec![],
        }
    }

    #[test]
    fn a_pod_is_a_tree() {
        let pod = Pod {
            key: "u".into(),
            namespace: "shop".into(),
            name: "web".into(),
            uid: "u".into(),
            qos: "Burstable",
            runtime: "containerd",
            sandbox_id: String::new(),
            cgroup: Some("/kubepods/podu".into()),
            cgroup_id: 7,
            netns: Some(99),
            host_network: false,
            addresses: vec![IpAddr::from([10, 0, 0, 1])],
            hooks: vec![Hooks { path: "/t/kubepods/podu".into(), attached: vec!["ingress".into(), "egress".into()] }],
            containers: vec![container("pause", true), container("app", false)],
        };
        let document = Document { cgroups: "v2".into(), tree: "/t".into(), pods: vec![pod] };
        assert_eq!(
            text(&document),
            "1 pod, 2 containers below /t (v2 cgroups)\n\
             \n\
             shop/web  uid u  Burstable  containerd\n\
             │  cgroup    /kubepods/podu (id 7)\n\
             │  network   namespace 99, 10.0.0.1\n\
             │  hooks     ingress, egress\n\
             ├─ (pause)  0123456789ab  pid 17\n\
             │    cgroup      /kubepods/podu/pause (id 8), 2 below it\n\
             │    namespaces  the pod's net ipc; its own mnt\n\
             └─ app  0123456789ab  pid 17  i:1\n\
             \x20    cgroup      /kubepods/podu/app (id 8), 2 below it\n\
             \x20    namespaces  the pod's net ipc; its own mnt\n"
        );
    }

    #[test]
    fn no_pods_is_said() {
        let document = Document { cgroups: "v2".into(), tree: "/t".into(), pods: vec![] };
        assert!(text(&document).starts_with("No pods below /t (v2 cgroups)."));
    }
}
