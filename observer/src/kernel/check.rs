//! What this kernel and these permissions allow. Facts are gathered in one place, judged in another.

use std::path::{Path, PathBuf};

use super::{
    interface::{InterfaceHooks, Way},
    load::Kernel,
    pins,
};

/// How a requirement stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// As it should be.
    Ok,
    /// Missing, and the agent goes on with the rest.
    Degraded,
    /// Missing, and without it the main job cannot run.
    Missing,
}

impl State {
    /// One word for a table.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Degraded => "degraded",
            Self::Missing => "MISSING",
        }
    }
}

/// One line of the table.
#[derive(Debug, Clone)]
pub struct Check {
    /// What was looked at.
    pub name: &'static str,
    /// How it stands.
    pub state: State,
    /// What was found.
    pub found: String,
    /// What it is for.
    pub purpose: &'static str,
    /// How to get it; empty when it is there.
    pub remedy: String,
}

/// What was found on this machine.
#[derive(Debug, Clone)]
pub struct Facts {
    /// `uname -r`.
    pub release: String,
    /// Effective capabilities as a bit mask (`CapEff` of /proc/self/status); `None` when unreadable.
    pub capabilities: Option<u64>,
    /// The cgroup v2 tree, if there is one below `--path.cgroupfs`.
    pub cgroup_v2: Option<PathBuf>,
    /// The cgroup mode in words.
    pub cgroup_mode: String,
    /// There is a cgroup tree of some kind.
    pub has_cgroups: bool,
    /// The path of `--path.bpffs`, and whether a BPF filesystem is there.
    pub bpffs: (PathBuf, bool),
    /// The kernel's own type information is readable.
    pub btf: bool,
    /// Namespaces of the node's first process can be read.
    pub node_namespace: bool,
    /// The v1 controllers net_cls or net_prio are mounted.
    pub network_controllers: bool,
    /// What loading the programs said.
    pub load: Result<(), String>,
    /// What loading the programs for interfaces said: how they are attached, or why not.
    pub interface: Result<&'static str, String>,
    /// This process is in the node's network namespace, as far as that can be told.
    pub node_network: bool,
}

/// Capabilities of include/uapi/linux/capability.h.
mod capability {
    pub const NET_ADMIN: u32 = 12;
    pub const SYS_PTRACE: u32 = 19;
    pub const SYS_ADMIN: u32 = 21;
    pub const PERFMON: u32 = 38;
    pub const BPF: u32 = 39;
}

impl Facts {
    /// Looks at this machine. Loads the programs once, for nobody to use.
    #[must_use]
    pub fn gather(procfs: &Path, cgroupfs: &Path, bpffs: &Path) -> Self {
        let hierarchies = crate::sandbox::Hierarchies::detect(procfs, cgroupfs);
        let status = procfs::process::Process::myself().and_then(|process| process.status());
        Self {
            release: rustix::system::uname().release().to_string_lossy().into_owned(),
            capabilities: status.ok().map(|status| status.capeff),
            cgroup_v2: hierarchies.as_ref().ok().and_then(|found| found.v2()).map(Path::to_owned),
            has_cgroups: hierarchies.is_ok(),
            cgroup_mode: hierarchies.as_ref().map_or_else(ToString::to_string, |found| found.mode().to_string()),
            bpffs: (bpffs.to_owned(), pins::is_bpffs(bpffs)),
            btf: Path::new("/sys/kernel/btf/vmlinux").exists(),
            node_namespace: std::fs::read_link(procfs.join("1/ns/net")).is_ok(),
            network_controllers: hierarchies
                .is_ok_and(|found| found.v1("net_cls").is_some() || found.v1("net_prio").is_some()),
            load: Kernel::probe().map_err(|error| error.to_string()),
            interface: InterfaceHooks::probe().map(Way::as_str).map_err(|error| error.to_string()),
            node_network: node_network(procfs),
        }
    }

    fn may(&self, bit: u32) -> bool {
        self.capabilities.is_some_and(|mask| mask >> bit & 1 == 1)
    }
}

/// Judges the facts: a line for each requirement.
#[must_use]
pub fn judge(facts: &Facts) -> Vec<Check> {
    vec![
        kernel(facts),
        capabilities(facts),
        cgroup(facts),
        bpffs(facts),
        programs(facts),
        interface(facts),
        node_namespace(facts),
        network_controllers(facts),
        btf(facts),
    ]
}

/// True when nothing is missing that the main job needs.
#[must_use]
pub fn can_run(checks: &[Check]) -> bool {
    checks.iter().all(|check| check.state != State::Missing)
}

fn line(name: &'static str, purpose: &'static str, state: State, found: String, remedy: &str) -> Check {
    let remedy = if state == State::Ok { String::new() } else { remedy.to_owned() };
    Check { name, state, found, purpose, remedy }
}

