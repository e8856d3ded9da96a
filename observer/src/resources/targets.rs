//! Which cgroups of a snapshot are read: not only containers, but everything above them. Pure.

use std::collections::BTreeSet;

use crate::{
    hash::FastSet,
    identity::Snapshot,
    sandbox::{Container, ContainerKind, Sandbox},
};

/// Most cgroups above pods that are read; a node has three or four.
const MAX_ANCESTORS: usize = 64;

/// A cgroup and whose it is.
#[derive(Debug, Clone, Copy)]
pub enum Target<'a> {
    /// The root of the tree: the whole node.
    Node,
    /// A cgroup above pods, such as `/kubepods` and `/kubepods/burstable`.
    Ancestor(&'a str),
    /// A pod's own cgroup.
    Pod(&'a Sandbox, &'a str),
    /// The container that holds a pod's namespaces.
    Pause(&'a Sandbox, &'a Container),
    /// Any other container.
    Container(&'a Sandbox, &'a Container),
}

impl<'a> Target<'a> {
    /// The cgroup's path below the mount point, with a leading `/`.
    #[must_use]
    pub fn cgroup(&self) -> &'a str {
        match *self {
            Self::Node => "/",
            Self::Ancestor(path) | Self::Pod(_, path) => path,
            Self::Pause(_, container) | Self::Container(_, container) => &container.cgroup,
        }
    }

    /// The pod that it belongs to.
    #[must_use]
    pub const fn sandbox(&self) -> Option<&'a Sandbox> {
        match *self {
            Self::Node | Self::Ancestor(_) => None,
            Self::Pod(sandbox, _) | Self::Pause(sandbox, _) | Self::Container(sandbox, _) => Some(sandbox),
        }
    }

    /// The container, pause included.
    #[must_use]
    pub const fn container(&self) -> Option<&'a Container> {
        match *self {
            Self::Pause(_, container) | Self::Container(_, container) => Some(container),
            Self::Node | Self::Ancestor(_) | Self::Pod(..) => None,
        }
    }

    /// True when processes of cgroups below count as its own.
    pub(super) fn counts_below(&self) -> bool {
        self.container().is_some_and(|container| !container.nested_cgroup_ids.is_empty())
    }

    const fn from_container(sandbox: &'a Sandbox, container: &'a Container) -> Self {
        match container.kind {
            ContainerKind::Pause => Self::Pause(sandbox, container),
            ContainerKind::Application => Self::Container(sandbox, container),
        }
    }
}

/// The node, what is above the living pods, the pods, their living containers; each cgroup once.
#[must_use]
pub fn targets(snapshot: &Snapshot) -> Vec<Target<'_>> {
    let living = || snapshot.sandboxes().iter().filter(|sandbox| sandbox.alive).map(AsRef::as_ref);
    let pods = || living().filter_map(|sandbox: &Sandbox| Some((sandbox, sandbox.cgroup.as_deref()?)));
    let above: BTreeSet<&str> = pods().flat_map(|(_, path)| ancestors(path)).collect();
    let mut seen: FastSet<&str> = std::iter::once("/").collect();
    let all = above.into_iter().take(MAX_ANCESTORS).map(Target::Ancestor);
    let all = all.chain(pods().map(|(sandbox, path)| Target::Pod(sandbox, path)));
    let containers = living().flat_map(|sandbox| {
        let alive = sandbox.containers.iter().filter(|container| container.alive);
        alive.map(move |container| Target::from_container(sandbox, container))
    });
    let below = all.chain(containers).filter(|target| seen.insert(target.cgroup()));
    std::iter::once(Target::Node).chain(below).collect()
}

/// `/a` and `/a/b` for `/a/b/c`.
fn ancestors(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').map(|(at, _)| &path[..at]).filter(|above| !above.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::testing::{container, sandbox, snapshot_of};

    #[test]
    fn everything_from_the_root_down_to_the_containers() {
        let mut pause = container("POD", "/kubepods/burstable/pod1/p");
        pause.kind = ContainerKind::Pause;
        let mut gone = container("gone", "/kubepods/burstable/pod1/g");
        gone.alive = false;
        let mut one = sandbox("one", vec![pause, container("a", "/kubepods/burstable/pod1/a"), gone]);
        one.cgroup = Some("/kubepods/burstable/pod1".into());
        let mut two = sandbox("two", vec![container("b", "/kubepods/pod2/b")]);
        two.cgroup = Some("/kubepods/pod2".into());
        let mut dead = sandbox("dead", vec![container("c", "/kubepods/besteffort/pod3/c")]);
        dead.cgroup = Some("/kubepods/besteffort/pod3".into());
        dead.alive = false;
        // Containers without a pod's cgroup, as docker makes them: nothing above them is the pods'.
        let alone = sandbox("alone", vec![container("d", "/docker/d")]);
        let twice = sandbox("twice", vec![container("d", "/docker/d")]);
        let snapshot = snapshot_of(vec![one, two, dead, alone, twice]);
        let found: Vec<&str> = targets(&snapshot).iter().map(Target::cgroup).collect();
        let expected = [
            "/",
            "/kubepods",
            "/kubepods/burstable",
            "/kubepods/burstable/pod1",
            "/kubepods/pod2",
            "/kubepods/burstable/pod1/p",
            "/kubepods/burstable/pod1/a",
            "/kubepods/pod2/b",
            "/docker/d",
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn ancestors_of_odd_paths() {
        assert_eq!(ancestors("/a/b/c").collect::<Vec<_>>(), ["/a", "/a/b"]);
        assert_eq!(ancestors("/").count() + ancestors("").count() + ancestors("/a").count(), 0);
    }
}
