//! Loading: the object that the build embedded becomes maps and programs in the kernel.

use std::{
    io,
    os::fd::AsFd,
    path::PathBuf,
    sync::{Mutex, OnceLock, atomic::AtomicU64},
};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::{Array, HashMap, MapData, MapError, Queue},
    programs::{CgroupSkb, ProgramError, SchedClassifier},
};
use aya_log::EbpfLogger;
use observer_common::{
    abi, cache, decision, dns,
    record::{ContainerRecord, READY, TableRecord},
    tcp,
};
use tracing::{info, warn};

use super::{
    Accounting,
    attach::Attacher,
    decisions::DecisionMap,
    dns::{DnsRecords, PeerNames},
    dns_clients::DnsClients,
    edge_table::{Connections, EdgeTable, Sizes},
    ended::EndedMap,
    mapping::Mapping,
    names::Names,
    pins::Pins,
};

/// The object file, made by the build script. Empty when the build had no toolchain for it.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/observer-ebpf"));

/// How the kernel side is set up.
#[derive(Debug, Clone, Copy)]
pub struct LoadOptions {
    /// Edges that fit; see [`abi::DEFAULT_EDGES`].
    pub edges: u32,
    /// Log statements of the kernel programs are compiled in.
    pub debug: bool,
    /// The resolvers' ports, packed by [`dns::pack_ports`]; 0 when DNS is not looked at.
    pub dns_ports: u64,
}

/// Everything of the kernel's side, taken apart for those who use it.
pub struct Kernel {
    /// Attaches the programs.
    pub attacher: Attacher,
    /// Reads the counters.
    pub table: EdgeTable,
    /// Remembers names for the next agent.
    pub names: Names,
    /// Packets to and from resolvers.
    pub dns: DnsRecords,
    /// What was counted of them, where it outlives the agent.
    pub dns_clients: DnsClients,
    /// Names of peers that outlive the agent.
    pub peer_names: PeerNames,
    /// Who peers were decided to be, for the agent that comes after this one.
    pub decisions: DecisionMap,
    /// Keeps what ended containers used.
    pub ended: EndedMap,
    /// What the kernel programs log, when they were asked to.
    pub log: Option<EbpfLogger<&'static dyn log::Log>>,
}

/// Why the kernel side cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The build had no toolchain for kernel programs.
    #[error(
        "this agent was built without its kernel programs; run `cargo xtask setup`, then `cargo build --release` again"
    )]
    NotBuilt,
    /// The object was refused.
    #[error("loading the kernel programs failed: {0}{hint}", hint = hint(.0))]
    Object(#[from] EbpfError),
    /// A program was refused.
    #[error("the kernel refused the program {name}: {source}{hint}", hint = program_hint(.source))]
    Program {
        /// The program.
        name: &'static str,
        /// What the kernel said; the verifier's log included.
        source: ProgramError,
    },
    /// A map is missing or of another kind than this agent expects.
    #[error("the map {name} cannot be used: {source}")]
    Map {
        /// The map.
        name: &'static str,
        /// What is wrong.
        source: MapError,
    },
    /// A map could not be mapped into memory.
    #[error("the map {name} cannot be mapped into memory: {source}")]
    Mmap {
        /// The map.
        name: &'static str,
        /// What mmap(2) said.
        source: io::Error,
    },
    /// The number of CPUs is unknown.
    #[error("cannot read the number of CPUs from {path}: {source}")]
    Cpus {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

fn hint(error: &EbpfError) -> &'static str {
    if is_permission(error) { PERMISSION_HINT } else { "" }
}

fn program_hint(error: &ProgramError) -> &'static str {
    if is_permission(error) { PERMISSION_HINT } else { "" }
}

const PERMISSION_HINT: &str = "; the agent needs root, or the capabilities CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON \
                               (before kernel 5.8: CAP_SYS_ADMIN); `observer check` shows what is missing";

fn is_permission(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return error.kind() == io::ErrorKind::PermissionDenied;
        }
        next = error.source();
    }
    false
}