/// Major and minor number at the start of a release such as `6.1.0-50-amd64`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn kernel(facts: &Facts) -> Check {
    let old = version(&facts.release).is_none_or(|version| version < (5, 10));
    line(
        "kernel",
        "BPF links that outlive the agent, memory-mapped counters, socket lookups",
        if old { State::Missing } else { State::Ok },
        facts.release.clone(),
        "run a kernel of 5.10 or later",
    )
}

fn capabilities(facts: &Facts) -> Check {
    let admin = facts.may(capability::SYS_ADMIN);
    let missing: Vec<&str> =
        [(capability::BPF, "CAP_BPF"), (capability::NET_ADMIN, "CAP_NET_ADMIN"), (capability::PERFMON, "CAP_PERFMON")]
            .into_iter()
            .filter(|(bit, _)| !(facts.may(*bit) || admin && *bit != capability::NET_ADMIN))
            .map(|(_, name)| name)
            .collect();
    let found = if missing.is_empty() { "all".to_owned() } else { format!("without {}", missing.join(", ")) };
    line(
        "capabilities",
        "loading programs (BPF, PERFMON) and attaching them to cgroups (NET_ADMIN)",
        if missing.is_empty() { State::Ok } else { State::Missing },
        found,
        "run as root, or give the container the capabilities BPF, NET_ADMIN and PERFMON",
    )
}

fn cgroup(facts: &Facts) -> Check {
    let found = match &facts.cgroup_v2 {
        Some(path) => format!("{} at {}", facts.cgroup_mode, path.display()),
        None => facts.cgroup_mode.clone(),
    };
    let state = match (&facts.cgroup_v2, &facts.interface) {
        (Some(_), _) => State::Ok,
        // Pods are counted at their interfaces, as a whole.
        (None, Ok(_)) if facts.has_cgroups => State::Degraded,
        (None, _) => State::Missing,
    };
    line(
        "cgroup v2 tree",
        "programs are attached to the cgroups of pods there; a hybrid host's unified tree is enough. Without, pods are \
         counted at their interfaces: no containers, no localhost",
        state,
        found,
        "mount it (`mount -t cgroup2 none /sys/fs/cgroup/unified`), or name the mount with --path.cgroupfs; in a \
         container mount the host's /sys/fs/cgroup",
    )
}

fn bpffs(facts: &Facts) -> Check {
    let (path, there) = &facts.bpffs;
    let mountable = facts.may(capability::SYS_ADMIN) && path.is_dir();
    let (state, found) = match (*there, mountable) {
        (true, _) => (State::Ok, format!("at {}", path.display())),
        (false, true) => (State::Ok, format!("not yet at {}; the agent mounts it", path.display())),
        (false, false) => (State::Missing, format!("none at {}", path.display())),
    };
    line(
        "BPF filesystem",
        "counters and links are pinned there, so that nothing is lost while the agent is away",
        state,
        found,
        "`mount -t bpf bpf /sys/fs/bpf` on the node, or name another with --path.bpffs",
    )
}

fn programs(facts: &Facts) -> Check {
    let (state, found) = match &facts.load {
        Ok(()) => (State::Ok, "verified and loaded".to_owned()),
        Err(error) => (State::Missing, error.lines().next().unwrap_or_default().to_owned()),
    };
    line("kernel programs", "they count", state, found, "see the message; `--log.level debug` shows the verifier's log")
}

fn interface(facts: &Facts) -> Check {
    let (state, found) = match &facts.interface {
        Ok(way) if facts.node_network => (State::Ok, format!("verified and loaded, by {way}")),
        Ok(_) => (State::Degraded, "verified and loaded, but this is not the node's network".to_owned()),
        Err(error) => (State::Degraded, error.lines().next().unwrap_or_default().to_owned()),
    };
    line(
        "interface hook",
        "counting pods whose packets meet no socket of the host (gVisor, Kata)",
        state,
        found,
        "run on the node's network (hostNetwork) with CAP_NET_ADMIN; other pods are counted without",
    )
}

/// Whether this process and the node's first one have one network. True where that may not be looked at.
fn node_network(procfs: &Path) -> bool {
    let of = |path: PathBuf| std::fs::read_link(path).ok();
    of(procfs.join("1/ns/net")).is_none_or(|node| of("/proc/self/ns/net".into()).is_none_or(|own| own == node))
}

fn node_namespace(facts: &Facts) -> Check {
    let (state, found) = if facts.node_namespace {
        (State::Ok, "readable".to_owned())
    } else {
        let ptrace = facts.may(capability::SYS_PTRACE);
        (State::Degraded, format!("unreadable{}", if ptrace { "" } else { ", without CAP_SYS_PTRACE" }))
    };
    line(
        "namespaces of others",
        "telling host-network pods apart, and which containers share a sandbox",
        state,
        found,
        "run in the node's PID namespace (hostPID) with CAP_SYS_PTRACE, or mount the host's /proc and name it with \
         --path.procfs",
    )
}

