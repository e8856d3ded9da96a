//! The programs at the host's ends of sandboxes' interfaces: load, attach, take over, take away.
//!
//! Two ways to attach, by kernel. From 6.6 on a tcx link, pinned at `interfaces/<index>-<sends|receives>`, which ends when
//! nobody holds it. Before, a filter of the interface's clsact queueing discipline, which stays by itself; it is found again
//! by its own priority and handle, and by the program's name when it is taken away. Either way other programs at the
//! interface are left alone: these come first and say nothing of a packet's fate.

use std::{
    fs, io,
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::Arc,
};

use aya::{
    Ebpf,
    maps::{HashMap, MapData, MapError},
    programs::{
        LinkOrder, ProgramError, SchedClassifier, TcAttachType,
        links::FdLink,
        tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle},
    },
    util::KernelVersion,
};
use observer_common::{
    abi::{self, globals, maps as traffic_maps},
    interface::{maps, programs},
};
use tracing::debug;

use super::{
    Program, Programs,
    edge_table::{EdgeTable, Sizes},
    links::{self, HostLink},
    load::ephemeral_min,
    pins::Pins,
    probes::{self, ProbeError},
    sys,
};

/// The object file. Empty when the build had no toolchain for it.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/interface"));

/// The place of the filters on kernels before 6.6: before others, which may end a packet's way.
const PRIORITY: u16 = 1;
/// Tells the filters from others of the same priority.
const HANDLE: TcHandle = TcHandle::new(0, 0x0b5e);

/// How programs are attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// A link.
    Tcx,
    /// A filter.
    Clsact,
}

impl Way {
    /// The way of a kernel (version 6.6 brought tcx).
    fn of(kernel: KernelVersion) -> Self {
        if kernel >= KernelVersion::new(6, 6, 0) { Self::Tcx } else { Self::Clsact }
    }

    /// Its name, for people.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        }
    }
}

/// One of the two programs, and where it goes.
#[derive(Debug)]
struct Hook {
    name: &'static str,
    direction: &'static str,
    attach_type: TcAttachType,
    program: Arc<Program>,
}

const HOOKS: [(&str, &str, TcAttachType); 2] =
    [(programs::SENDS, "sends", TcAttachType::Ingress), (programs::RECEIVES, "receives", TcAttachType::Egress)];

/// Why an interface could not be attached to.
#[derive(Debug, thiserror::Error)]
pub enum InterfaceError {
    /// The map has no room.
    #[error("no room to remember the interface {interface}: {source}")]
    Full {
        /// Its name.
        interface: String,
        /// What the map said.
        source: MapError,
    },
    /// The kernel refused.
    #[error("the kernel refused {way} at the interface {interface}: {source}{hint}", hint = hint(.source))]
    Refused {
        /// tcx or clsact.
        way: &'static str,
        /// The interface's name.
        interface: String,
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

/// `tcf_chain_tp_find` in net/sched/cls_api.c: one priority has filters of one kind and protocol.
fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EINVAL) => {
            "; before kernel 6.6 a filter of another kind may have priority 1 there: `tc filter show dev … ingress` shows it"
        }
        Some(libc::EPERM) => "; the agent needs CAP_NET_ADMIN and CAP_BPF, and to be on the node's network",
        _ => "",
    }
}

/// Attaches and detaches; knows nothing of pods.
#[derive(Debug)]
pub struct InterfaceHooks {
    ebpf: Ebpf,
    hooks: Vec<Hook>,
    pins: PathBuf,
    way: Way,
    cgroups: HashMap<MapData, u32, u64>,
}

impl InterfaceHooks {
    /// Loads the programs. They count into the maps of `table`, which are pinned already; which interface counts for whom
    /// is still known from an earlier agent.
    ///
    /// # Errors
    ///
    /// See [`ProbeError`].
    pub fn start(pins: &Pins, table: &EdgeTable) -> Result<Self, ProbeError> {
        let ephemeral = ephemeral_min();
        let sizes = table.sizes();
        let mut pinned = maps::SHARED.to_vec();
        pinned.push(maps::INTERFACES);
        let mut ebpf = probes::load(OBJECT, pins, &pinned, |loader| {
            size(loader, &sizes);
            loader.override_global(globals::EPHEMERAL_MIN, &ephemeral, true);
        })?;
        let mut hooks = Vec::new();
        for (name, direction, attach_type) in HOOKS {
            let refused = |source| ProbeError::Program { program: name, source };
            let program = program(&mut ebpf, name).map_err(refused)?;
            program.load().map_err(refused)?;
            let program = program.fd().and_then(|fd| Ok(Program::of(name, fd)?)).map_err(refused)?;
            hooks.push(Hook { name, direction, attach_type, program });
        }
        let cgroups = probes::take(&mut ebpf, maps::INTERFACES)?;
        let way = KernelVersion::current().map_or(Way::Clsact, Way::of);
        Ok(Self { ebpf, hooks, pins: pins.interfaces(), way, cgroups })
    }