impl Kernel {
    /// Loads the programs. Maps that an earlier agent left pinned are used as they are, with all that they counted.
    ///
    /// # Errors
    ///
    /// See [`LoadError`].
    pub fn load(pins: &Pins, options: LoadOptions) -> Result<Self, LoadError> {
        if OBJECT.is_empty() {
            return Err(LoadError::NotBuilt);
        }
        let cpus = aya::util::nr_cpus()
            .map_err(|(path, source)| LoadError::Cpus { path: path.into(), source })
            .map(|cpus| u32::try_from(cpus).unwrap_or(u32::MAX))?;
        let found = found(pins, cpus);
        let table = found.unwrap_or(TableRecord { edges: options.edges, cpus, ready: 0 });
        if found.is_none() {
            pins.forget_maps();
        } else if table.edges != options.edges {
            warn!(
                edges = table.edges,
                wanted = options.edges,
                "the edge table keeps the size it was made with; `observer uninstall` gives it up with its counters"
            );
        }
        let sizes = Sizes { edges: table.edges, slots: abi::slots_for(table.edges), cpus };
        let mut ebpf = with_or_without(|finds_connections| {
            let mut ebpf = load_object(pins, sizes, options, finds_connections)?;
            // Before the maps are taken out: the programs know them by descriptor.
            if pins.accounting() == Accounting::Packets {
                load_programs(&mut ebpf)?;
            }
            Ok(ebpf)
        })?;
        let mut table_map: Array<MapData, TableRecord> = take(&mut ebpf, abi::maps::TABLE)?;
        let table = edge_table(&mut ebpf, sizes)?;
        if found.is_none() {
            table.fill().map_err(|source| LoadError::Map { name: abi::maps::FREE_SLOTS, source })?;
            table_map
                .set(0, TableRecord { edges: sizes.edges, cpus, ready: READY }, 0)
                .map_err(|source| LoadError::Map { name: abi::maps::TABLE, source })?;
        } else {
            info!(edges = sizes.edges, "going on with the counters of an earlier agent");
        }
        let names = Names::new(take::<HashMap<MapData, u64, ContainerRecord>>(&mut ebpf, abi::maps::CONTAINERS)?);
        let dns = DnsRecords::new(take(&mut ebpf, dns::maps::RECORDS)?, take(&mut ebpf, dns::maps::LOST)?);
        let dns_clients = DnsClients::new(take(&mut ebpf, dns::maps::CLIENTS)?);
        let peer_names = PeerNames::new(take(&mut ebpf, dns::maps::PEER_NAMES)?);
        let decisions = DecisionMap::new(take(&mut ebpf, decision::MAP)?);
        let ended = EndedMap::new(take(&mut ebpf, abi::maps::ENDED)?);
        let log = if options.debug {
            EbpfLogger::init(&mut ebpf)
                .inspect_err(|error| warn!(%error, "the kernel programs' log cannot be read"))
                .ok()
        } else {
            None
        };
        let observed = take(&mut ebpf, abi::maps::OBSERVED)?;
        let attacher = Attacher::new(ebpf, pins, observed)?;
        Ok(Self { attacher, table, names, ended, dns, dns_clients, peer_names, decisions, log })
    }

    /// Loads the programs with maps of the smallest size, which nobody sees and which go at once: says whether this
    /// kernel and these permissions allow it.
    ///
    /// # Errors
    ///
    /// See [`LoadError`].
    pub fn probe() -> Result<(), LoadError> {
        if OBJECT.is_empty() {
            return Err(LoadError::NotBuilt);
        }
        let sizes = Sizes { edges: 16, slots: abi::slots_for(16), cpus: 1 };
        with_or_without(|finds_connections| {
            let mut loader = EbpfLoader::new();
            size(&mut loader, &sizes);
            // With every part in, so that the verifier sees all of it.
            let dns_ports = dns::pack_ports(&[53]);
            loader.override_global(dns::globals::DNS_PORTS, &dns_ports, true);
            loader.override_global(abi::globals::FINDS_CONNECTIONS, &finds_connections, true);
            load_programs(&mut loader.load(OBJECT)?)
        })
    }