fn network_controllers(facts: &Facts) -> Check {
    // Before 5.15 a socket carried either its v2 cgroup or a v1 class (include/linux/cgroup-defs.h).
    let harmful = facts.network_controllers && version(&facts.release).is_some_and(|version| version < (5, 15));
    line(
        "net_cls, net_prio",
        "before kernel 5.15 their use takes away the cgroup that packets are counted for",
        if harmful { State::Degraded } else { State::Ok },
        if facts.network_controllers { "mounted".to_owned() } else { "not mounted".to_owned() },
        "do not use these v1 controllers, or run a kernel of 5.15 or later",
    )
}

fn btf(facts: &Facts) -> Check {
    line(
        "BTF",
        "finding the kernel's own fields: what the probes beside the traffic need (OOM kills)",
        if facts.btf { State::Ok } else { State::Degraded },
        if facts.btf { "/sys/kernel/btf/vmlinux".to_owned() } else { "none".to_owned() },
        "run a kernel with CONFIG_DEBUG_INFO_BTF; traffic is counted without",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Facts {
        Facts {
            release: "6.1.0-50-amd64".into(),
            capabilities: Some(u64::MAX),
            cgroup_v2: Some("/sys/fs/cgroup".into()),
            cgroup_mode: "v2".into(),
            has_cgroups: true,
            bpffs: ("/sys/fs/bpf".into(), true),
            btf: true,
            node_namespace: true,
            network_controllers: false,
            load: Ok(()),
            interface: Ok("tcx"),
            node_network: true,
        }
    }

    fn state(facts: &Facts, name: &str) -> State {
        judge(facts).into_iter().find(|check| check.name == name).map(|check| check.state).unwrap()
    }

    #[test]
    fn a_good_machine_can_run() {
        assert!(can_run(&judge(&good())));
        assert!(judge(&good()).iter().all(|check| check.remedy.is_empty()));
    }

    #[test]
    fn each_missing_thing_is_told_with_a_remedy() {
        let cases: [(&str, Facts); 5] = [
            ("kernel", Facts { release: "5.4.0".into(), ..good() }),
            ("capabilities", Facts { capabilities: Some(0), ..good() }),
            ("cgroup v2 tree", Facts { cgroup_v2: None, interface: Err("refused".into()), ..good() }),
            ("BPF filesystem", Facts { bpffs: ("/nowhere".into(), false), ..good() }),
            ("kernel programs", Facts { load: Err("refused".into()), ..good() }),
        ];
        for (name, facts) in cases {
            assert_eq!(state(&facts, name), State::Missing, "{name}");
            assert!(!can_run(&judge(&facts)), "{name}");
            assert!(judge(&facts).iter().all(|check| check.state == State::Ok || !check.remedy.is_empty()));
        }
    }

    #[test]
    fn what_the_agent_can_do_without_is_degraded() {
        let facts = Facts { btf: false, node_namespace: false, ..good() };
        assert_eq!(state(&facts, "BTF"), State::Degraded);
        assert!(can_run(&judge(&facts)));
    }

    #[test]
    fn the_interface_hook_stands_in_for_a_v2_tree() {
        let facts = Facts { cgroup_v2: None, ..good() };
        assert_eq!(state(&facts, "cgroup v2 tree"), State::Degraded);
        assert!(can_run(&judge(&facts)));
        let facts = Facts { has_cgroups: false, ..facts };
        assert!(!can_run(&judge(&facts)), "without any tree nothing is found");
        for facts in [Facts { interface: Err("refused".into()), ..good() }, Facts { node_network: false, ..good() }] {
            assert_eq!(state(&facts, "interface hook"), State::Degraded);
            assert!(can_run(&judge(&facts)));
        }
    }

    #[test]
    fn the_admin_capability_stands_for_the_newer_ones_but_not_for_the_network() {
        let admin = Facts { capabilities: Some(1 << capability::SYS_ADMIN), ..good() };
        assert_eq!(state(&admin, "capabilities"), State::Missing);
        let both = Facts { capabilities: Some(1 << capability::SYS_ADMIN | 1 << capability::NET_ADMIN), ..good() };
        assert_eq!(state(&both, "capabilities"), State::Ok);
    }

    #[test]
    fn releases_of_all_distributions_are_read() {
        for (release, expected) in [
            ("5.10.0-32-cloud-amd64", Some((5, 10))),
            ("6.18.44-fc-v669", Some((6, 18))),
            ("6.12.0", Some((6, 12))),
            ("junk", None),
        ] {
            assert_eq!(version(release), expected, "{release}");
        }
    }
}