    /// Loads the programs once, for nobody to use: whether this kernel takes them. Says how they would be attached.
    ///
    /// # Errors
    ///
    /// See [`ProbeError`].
    pub fn probe() -> Result<Way, ProbeError> {
        if OBJECT.is_empty() {
            return Err(ProbeError::NotBuilt);
        }
        let sizes = Sizes { edges: 16, slots: abi::slots_for(16), cpus: 1 };
        let mut loader = aya::EbpfLoader::new();
        size(&mut loader, &sizes);
        let mut ebpf = loader.load(OBJECT)?;
        for (name, ..) in HOOKS {
            let refused = |source| ProbeError::Program { program: name, source };
            program(&mut ebpf, name).and_then(SchedClassifier::load).map_err(refused)?;
        }
        Ok(KernelVersion::current().map_or(Way::Clsact, Way::of))
    }

    /// The programs.
    #[must_use]
    pub fn programs(&self) -> Programs {
        self.hooks.iter().map(|hook| Arc::clone(&hook.program)).collect()
    }

    /// How this kernel attaches.
    #[must_use]
    pub const fn way(&self) -> Way {
        self.way
    }

    /// Indices of interfaces, each with the cgroup that it counts for.
    #[must_use]
    pub fn attached(&self) -> Vec<(u32, u64)> {
        self.cgroups.iter().filter_map(Result::ok).collect()
    }

    /// Attaches both programs to an interface whose packets count for a cgroup. What an earlier agent left is kept, and gets
    /// the new programs without a moment in which none or both count.
    ///
    /// # Errors
    ///
    /// See [`InterfaceError`]. Nothing stays attached then.
    pub fn attach(&mut self, interface: &HostLink, cgroup: u64) -> Result<(), InterfaceError> {
        let name = || interface.name.clone();
        self.cgroups
            .insert(interface.index, cgroup, 0)
            .map_err(|source| InterfaceError::Full { interface: name(), source })?;
        let attached = match self.way {
            Way::Tcx => self.attach_links(interface),
            Way::Clsact => self.attach_filters(&interface.name).map_err(|source| InterfaceError::Refused {
                way: self.way.as_str(),
                interface: name(),
                source,
            }),
        };
        if attached.is_err() {
            self.detach(interface.index);
        } else {
            debug!(interface = interface.name, index = interface.index, cgroup, "attached");
        }
        attached
    }

    fn attach_links(&mut self, interface: &HostLink) -> Result<(), InterfaceError> {
        for hook in &self.hooks {
            let path = pin(&self.pins, interface.index, hook.direction);
            if sys::take_over(&path, hook.program.as_fd()) {
                continue;
            }
            let refused =
                |source| InterfaceError::Refused { way: Way::Tcx.as_str(), interface: interface.name.clone(), source };
            let link = link(&mut self.ebpf, hook, &interface.name).map_err(refused)?;
            link.pin(&path)
                .map_err(|error| InterfaceError::Pin { path: path.clone(), source: io::Error::other(error) })?;
        }
        Ok(())
    }

    fn attach_filters(&mut self, interface: &str) -> io::Result<()> {
        match tc::qdisc_add_clsact(interface) {
            Err(error) if os_error(&error) != Some(libc::EEXIST) => return Err(io_error(error.into())),
            _ => {}
        }
        for hook in &self.hooks {
            let program = program(&mut self.ebpf, hook.name).map_err(io_error)?;
            let earlier = SchedClassifierLink::attached(interface, hook.attach_type, PRIORITY, HANDLE, None)?;
            let id = match program.attach_to_link(earlier) {
                Err(ProgramError::TcError(error)) if os_error(&error) == Some(libc::ENOENT) => program
                    .attach_with_options(
                        interface,
                        hook.attach_type,
                        TcAttachOptions::Netlink(NlOptions { priority: PRIORITY, handle: HANDLE, classid: None }),
                    ),
                other => other,
            };
            let link = id.and_then(|id| program.take_link(id)).map_err(io_error)?;
            // The filter outlives the agent: dropping the link would remove it.
            std::mem::forget(link);
        }
        Ok(())
    }

    /// Takes the programs away from an interface; one that is gone already has taken them along.
    pub fn detach(&mut self, index: u32) {
        for hook in &self.hooks {
            let _ = fs::remove_file(pin(&self.pins, index, hook.direction));
        }
        if self.way == Way::Clsact {
            remove_filters(index);
        }
        // After the programs: until then their packets are counted.
        let _ = self.cgroups.remove(&index);
        debug!(index, "detached");
    }
}

