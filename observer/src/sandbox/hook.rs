//! Where a sandbox's traffic is counted: at its cgroup, or at the host's end of its network interface. Pure.

use std::{collections::BTreeSet, convert::Infallible, fmt, str::FromStr};

/// Where traffic is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Hook {
    /// At the sockets below the pod's cgroup: by container.
    #[default]
    Cgroup,
    /// At the host's end of its interface: of the pod as a whole.
    Interface,
}

/// Names of runtime handlers and classes whose sandboxes' packets meet no socket of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handlers(BTreeSet<String>);

/// gVisor (`runsc`) has a network stack of its own, a Kata container is a virtual machine.
pub const DEFAULT_HANDLERS: &str = "gvisor,kata,runsc";

impl Default for Handlers {
    fn default() -> Self {
        let Ok(handlers) = DEFAULT_HANDLERS.parse();
        handlers
    }
}

impl FromStr for Handlers {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        let names = text.split(',').map(str::trim).filter(|name| !name.is_empty());
        Ok(Self(names.map(str::to_owned).collect()))
    }
}

impl fmt::Display for Handlers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.iter().map(String::as_str).collect::<Vec<_>>().join(","))
    }
}

/// What is known of a sandbox.
#[derive(Debug, Clone, Copy)]
pub struct HookFacts<'a> {
    /// The host has a cgroup v2 tree, which programs can be attached to.
    pub has_v2: bool,
    /// The sandbox has no interface of its own.
    pub host_network: bool,
    /// Its runtime class, or empty.
    pub runtime_class: &'a str,
    /// The runtime's handler that runs it, or empty.
    pub runtime_handler: &'a str,
    /// Programs of the processes that were found in its cgroups.
    pub programs: &'a [&'a str],
}

impl Handlers {
    /// True when nothing is named.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a name is one of these, or has one of these as a part: `kata-qemu`, `io.containerd.runsc.v1`.
    fn have(&self, name: &str) -> bool {
        self.0.contains(name) || name.split(|c: char| !c.is_ascii_alphanumeric()).any(|part| self.0.contains(part))
    }

    /// Decides. What the runtime is called says it; where nobody tells that, the sandbox's processes do, when every one of
    /// them is the runtime's own: a workload cannot pretend to be one for the others of its pod.
    #[must_use]
    pub fn choose(&self, facts: &HookFacts<'_>) -> Hook {
        let named = self.have(facts.runtime_handler) || self.have(facts.runtime_class);
        let untold = facts.runtime_handler.is_empty() && facts.runtime_class.is_empty();
        let runs = untold && !facts.programs.is_empty() && facts.programs.iter().all(|program| self.have(program));
        if !facts.host_network && (!facts.has_v2 || named || runs) { Hook::Interface } else { Hook::Cgroup }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FACTS: HookFacts<'_> =
        HookFacts { has_v2: true, host_network: false, runtime_class: "", runtime_handler: "", programs: &[] };

    fn choose(facts: &HookFacts<'_>) -> Hook {
        Handlers::default().choose(facts)
    }

    #[test]
    fn a_runtime_is_known_by_its_handler_or_its_class() {
        for name in ["runsc", "gvisor", "kata", "kata-qemu", "kata-clh", "runsc-debug", "io.containerd.runsc.v1"] {
            assert_eq!(choose(&HookFacts { runtime_handler: name, ..FACTS }), Hook::Interface, "{name}");
            assert_eq!(choose(&HookFacts { runtime_class: name, ..FACTS }), Hook::Interface, "{name}");
        }
        for name in ["", "runc", "crun", "youki", "katana", "my-runscape", "nvidia"] {
            assert_eq!(choose(&HookFacts { runtime_handler: name, ..FACTS }), Hook::Cgroup, "{name}");
        }
    }

    #[test]
    fn processes_say_it_when_nobody_else_does_and_all_agree() {
        let programs = |programs| choose(&HookFacts { programs, ..FACTS });
        assert_eq!(programs(&["runsc-sandbox", "runsc-gofer"]), Hook::Interface);
        assert_eq!(programs(&["containerd-shim-kata-v2"]), Hook::Interface);
        assert_eq!(programs(&["runsc-sandbox", "nginx"]), Hook::Cgroup);
        assert_eq!(programs(&["pause", "nginx"]), Hook::Cgroup);
        assert_eq!(programs(&[]), Hook::Cgroup);
        let told = HookFacts { programs: &["runsc-sandbox"], runtime_handler: "runc", ..FACTS };
        assert_eq!(choose(&told), Hook::Cgroup, "the runtime is asked first");
    }

    #[test]
    fn without_a_v2_tree_every_pod_with_an_interface_is_counted_there() {
        let facts = HookFacts { has_v2: false, ..FACTS };
        assert_eq!(choose(&facts), Hook::Interface);
        assert_eq!(choose(&HookFacts { host_network: true, ..facts }), Hook::Cgroup);
        assert_eq!(choose(&HookFacts { host_network: true, runtime_class: "gvisor", ..FACTS }), Hook::Cgroup);
    }

    #[test]
    fn the_names_are_the_users() {
        let handlers: Handlers = " vm , tiny ".parse().unwrap();
        assert_eq!(handlers.to_string(), "tiny,vm");
        let class = |name| handlers.choose(&HookFacts { runtime_class: name, ..FACTS });
        assert_eq!([class("vm"), class("tiny-2"), class("kata")], [Hook::Interface, Hook::Interface, Hook::Cgroup]);
        let none: Handlers = "".parse().unwrap();
        assert!(none.is_empty());
        assert_eq!(none.choose(&HookFacts { runtime_class: "kata", ..FACTS }), Hook::Cgroup);
        assert_eq!(Handlers::default().to_string(), DEFAULT_HANDLERS);
    }
}
