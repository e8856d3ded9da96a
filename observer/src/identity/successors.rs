//! Who goes on with the series of a cgroup that is gone. Pure.

use super::{Owner, Snapshot};
use crate::{
    hash::{FastMap, FastSet},
    sandbox::{Container, ContainerKind, Sandbox},
};

/// Finds for cgroups that are gone the one that has their labels now: what they have counted is shown with what that one
/// counts, so that no series falls to a part of what it was, all of which `increase()` would take for new.
pub struct Successors<'a> {
    snapshot: &'a Snapshot,
    /// Cgroups below living containers' that are gone.
    gone_inside: FastSet<u64>,
    /// More than one can have a name for a moment: it is made again before it is seen that the last one went.
    living: FastMap<(&'a str, &'a str), Vec<&'a Sandbox>>,
}

impl<'a> Successors<'a> {
    /// Those that this snapshot tells of; `None` when nothing is gone. A container that has ended counts as gone, an init
    /// container, too: so on most nodes there are some to look for.
    #[must_use]
    pub fn of(snapshot: &'a Snapshot) -> Option<Self> {
        let has_lost = |container: &Container| !container.alive || !container.gone_cgroup_ids.is_empty();
        if snapshot.sandboxes().iter().all(|sandbox| sandbox.alive && !sandbox.containers.iter().any(has_lost)) {
            return None;
        }
        let mut living: FastMap<_, Vec<&Sandbox>> = FastMap::default();
        for sandbox in snapshot.sandboxes().iter().filter(|sandbox| sandbox.alive) {
            living.entry((sandbox.namespace.as_str(), sandbox.name.as_str())).or_default().push(sandbox);
        }
        Some(Self { snapshot, gone_inside: gone_inside(snapshot), living })
    }

    /// The cgroup that goes on with this one's series: the container's own for one below it that is gone, that of the container
    /// of the same name for one that ended and was started again, or whose pod is gone and was made again with its name.
    #[must_use]
    pub fn successor(&self, cgroup: u64) -> Option<u64> {
        let owner = self.snapshot.by_cgroup(cgroup)?;
        if self.gone_inside.contains(&cgroup) {
            return Some(owner.container?.cgroup_id).filter(|own| *own != 0);
        }
        if !owner.sandbox.alive {
            return self.made_again(&owner);
        }
        let ended = owner.container.filter(|container| !container.alive && is_application(container))?;
        let goes_on = |container: &&Container| {
            container.alive && is_application(container) && container.name == ended.name && container.cgroup_id != 0
        };
        owner.sandbox.containers.iter().find(goes_on).map(|container| container.cgroup_id)
    }

    fn made_again(&self, owner: &Owner<'_>) -> Option<u64> {
        let sandboxes = self.living.get(&(owner.sandbox.namespace.as_str(), owner.sandbox.name.as_str()))?;
        let name = owner.container_name();
        let same = |cgroup: u64| self.snapshot.by_cgroup(cgroup).is_some_and(|next| next.container_name() == name);
        let of = |sandbox: &&'a Sandbox| {
            let containers = sandbox.containers.iter().map(|container| (container.cgroup_id, container.alive));
            std::iter::once((sandbox.cgroup_id, true)).chain(containers).collect::<Vec<_>>()
        };
        let found = sandboxes.iter().flat_map(of).filter(|(cgroup, _)| *cgroup != 0 && same(*cgroup));
        // One that has ended does as well: it is shown for as long as its pod lives.
        found.max_by_key(|(_, alive)| *alive).map(|(cgroup, _)| cgroup)
    }
}

fn is_application(container: &Container) -> bool {
    container.kind == ContainerKind::Application
}

/// Cgroups below living containers' that are gone, whether the container is observed or not.
#[must_use]
pub fn gone_inside(snapshot: &Snapshot) -> FastSet<u64> {
    let sandboxes = snapshot.sandboxes().iter().chain(snapshot.others());
    let containers = sandboxes.flat_map(|sandbox| &sandbox.containers).filter(|container| container.alive);
    containers.flat_map(|container| container.gone_cgroup_ids.iter().copied()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{resources::testing, sandbox::SandboxKey};

    fn container(name: &str, cgroup_id: u64) -> Container {
        let nested_cgroup_ids = vec![cgroup_id + 1000];
        Container { cgroup_id, nested_cgroup_ids, ..testing::container(name, "") }
    }

    fn pod(life: u64, alive: bool) -> Sandbox {
        let pod = testing::sandbox("web", vec![container("app", life * 10 + 1)]);
        Sandbox { key: SandboxKey(life.to_string()), cgroup_id: life * 10, alive, ..pod }
    }

    fn successor(cgroup: u64, sandboxes: Vec<Sandbox>) -> Option<u64> {
        Successors::of(&testing::snapshot_of(sandboxes))?.successor(cgroup)
    }

    #[test]
    fn a_pod_that_is_made_again_goes_on() {
        assert_eq!(successor(11, vec![pod(1, false), pod(2, true)]), Some(21));
        assert_eq!(successor(1011, vec![pod(1, false), pod(2, true)]), Some(21), "a cgroup below the container's");
        assert_eq!(successor(10, vec![pod(1, false), pod(2, true)]), Some(20), "the pod's own");
        assert_eq!(successor(11, vec![pod(1, false), pod(2, false)]), None, "nobody goes on");
        assert_eq!(successor(11, vec![pod(1, true), pod(2, true)]), None, "nobody is gone");
        let mut other = pod(2, true);
        other.containers[0].name = "else".into();
        assert_eq!(successor(11, vec![pod(1, false), other]), None, "another container");
    }

    #[test]
    fn of_two_of_the_name_it_is_one_that_is_shown() {
        let mut third = pod(3, true);
        third.containers.clear();
        assert_eq!(successor(11, vec![pod(1, false), pod(2, true), third]), Some(21));
        let mut ended = pod(2, true);
        ended.containers[0].alive = false;
        assert_eq!(successor(11, vec![pod(1, false), ended.clone()]), Some(21));
        assert_eq!(successor(11, vec![pod(1, false), ended, pod(3, true)]), Some(31), "rather one that lives");
    }

    #[test]
    fn a_container_that_is_started_again_goes_on() {
        let mut again = pod(1, true);
        again.containers[0].alive = false;
        again.containers.push(container("app", 12));
        again.containers.push(container("else", 13));
        assert_eq!(successor(11, vec![again.clone()]), Some(12));
        assert_eq!(successor(1011, vec![again.clone()]), Some(12));
        assert_eq!(successor(12, vec![again.clone()]), None, "it lives");
        again.containers[1].name = "next".into();
        assert_eq!(successor(11, vec![again]), None);
    }

    #[test]
    fn a_cgroup_inside_that_is_gone_is_the_container_s() {
        let mut with = pod(1, true);
        with.containers[0].gone_cgroup_ids = vec![1011];
        assert_eq!(successor(1011, vec![with.clone()]), Some(11));
        assert_eq!(successor(11, vec![with]), None);
        assert_eq!(successor(1011, vec![pod(1, true)]), None, "it is there");
    }
}