/// How many of the agent's programs are at an interface, as the kernel tells it.
///
/// # Errors
///
/// When there is no such interface, or the kernel does not tell.
pub fn attached_at(index: u32) -> io::Result<usize> {
    let interface = name_of(index).ok_or(io::ErrorKind::NotFound)?;
    let tcx = KernelVersion::current().map_or(Way::Clsact, Way::of) == Way::Tcx;
    let mut count = 0;
    for (name, _, attach_type) in HOOKS {
        if tcx {
            let (_, programs) = SchedClassifier::query_tcx(&interface, attach_type).map_err(io_error)?;
            count +=
                programs.iter().filter(|program| program.name_as_str().is_some_and(|n| name.starts_with(n))).count();
        } else {
            count += usize::from(links::has_filter(index, attach_type == TcAttachType::Ingress, HANDLE.into())?);
        }
    }
    Ok(count)
}

/// Takes away what an earlier agent left at interfaces. `root` is a directory that holds everything of one version.
pub fn forget(root: &Path) {
    forget_filters(root);
    for entry in fs::read_dir(root.join("interfaces")).into_iter().flatten().filter_map(Result::ok) {
        let _ = fs::remove_file(entry.path());
    }
    let _ = fs::remove_file(root.join("maps").join(maps::INTERFACES));
}

/// Takes away the filters alone, which nothing holds that could be removed.
pub(super) fn forget_filters(root: &Path) {
    for index in remembered(&root.join("maps").join(maps::INTERFACES)) {
        remove_filters(index);
    }
}

fn remembered(path: &Path) -> Vec<u32> {
    let Ok(map) = MapData::from_pin(path) else { return Vec::new() };
    let Ok(map) = HashMap::<_, u32, u64>::try_from(aya::maps::Map::HashMap(map)) else { return Vec::new() };
    map.keys().filter_map(Result::ok).collect()
}

/// The filters of both programs, by the programs' names: nobody else's.
fn remove_filters(index: u32) {
    let Some(interface) = name_of(index) else { return };
    for (name, _, attach_type) in HOOKS {
        // Most often there is none: a link held it, or the interface is new.
        let _ = tc::qdisc_detach_program(&interface, attach_type, name);
    }
}

fn name_of(index: u32) -> Option<String> {
    let any = rustix::net::socket(rustix::net::AddressFamily::UNIX, rustix::net::SocketType::DGRAM, None).ok()?;
    rustix::net::netdevice::index_to_name(any, index).ok()
}

fn pin(directory: &Path, index: u32, direction: &str) -> PathBuf {
    directory.join(format!("{index}-{direction}"))
}

fn size<'a>(loader: &mut aya::EbpfLoader<'a>, sizes: &'a Sizes) {
    loader
        .map_max_entries(traffic_maps::EDGES, sizes.slots)
        .map_max_entries(traffic_maps::ROWS, sizes.slots)
        .map_max_entries(traffic_maps::COUNTERS, sizes.slots.saturating_mul(sizes.rows()))
        .map_max_entries(traffic_maps::FREE_SLOTS, sizes.edges)
        .override_global(globals::SLOTS_PER_CPU, &sizes.slots, true);
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut SchedClassifier, ProgramError> {
    ebpf.program_mut(name).ok_or(ProgramError::NotLoaded)?.try_into()
}

fn link(ebpf: &mut Ebpf, hook: &Hook, interface: &str) -> io::Result<FdLink> {
    let program = program(ebpf, hook.name).map_err(io_error)?;
    let first = TcAttachOptions::TcxOrder(LinkOrder::first());
    let id = program.attach_with_options(interface, hook.attach_type, first).map_err(io_error)?;
    let link = program.take_link(id).map_err(io_error)?;
    FdLink::try_from(link).map_err(io::Error::other)
}

fn os_error(error: &TcError) -> Option<i32> {
    match error {
        TcError::NetlinkError(error) => error.raw_os_error(),
        TcError::IoError(error) => error.raw_os_error(),
        _ => None,
    }
}

fn io_error(error: ProgramError) -> io::Error {
    match error {
        ProgramError::SyscallError(error) => error.io_error,
        ProgramError::TcError(error) => {
            os_error(&error).map_or_else(|| io::Error::other(error.to_string()), io::Error::from_raw_os_error)
        }
        other => io::Error::other(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_there_from_kernel_6_6_on() {
        let ways = [(5, 10), (6, 1), (6, 5), (6, 6), (6, 18), (7, 2)]
            .map(|(major, minor)| Way::of(KernelVersion::new(major, minor, 0)));
        assert_eq!(ways[..3], [Way::Clsact; 3]);
        assert_eq!(ways[3..], [Way::Tcx; 3]);
    }

    #[test]
    fn the_first_interface_has_a_name() {
        assert_eq!(name_of(1).as_deref(), Some("lo"));
        assert_eq!(name_of(u32::MAX), None);
    }
}
