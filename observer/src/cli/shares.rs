//! Who shares which namespaces with whom. Pure.

use std::collections::BTreeMap;

use crate::sandbox::{Container, ContainerKind, Sandbox};

/// Who stands for the node. No container can be called so: its name is a DNS label (RFC 1123).
pub(super) const NODE: &str = "(node)";
/// Who stands for the container that holds the sandbox.
const PAUSE: &str = "(pause)";

/// Namespaces by name, with their inode numbers.
pub(super) type Namespaces = [(String, u64)];

/// How a container is called among those of its pod.
pub(super) fn called(container: &Container) -> &str {
    if container.kind == ContainerKind::Pause { PAUSE } else { &container.name }
}

/// The namespaces of a container that are not its alone, each with those who have it too: the node, and living containers
/// of the same pod. In the order of the container's namespaces; empty where none is known.
pub(super) fn shares<'a>(
    container: &'a Container,
    sandbox: &'a Sandbox,
    node: &Namespaces,
) -> Vec<(&'a str, Vec<&'a str>)> {
    let others = || sandbox.containers.iter().filter(|other| other.alive && other.cgroup != container.cgroup);
    let with = |namespace: &(String, u64)| {
        let the_node = node.contains(namespace).then_some(NODE);
        let containers = others().filter(|other| other.namespaces.contains(namespace)).map(called);
        the_node.into_iter().chain(containers).collect::<Vec<_>>()
    };
    let all = container.namespaces.iter().map(|namespace| (namespace.0.as_str(), with(namespace)));
    all.filter(|(_, with)| !with.is_empty()).collect()
}

/// The same in words: `net ipc with (pause), side; user with (node)`.
pub(super) fn in_words(shares: &[(&str, Vec<&str>)]) -> String {
    let mut groups: Vec<(Vec<&str>, &[&str])> = Vec::new();
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
pub(super) fn by_namespace<'a>(shares: &[(&'a str, Vec<&'a str>)]) -> BTreeMap<&'a str, Vec<&'a str>> {
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
        let node = [("pid".to_owned(), 1), ("net".to_owned(), 2)];
        let of = |at: usize| in_words(&shares(&sandbox.containers[at], &sandbox, &node));
        assert_eq!(of(0), "net with b, c; ipc with b; pid with (node), b");
        assert_eq!(of(1), "net with a, c; ipc with a; pid with (node), a");
        assert_eq!(of(2), "net with a, b");
        assert_eq!(of(3), "", "another kind of namespace may have the same number");
        let unknown = shares(&sandbox.containers[0], &sandbox, &[]);
        assert_eq!(by_namespace(&unknown)["pid"], ["b"], "of the node nothing is known");
    }
}
