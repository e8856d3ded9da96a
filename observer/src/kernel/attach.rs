//! Attaching the programs to cgroups, with links that outlive the agent.

use std::{
    fs::File,
    io,
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::Arc,
};

use aya::{
    Ebpf,
    maps::{HashMap, MapData},
    programs::{CgroupAttachMode, CgroupSkbAttachType, ProgramError, links::FdLink},
};
use observer_common::abi;
use tracing::{debug, warn};

use super::{
    Accounting, Program, Programs,
    load::{LoadError, program},
    pins::Pins,
    sys,
};
use crate::sandbox::AttachPoint;

/// One of the two programs, and where it goes.
#[derive(Debug)]
struct Hook {
    name: &'static str,
    direction: &'static str,
    attach_type: CgroupSkbAttachType,
    program: Arc<Program>,
}

/// Attaches and detaches; knows nothing of pods.
#[derive(Debug)]
pub struct Attacher {
    ebpf: Ebpf,
    hooks: Vec<Hook>,
    links: PathBuf,
    observed: HashMap<MapData, u64, u8>,
    /// A cgroup that was new here had processes already: they may have sockets.
    met_processes: bool,
}

/// Why a cgroup could not be attached to.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The directory is gone or closed to us.
    #[error("cannot open the cgroup {path}: {source}")]
    Open {
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel refused the link.
    #[error("the kernel refused {direction} at the cgroup {path}: {source}{hint}", hint = hint(.source))]
    Refused {
        /// `ingress` or `egress`.
        direction: &'static str,
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The link works but could not be pinned.
    #[error("cannot pin the link at {path}: {source}")]
    Pin {
        /// The pin.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// `__cgroup_bpf_attach` in kernel/bpf/cgroup.c: a program attached without `BPF_F_ALLOW_MULTI` excludes all others
/// at its cgroup, and without `BPF_F_ALLOW_OVERRIDE` also at those below.
fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EINVAL | libc::EPERM) => {
            "; another tool has attached a program of the same kind at this cgroup or above it in exclusive mode \
             (without BPF_F_ALLOW_MULTI): `bpftool cgroup tree` shows which; let that tool attach with `multi`"
        }
        Some(libc::E2BIG) => "; 64 programs are attached there already",
        _ => "",
    }
}

impl Attacher {
    /// Takes the loaded programs over.
    pub(super) fn new(ebpf: Ebpf, pins: &Pins, observed: HashMap<MapData, u64, u8>) -> Result<Self, LoadError> {
        let mut ebpf = ebpf;
        let mut hooks = Vec::new();
        let packets = [
            (abi::programs::INGRESS, "ingress", CgroupSkbAttachType::Ingress),
            (abi::programs::EGRESS, "egress", CgroupSkbAttachType::Egress),
        ];
        // Without them a cgroup is observed all the same: the programs that see sockets ask for it.
        for (name, direction, attach_type) in packets.into_iter().filter(|_| pins.accounting() == Accounting::Packets) {
            let refused = |source| LoadError::Program { name, source };
            let fd = program(&mut ebpf, name)?.fd().map_err(refused)?;
            let program = Program::of(name, fd).map_err(|source| refused(source.into()))?;
            hooks.push(Hook { name, direction, attach_type, program });
        }
        Ok(Self { ebpf, hooks, links: pins.links(), observed, met_processes: false })
    }

    fn pin(&self, cgroup_id: u64, direction: &str) -> PathBuf {
        self.links.join(format!("{cgroup_id}-{direction}"))
    }

    /// Attaches both programs to a cgroup. A link that an earlier agent left is kept, and gets the new program
    /// without a moment in which none or both count.
    ///
    /// # Errors
    ///
    /// See [`AttachError`]. What was attached before the error stays.
    pub fn attach(&mut self, point: &AttachPoint) -> Result<(), AttachError> {
        let is_new = self.observed.get(&point.cgroup_id, 0).is_err();
        self.met_processes |= is_new && has_processes(&point.path);
        // First, so that no connection is before it.
        if let Err(error) = self.observed.insert(point.cgroup_id, 1, 0) {
            // Its packets are counted all the same.
            let cgroup = point.path.display();
            warn!("TCP connections of {cgroup} whose edge cannot be told are not counted: {error}");
        }
        let attached = self.attach_hooks(point);
        if attached.is_err() {
            let _ = self.observed.remove(&point.cgroup_id);
        }
        attached
    }

