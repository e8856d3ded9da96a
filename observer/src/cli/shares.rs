//! Who shares which namespaces with whom. Pure.

use std::collections::{BTreeMap, HashMap};

use crate::sandbox::{Container, ContainerKind, Sandbox, SandboxKey};

/// Who stands for the node. No container can be called so: its name is a DNS label (RFC 1123).
pub(super) const NODE: &str = "(node)";
/// Who stands for the container that holds the sandbox.
const PAUSE: &str = "(pause)";
/// Namespaces that are looked for in other pods too: who has them reaches the pod's network, its memory, its processes.
const ACROSS: [&str; 3] = ["net", "ipc", "pid"];
/// Containers of other pods that are named for one namespace; of more it is only said how many there are.
const MOST: usize = 8;

/// Namespaces by name, with their inode numbers.
pub(super) type Namespaces = Vec<(String, u64)>;

/// Namespaces by name, each with those who have it too.
pub(super) type Shares<'a> = Vec<(&'a str, Vec<String>)>;

/// How a container is called among those of its pod.
pub(super) fn called(container: &Container) -> &str {
    if container.kind == ContainerKind::Pause { PAUSE } else { &container.name }
}

/// Who is in which namespace.
pub(super) struct Sharing<'a> {
    node: Namespaces,
    /// Living containers by namespace, with their sandboxes.
    across: HashMap<(&'a str, u64), Vec<(&'a Sandbox, &'a Container)>>,
}

impl<'a> Sharing<'a> {
    /// Of these sandboxes and of the node.
    pub(super) fn of(sandboxes: &[&'a Sandbox], node: Namespaces) -> Self {
        let mut across: HashMap<_, Vec<_>> = HashMap::new();
        for sandbox in sandboxes.iter().copied() {
            for container in sandbox.containers.iter().filter(|container| container.alive) {
                let looked_for = container.namespaces.iter().filter(|(name, _)| ACROSS.contains(&name.as_str()));
                for (name, inode) in looked_for {
                    across.entry((name.as_str(), *inode)).or_default().push((sandbox, container));
                }
            }
        }
        Self { node, across }
    }

    /// The namespaces of a container that are not its alone, each with those who have it too: the node, living containers
    /// of the same pod, and those of other pods, unless the node has it: then many do. In the order of the container's
    /// namespaces; empty where none is known.
    pub(super) fn shares<'b>(&self, container: &'b Container, sandbox: &Sandbox) -> Shares<'b> {
        let others = || sandbox.containers.iter().filter(|other| other.alive && other.cgroup != container.cgroup);
        let with = |namespace: &(String, u64)| {
            let the_node = self.node.contains(namespace).then_some(NODE);
            let containers = others().filter(|other| other.namespaces.contains(namespace)).map(called);
            let further = if the_node.is_none() { self.of_others(namespace, &sandbox.key) } else { Vec::new() };
            the_node.into_iter().chain(containers).map(str::to_owned).chain(further).collect::<Vec<_>>()
        };
        let all = container.namespaces.iter().map(|namespace| (namespace.0.as_str(), with(namespace)));
        all.filter(|(_, with)| !with.is_empty()).collect()
    }

    /// Containers of other sandboxes than this one: `namespace/pod/container`, and how many more there are than
    /// [`MOST`], as `(3 more)`.
    fn of_others(&self, (name, inode): &(String, u64), own: &SandboxKey) -> Vec<String> {
        let all = self.across.get(&(name.as_str(), *inode)).map(Vec::as_slice).unwrap_or_default();
        let others: Vec<_> = all.iter().filter(|(sandbox, _)| sandbox.key != *own).collect();
        let named = others.iter().take(MOST).map(|(sandbox, container)| {
            let parts = [sandbox.namespace.as_str(), sandbox.name.as_str(), called(container)];
            parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/")
        });
        let more = others.len().saturating_sub(MOST);
        named.chain((more > 0).then(|| format!("({more} more)"))).collect()
    }
}