    /// Loads the programs that do nothing, for benchmarks.
    ///
    /// # Errors
    ///
    /// See [`LoadError`].
    pub fn load_empty() -> Result<Ebpf, LoadError> {
        if OBJECT.is_empty() {
            return Err(LoadError::NotBuilt);
        }
        let mut ebpf = EbpfLoader::new().load(OBJECT)?;
        for name in [abi::programs::EMPTY_INGRESS, abi::programs::EMPTY_EGRESS] {
            program(&mut ebpf, name)?.load().map_err(|source| LoadError::Program { name, source })?;
        }
        Ok(ebpf)
    }

    /// The same for a network interface.
    ///
    /// # Errors
    ///
    /// See [`LoadError`].
    pub fn load_empty_at_interface() -> Result<Ebpf, LoadError> {
        if OBJECT.is_empty() {
            return Err(LoadError::NotBuilt);
        }
        let name = abi::programs::EMPTY_INTERFACE;
        let refused = |source| LoadError::Program { name, source };
        let mut ebpf = EbpfLoader::new().load(OBJECT)?;
        let program = ebpf.program_mut(name).ok_or_else(|| refused(ProgramError::NotLoaded))?;
        let program: &mut SchedClassifier = program.try_into().map_err(refused)?;
        program.load().map_err(refused)?;
        Ok(ebpf)
    }
}

/// The table that an earlier agent left, if it is complete and fits this machine.
fn found(pins: &Pins, cpus: u32) -> Option<TableRecord> {
    let map = MapData::from_pin(pins.map(abi::maps::TABLE)).ok()?;
    let map: Array<_, TableRecord> = Array::try_from(aya::maps::Map::Array(map)).ok()?;
    let record = map.get(&0, 0).ok()?;
    (record.ready == READY && record.cpus == cpus).then_some(record)
}

/// Loads with what finds connections by their sockets, and where the kernel refuses that, without: it lets no program read its
/// memory then (`LOCKDOWN_BPF_READ_KERNEL` of include/linux/security.h).
fn with_or_without<T>(load: impl Fn(u8) -> Result<T, LoadError>) -> Result<T, LoadError> {
    match load(1) {
        Err(LoadError::Program { source, .. }) => {
            let loaded = load(0)?;
            info!("connections that lose their place in the cache are found by their peer alone: {source}");
            Ok(loaded)
        }
        outcome => outcome,
    }
}

fn load_programs(ebpf: &mut Ebpf) -> Result<(), LoadError> {
    for name in [abi::programs::INGRESS, abi::programs::EGRESS] {
        program(ebpf, name)?.load().map_err(|source| LoadError::Program { name, source })?;
    }
    Ok(())
}

fn load_object(pins: &Pins, sizes: Sizes, options: LoadOptions, finds_connections: u8) -> Result<Ebpf, EbpfError> {
    let mut loader = EbpfLoader::new();
    for name in abi::maps::PINNED {
        loader.map_pin_path(name, pins.map(name));
    }
    size(&mut loader, &sizes);
    let atomic = u8::from(softirqs_are_threads());
    loader.override_global(abi::globals::ATOMIC_INGRESS, &atomic, true);
    let ephemeral = ephemeral_min();
    loader.override_global(abi::globals::EPHEMERAL_MIN, &ephemeral, true);
    loader.override_global(abi::globals::FINDS_CONNECTIONS, &finds_connections, true);
    loader.override_global(dns::globals::DNS_PORTS, &options.dns_ports, true);
    let level: u8 = if options.debug { aya_log_level_debug() } else { 0 };
    loader.override_global(aya_log::LEVEL, &level, false);
    loader.load(OBJECT)
}

/// Sets the sizes of the maps, and the constant that must agree with them.
fn size<'a>(loader: &mut EbpfLoader<'a>, sizes: &'a Sizes) {
    loader
        .map_max_entries(abi::maps::EDGES, sizes.slots)
        .map_max_entries(abi::maps::ROWS, sizes.slots)
        .map_max_entries(tcp::maps::QUALITY, sizes.slots)
        .map_max_entries(abi::maps::COUNTERS, sizes.slots.saturating_mul(sizes.rows()))
        .map_max_entries(abi::maps::FREE_SLOTS, sizes.edges)
        .override_global(abi::globals::SLOTS_PER_CPU, &sizes.slots, true);
}