    fn attach_hooks(&mut self, point: &AttachPoint) -> Result<(), AttachError> {
        let mut cgroup = None;
        for hook in &self.hooks {
            let path = self.pin(point.cgroup_id, hook.direction);
            if sys::take_over(&path, hook.program.as_fd()) {
                continue;
            }
            let cgroup = match &cgroup {
                Some(cgroup) => cgroup,
                None => cgroup.insert(
                    File::open(&point.path).map_err(|source| AttachError::Open { path: point.path.clone(), source })?,
                ),
            };
            let link = link(&mut self.ebpf, hook, cgroup).map_err(|source| AttachError::Refused {
                direction: hook.direction,
                path: point.path.clone(),
                source,
            })?;
            link.pin(&path)
                .map_err(|error| AttachError::Pin { path: path.clone(), source: io::Error::other(error) })?;
        }
        debug!(cgroup = %point.path.display(), id = point.cgroup_id, "attached");
        Ok(())
    }

    /// The programs.
    #[must_use]
    pub fn programs(&self) -> Programs {
        self.hooks.iter().map(|hook| Arc::clone(&hook.program)).collect()
    }

    /// Whether since the last question cgroups were attached to that had processes before.
    pub fn has_met_processes(&mut self) -> bool {
        std::mem::take(&mut self.met_processes)
    }

    /// The cgroups that are observed, those of an earlier agent included.
    #[must_use]
    pub fn observed(&self) -> Vec<u64> {
        self.observed.keys().filter_map(Result::ok).collect()
    }

    /// Gives up the links of a cgroup; the kernel detaches what nobody holds.
    pub fn detach(&mut self, cgroup_id: u64) {
        for hook in &self.hooks {
            let _ = std::fs::remove_file(self.pin(cgroup_id, hook.direction));
        }
        // One that is not there found no place.
        let _ = self.observed.remove(&cgroup_id);
        debug!(id = cgroup_id, "detached");
    }
}

/// True when there may be processes in a cgroup or below it (`populated` of `cgroup.events`).
fn has_processes(cgroup: &Path) -> bool {
    std::fs::read_to_string(cgroup.join("cgroup.events")).map_or(true, |events| may_be_populated(&events))
}

/// Whether a `cgroup.events` leaves it open that there are processes; a file that cannot be read so does.
pub fn may_be_populated(events: &str) -> bool {
    !events.split_inclusive('\n').any(|line| line == "populated 0\n")
}

/// Makes the link that attaches a program to a cgroup.
fn link(ebpf: &mut Ebpf, hook: &Hook, cgroup: &File) -> io::Result<FdLink> {
    let program = program(ebpf, hook.name).map_err(io::Error::other)?;
    // Links always allow others beside them (`cgroup_bpf_link_attach`); aya's mode must be `Single` then.
    let id = program.attach(cgroup, hook.attach_type, CgroupAttachMode::Single).map_err(io_error)?;
    let link = program.take_link(id).map_err(io_error)?;
    FdLink::try_from(link).map_err(io::Error::other)
}

fn io_error(error: ProgramError) -> io::Error {
    match error {
        ProgramError::SyscallError(error) => error.io_error,
        other => io::Error::other(other.to_string()),
    }
}

/// Which of the agent's hooks are attached to the cgroup directory itself: names of directions. Empty when nothing
/// is, or when the question is not allowed.
#[must_use]
pub fn attached(directory: &Path) -> Vec<String> {
    let Ok(cgroup) = File::open(directory) else { return Vec::new() };
    let mut found = Vec::new();
    for (name, direction, attach_type) in [
        (abi::programs::INGRESS, "ingress", sys::CGROUP_INET_INGRESS),
        (abi::programs::EGRESS, "egress", sys::CGROUP_INET_EGRESS),
    ] {
        let ids = sys::attached_programs(cgroup.as_fd(), attach_type).unwrap_or_default();
        if ids.iter().any(|id| program_name(*id).is_some_and(|found| name.starts_with(&found))) {
            found.push(direction.to_owned());
        }
    }
    found
}

/// The kernel keeps 15 characters of a program's name.
fn program_name(id: u32) -> Option<String> {
    let program = aya::programs::loaded_programs().flatten().find(|program| program.id() == id)?;
    program.name_as_str().map(str::to_owned).filter(|name| !name.is_empty())
}