/// The same in words: `net ipc with (pause), side; user with (node)`.
pub(super) fn in_words(shares: &[(&str, Vec<String>)]) -> String {
    let mut groups: Vec<(Vec<&str>, &[String])> = Vec::new();
    for (namespace, with) in shares {
        match groups.iter_mut().find(|(_, known)| known == with) {
            Some((namespaces, _)) => namespaces.push(namespace),
            None => groups.push((vec![namespace], with)),
        }
    }
    let words: Vec<String> =
        groups.iter().map(|(namespaces, with)| format!("{} with {}", namespaces.join(" "), with.join(", "))).collect();
    words.join("; ")
}

/// The same for machines: with whom, by namespace.
pub(super) fn by_namespace<'a>(shares: &[(&'a str, Vec<String>)]) -> BTreeMap<&'a str, Vec<String>> {
    shares.iter().cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::testing;

    fn container(name: &str, namespaces: &[(&str, u64)]) -> Container {
        let namespaces = namespaces.iter().map(|(name, inode)| ((*name).to_owned(), *inode)).collect();
        Container { namespaces, ..testing::container(name, &format!("/{name}")) }
    }

    #[test]
    fn with_each_other_without_pause_and_with_the_node() {
        let mut ended = container("ended", &[("net", 10)]);
        ended.alive = false;
        let sandbox = testing::sandbox(
            "p",
            vec![
                container("a", &[("net", 10), ("ipc", 11), ("pid", 1), ("mnt", 12)]),
                container("b", &[("net", 10), ("ipc", 11), ("pid", 1), ("mnt", 13)]),
                container("c", &[("net", 10), ("ipc", 99), ("mnt", 14)]),
                container("alone", &[("net", 12)]),
                ended,
            ],
        );
        let node = vec![("pid".to_owned(), 1), ("net".to_owned(), 2)];
        let sharing = Sharing::of(&[&sandbox], node);
        let of = |at: usize| in_words(&sharing.shares(&sandbox.containers[at], &sandbox));
        assert_eq!(of(0), "net with b, c; ipc with b; pid with (node), b");
        assert_eq!(of(1), "net with a, c; ipc with a; pid with (node), a");
        assert_eq!(of(2), "net with a, b");
        assert_eq!(of(3), "", "another kind of namespace may have the same number");
        let unknown = Sharing::of(&[&sandbox], vec![]);
        let unknown = unknown.shares(&sandbox.containers[0], &sandbox);
        assert_eq!(by_namespace(&unknown)["pid"], ["b"], "of the node nothing is known");
    }

    #[test]
    fn with_containers_of_other_pods_not_without_end() {
        let web = testing::sandbox(
            "web",
            vec![
                container("app", &[("net", 10), ("ipc", 11), ("pid", 1), ("uts", 12)]),
                container("side", &[("net", 10)]),
            ],
        );
        let mut ended = container("ended", &[("net", 10)]);
        ended.alive = false;
        let mut bare =
            testing::sandbox("bare", vec![container("c", &[("net", 10), ("ipc", 11), ("pid", 1), ("uts", 12)]), ended]);
        bare.namespace.clear();
        let sharing = Sharing::of(&[&web, &bare], vec![("pid".to_owned(), 1)]);
        let words = |sandbox: &Sandbox| in_words(&sharing.shares(&sandbox.containers[0], sandbox));
        assert_eq!(words(&web), "net with side, bare/c; ipc with bare/c; pid with (node)");
        assert_eq!(words(&bare), "net with n/web/app, n/web/side; ipc with n/web/app; pid with (node)");

        let pods: Vec<Sandbox> =
            (0..MOST + 3).map(|n| testing::sandbox(&format!("p{n}"), vec![container("c", &[("pid", 9)])])).collect();
        let sharing = Sharing::of(&pods.iter().collect::<Vec<_>>(), vec![]);
        let shares = sharing.shares(&pods[0].containers[0], &pods[0]);
        let with = &by_namespace(&shares)["pid"];
        assert_eq!((with.len(), with[0].as_str(), with[MOST].as_str()), (MOST + 1, "n/p1/c", "(2 more)"));
    }
}