/// `log::Level::Debug` as the kernel side's log macros number it.
const fn aya_log_level_debug() -> u8 {
    log::Level::Debug as u8
}

/// True on a PREEMPT_RT kernel, where a packet that is being counted can be interrupted by the next one.
fn softirqs_are_threads() -> bool {
    std::fs::read_to_string("/sys/kernel/realtime").is_ok_and(|text| text.trim() == "1")
}

/// The first port that the kernel chooses for clients (ip_local_port_range in Documentation/networking/ip-sysctl.rst);
/// pods may have another range, but hardly ever do.
#[must_use]
pub fn ephemeral_min() -> u32 {
    const DEFAULT: u32 = 32_768;
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    text.split_whitespace().next().and_then(|port| port.parse().ok()).unwrap_or(DEFAULT)
}

fn edge_table(ebpf: &mut Ebpf, sizes: Sizes) -> Result<EdgeTable, LoadError> {
    let slots = sizes.slots as usize;
    let rows = sizes.rows() as usize;
    let missing = || MapError::InvalidName { name: tcp::maps::LIVE.to_owned() };
    let live_fd = match ebpf.map(tcp::maps::LIVE) {
        Some(aya::maps::Map::HashMap(map)) => map.fd().as_fd().try_clone_to_owned().map_err(MapError::IoError),
        _ => Err(missing()),
    };
    let live_fd = live_fd.map_err(|source| LoadError::Map { name: tcp::maps::LIVE, source })?;
    Ok(EdgeTable {
        sizes,
        rows: mapping(ebpf, abi::maps::ROWS, slots)?,
        counters: mapping(ebpf, abi::maps::COUNTERS, slots * rows)?,
        losses: mapping(ebpf, abi::maps::LOSSES, observer_common::counters::LOSSES as usize)?,
        sockets: mapping(ebpf, abi::maps::SOCKETS, cache::SOCKET_LINES as usize)?,
        peers: mapping(ebpf, abi::maps::PEERS, cache::PEER_LINES as usize)?,
        quality: mapping(ebpf, tcp::maps::QUALITY, slots)?,
        connections: Connections::new(
            mapping(ebpf, tcp::maps::LINES, tcp::LIVE_LINES as usize)?,
            take(ebpf, tcp::maps::LIVE)?,
            live_fd,
            mapping(ebpf, tcp::maps::HASHED, tcp::LINE_GROUPS as usize)?,
        ),
        edges: take::<HashMap<MapData, _, _>>(ebpf, abi::maps::EDGES)?.into(),
        free: take::<Queue<MapData, u32>>(ebpf, abi::maps::FREE_SLOTS)?.into(),
        spare: take::<Queue<MapData, u32>>(ebpf, abi::maps::SPARE_SLOTS)?.into(),
        moving: Mutex::default(),
        carried: OnceLock::new(),
        older: OnceLock::new(),
        older_full: AtomicU64::new(0),
        missed: OnceLock::new(),
    })
}

fn take<T>(ebpf: &mut Ebpf, name: &'static str) -> Result<T, LoadError>
where
    T: TryFrom<aya::maps::Map, Error = MapError>,
{
    let missing = || LoadError::Map { name, source: MapError::InvalidName { name: name.to_owned() } };
    T::try_from(ebpf.take_map(name).ok_or_else(missing)?).map_err(|source| LoadError::Map { name, source })
}

fn mapping<T: aya::Pod>(ebpf: &mut Ebpf, name: &'static str, length: usize) -> Result<Mapping<T>, LoadError> {
    let missing = || LoadError::Map { name, source: MapError::InvalidName { name: name.to_owned() } };
    match ebpf.take_map(name).ok_or_else(missing)? {
        aya::maps::Map::Array(map) => {
            Mapping::new(map.fd().as_fd(), length).map_err(|source| LoadError::Mmap { name, source })
        }
        _ => Err(missing()),
    }
}

pub(super) fn program<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut CgroupSkb, LoadError> {
    let missing = || LoadError::Program { name, source: ProgramError::NotLoaded };
    ebpf.program_mut(name).ok_or_else(missing)?.try_into().map_err(|source| LoadError::Program { name, source })
}
