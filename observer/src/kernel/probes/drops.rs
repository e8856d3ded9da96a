//! The probe of dropped packets: counts by owner and reason, and the addresses of pods that its program looks up.

mod entries;

use std::{
    collections::HashMap as StdHashMap,
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    io,
    path::PathBuf,
    sync::Arc,
};

use aya::{
    maps::{Array, HashMap, MapData, MapError},
    programs::links::{FdLink, PinnedLink},
};
use observer_common::drops::{DropCount, DropKey, Loss, NO_REASON, flags, globals, maps, programs};

use self::entries::DropsMap;
use super::{ProbeError, load, succession::raw_tracepoint, take};
use crate::kernel::{
    Program,
    btf::{Btf, BtfError},
    pins::Pins,
    sys,
};

/// The object file. Empty when the build had no toolchain for it.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/drops"));

/// What the names of most reasons begin with.
const PREFIX: &str = "SKB_DROP_REASON_";
/// The reason of `kfree_skb`, which gives none; and what is freed with its queue (since kernel 6.8, without a reason before),
/// when a socket or a device ends: one for nearly every TCP connection, whose FIN nobody reads (`sk_stream_kill_queues` in
/// net/core/stream.c).
const UNSPECIFIED: [&str; 2] = ["SKB_DROP_REASON_NOT_SPECIFIED", "SKB_DROP_REASON_QUEUE_PURGE"];

/// Packets between devices and what comes in before the kernel notes the interface (`enqueue_to_backlog` and
/// `do_xdp_generic` in net/core/dev.c).
const AT_THE_DOOR: [&str; 2] = ["SKB_DROP_REASON_CPU_BACKLOG", "SKB_DROP_REASON_XDP"];
/// The packet does not come from where it says it does (`ip_route_input_slow` and `fib_validate_source` in net/ipv4).
const FALSE_SOURCE: [&str; 3] =
    ["SKB_DROP_REASON_IP_RPFILTER", "SKB_DROP_REASON_IP_LOCAL_SOURCE", "SKB_DROP_REASON_IP_INVALID_SOURCE"];
/// The packet was used (`enum skb_drop_reason` in include/net/dropreason-core.h).
const NO_DROPS: [&str; 2] = ["SKB_NOT_DROPPED_YET", "SKB_CONSUMED"];

/// Offsets that the program reads: the constant's name, the structure, the field.
const OFFSETS: [(&str, &str, &str); 17] = [
    (globals::SKB_DEV, "sk_buff", "dev"),
    (globals::SKB_SK, "sk_buff", "sk"),
    (globals::SKB_IIF, "sk_buff", "skb_iif"),
    (globals::SKB_DST, "sk_buff", "_skb_refdst"),
    (globals::SKB_HEAD, "sk_buff", "head"),
    (globals::SKB_NETWORK, "sk_buff", "network_header"),
    (globals::SKB_PROTOCOL, "sk_buff", "protocol"),
    (globals::SK_FAMILY, "sock", "__sk_common.skc_family"),
    (globals::SK_STATE, "sock", "__sk_common.skc_state"),
    (globals::SK_NET, "sock", "__sk_common.skc_net.net"),
    (globals::SK_CGROUP, "sock", "sk_cgrp_data.cgroup"),
    (globals::CGROUP_KN, "cgroup", "kn"),
    (globals::KN_ID, "kernfs_node", "id"),
    (globals::DEV_NET, "net_device", "nd_net.net"),
    (globals::DST_DEV, "dst_entry", "dev"),
    (globals::NET_INUM, "net", "ns.inum"),
    (globals::NET_COOKIE, "net", "net_cookie"),
];

/// What the program is told of this kernel.
#[derive(Debug, Hash)]
struct Constants {
    offsets: Vec<u32>,
    has_rx_socket: u8,
    unspecified: [u32; 2],
    no_drops: [u32; 2],
    at_the_door: [u32; 2],
    false_source: [u32; 3],
}

/// The kernel's names of its reasons.
#[derive(Debug, Clone, Default)]
pub struct Reasons {
    by_number: StdHashMap<u32, String>,
}

/// What is in no entry, since counting began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DropLosses {
    /// Packets that were freed without a reason.
    pub unspecified: u64,
    /// Packets of which nothing told whose they were.
    pub no_owner: u64,
    /// Packets that found the table full.
    pub table_full: u64,
    /// Packets dropped while their CPU was just counting another, since this program was loaded; `None` where the
    /// kernel does not tell (before 5.12).
    pub interrupted: Option<u64>,
}

/// The running probe. Its program goes on when it is dropped.
pub struct DropsProbe {
    drops: DropsMap,
    losses: Array<MapData, u64>,
    program: Arc<Program>,
    reasons: Reasons,
}

/// Where pods are, as the program knows it.
pub struct DropsPods {
    addresses: Mirror<[u8; 16], u64>,
    netns: Mirror<u32, u8>,
}

/// A map that only the agent writes, and what it has written.
struct Mirror<K, V> {
    map: HashMap<MapData, K, V>,
    known: StdHashMap<K, V>,
}

impl DropsProbe {
    /// Loads and attaches it. A program that an earlier agent left is kept when it is the same: then no packet is
    /// missed or counted twice. Else it is replaced, and what is dropped in the milliseconds between is not counted.
    ///
    /// # Errors
    ///
    /// See [`ProbeError`]; unsupported before kernel 5.17, whose drops have no reasons.
    pub fn start(pins: &Pins, btf: &Btf) -> Result<(Self, DropsPods), ProbeError> {
        let reasons = Reasons::of(btf)?;
        let constants = Constants::of(btf, &reasons)?;
        let left = Left::find(pins, &constants);
        let mut ebpf = load(OBJECT, pins, &maps::PINNED, |loader| constants.set(loader))?;
        let program = match left {
            Some(program) => program,
            None => attach(&mut ebpf, pins, &constants)?,
        };
        let addresses = Mirror::new(take(&mut ebpf, maps::PODS)?);
        let netns = Mirror::new(take(&mut ebpf, maps::NETNS)?);
        let drops = DropsMap::take(&mut ebpf)?;
        let probe = Self { drops, losses: take(&mut ebpf, maps::LOSSES)?, program, reasons };
        Ok((probe, DropsPods { addresses, netns }))
    }

    /// All entries.
    ///
    /// # Errors
    ///
    /// What bpf(2) says.
    pub fn read(&self) -> Result<Vec<(DropKey, DropCount)>, MapError> {
        self.drops.all()
    }

    /// What is in no entry.
    ///
    /// # Errors
    ///
    /// What bpf(2) says.
    pub fn losses(&self) -> Result<DropLosses, MapError> {
        let of = |loss| self.losses.get(&(loss as u32), 0);
        Ok(DropLosses {
            unspecified: of(Loss::Unspecified)?,
            no_owner: of(Loss::NoOwner)?,
            table_full: of(Loss::TableFull)?,
            interrupted: self.program.told().ok().and_then(|told| told.misses),
        })
    }

    /// The program.
    #[must_use]
    pub const fn program(&self) -> &Arc<Program> {
        &self.program
    }

    /// The names of reasons.
    #[must_use]
    pub const fn reasons(&self) -> &Reasons {
        &self.reasons
    }

    /// Forgets an entry that was shown for the last time.
    pub fn forget(&mut self, key: &DropKey) {
        self.drops.forget(key);
    }

    /// Adds an entry that nobody knows to the one for all of those, with its reason and direction.
    ///
    /// # Errors
    ///
    /// As for [`DropsProbe::hand_over`].
    pub fn fold(&mut self, key: &DropKey) -> Result<(), MapError> {
        let flags = key.flags & flags::RECEIVE | flags::FOLDED;
        self.hand_over(key, &DropKey { reason: key.reason, flags, ..DropKey::default() })
    }

    /// Adds an entry to one that no program writes.
    ///
    /// # Errors
    ///
    /// What bpf(2) says; the entry stays then.
    pub fn hand_over(&mut self, key: &DropKey, heir: &DropKey) -> Result<(), MapError> {
        entries::hand_over(&mut self.drops, key, heir)
    }
}

impl DropsPods {
    /// Makes these the addresses that are known, each with the id of a cgroup of its pod, and these the network
    /// namespaces of pods, by inode.
    ///
    /// # Errors
    ///
    /// What bpf(2) says of the first one that does not fit; the others are taken.
    pub fn set(&mut self, addresses: &StdHashMap<[u8; 16], u64>, netns: &[u32]) -> Result<(), MapError> {
        let netns = netns.iter().map(|inode| (*inode, 1)).collect();
        let inside = self.netns.set(&netns);
        self.addresses.set(addresses).and(inside)
    }
}

impl<K: aya::Pod + Eq + Hash, V: aya::Pod + PartialEq> Mirror<K, V> {
    /// With what an earlier agent wrote.
    fn new(map: HashMap<MapData, K, V>) -> Self {
        let known = map.iter().filter_map(Result::ok).collect();
        Self { map, known }
    }

    fn set(&mut self, wanted: &StdHashMap<K, V>) -> Result<(), MapError> {
        let mut result = Ok(());
        self.known.retain(|key, _| wanted.contains_key(key) || self.map.remove(key).is_err());
        for (key, value) in wanted {
            if self.known.get(key) == Some(value) {
                continue;
            }
            match self.map.insert(key, value, 0) {
                Ok(()) => {
                    self.known.insert(*key, *value);
                }
                Err(error) => result = result.and(Err(error)),
            }
        }
        result
    }
}

impl Reasons {
    fn of(btf: &Btf) -> Result<Self, BtfError> {
        let tracepoint = programs::DROP.1;
        let missing = || BtfError::Field {
            structure: format!("tracepoint {tracepoint}"),
            field: "reason (it came with kernel 5.17)".to_owned(),
        };
        if btf.tracepoint_argument_count(tracepoint).is_none_or(|count| count < 3) {
            return Err(missing());
        }
        btf.enumeration_with(UNSPECIFIED[0]).map(|by_number| Self { by_number }).ok_or_else(missing)
    }

    /// The kernel's name of a reason, without `SKB_DROP_REASON_`. A reason of a subsystem (net/core/skbuff.c,
    /// `drop_reasons_by_subsys`), whose names are not in the kernel's own list, is told by its numbers.
    #[must_use]
    pub fn name(&self, reason: u32) -> String {
        match self.by_number.get(&reason) {
            Some(name) => name.strip_prefix(PREFIX).unwrap_or(name).to_owned(),
            None if reason >> 16 != 0 => format!("SUBSYSTEM_{}_{}", reason >> 16, reason & 0xffff),
            None => format!("REASON_{reason}"),
        }
    }

    fn numbers<const N: usize>(&self, names: [&str; N]) -> [u32; N] {
        names.map(|wanted| {
            let number = self.by_number.iter().find(|(_, name)| *name == wanted).map(|(number, _)| *number);
            number.unwrap_or(NO_REASON)
        })
    }
}

impl Constants {
    fn of(btf: &Btf, reasons: &Reasons) -> Result<Self, BtfError> {
        let offsets = OFFSETS.iter().map(|(_, structure, field)| btf.offset(structure, field));
        Ok(Self {
            offsets: offsets.collect::<Result<_, _>>()?,
            has_rx_socket: u8::from(btf.tracepoint_argument_is_pointer(programs::DROP.1, 3) == Some(true)),
            unspecified: reasons.numbers(UNSPECIFIED),
            no_drops: reasons.numbers(NO_DROPS),
            at_the_door: reasons.numbers(AT_THE_DOOR),
            false_source: reasons.numbers(FALSE_SOURCE),
        })
    }

    fn set<'a>(&'a self, loader: &mut aya::EbpfLoader<'a>) {
        for ((name, ..), offset) in OFFSETS.iter().zip(&self.offsets) {
            loader.override_global(name, offset, true);
        }
        loader
            .override_global(globals::HAS_RX_SOCKET, &self.has_rx_socket, true)
            .override_global(globals::UNSPECIFIED, &self.unspecified, true)
            .override_global(globals::NO_DROPS, &self.no_drops, true)
            .override_global(globals::AT_THE_DOOR, &self.at_the_door, true)
            .override_global(globals::FALSE_SOURCE, &self.false_source, true);
    }

    /// Tells this build's program with these constants from any other.
    fn digest(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        OBJECT.hash(&mut hasher);
        self.hash(&mut hasher);
        hasher.finish()
    }

    /// Where the link and the program are pinned.
    fn pins(&self, pins: &Pins) -> [PathBuf; 2] {
        let name = format!("{}-{:016x}", programs::DROP.0, self.digest());
        [pins.probe(&name), pins.probe(&format!("{name}-program"))]
    }
}

/// What an earlier agent left.
struct Left;

impl Left {
    /// The program, when it is the same as this agent's and counts into the maps that are pinned. Else all that is left
    /// of it goes.
    fn find(pins: &Pins, constants: &Constants) -> Option<Arc<Program>> {
        let [link, program] = constants.pins(pins);
        let whole = maps::PINNED.iter().all(|map| pins.map(map).exists());
        match sys::obj_get(&program) {
            Ok(fd) if whole && sys::obj_get(&link).is_ok() => Some(Program::from_fd(programs::DROP.0, fd)),
            _ => {
                Self::remove(pins);
                None
            }
        }
    }

    /// Detaches every program of this probe.
    fn remove(pins: &Pins) {
        let directory = pins.probe("");
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(programs::DROP.0) {
                // Held while its name goes: the kernel then detaches it before the descriptor is closed, not later.
                let held = sys::obj_get(&entry.path());
                let _ = fs::remove_file(entry.path());
                drop(held);
            }
        }
    }
}

fn attach(ebpf: &mut aya::Ebpf, pins: &Pins, constants: &Constants) -> Result<Arc<Program>, ProbeError> {
    let (program, tracepoint) = programs::DROP;
    let refused = |source| ProbeError::Program { program, source };
    let [link_path, program_path] = constants.pins(pins);
    let pin = |path: &PathBuf, source: io::Error| ProbeError::Pin { path: path.clone(), source };
    let point = raw_tracepoint(ebpf, program)?;
    point.load().map_err(refused)?;
    point.pin(&program_path).map_err(|error| pin(&program_path, io::Error::other(error)))?;
    let id = point.attach(tracepoint).map_err(refused)?;
    let link = FdLink::from(point.take_link(id).map_err(refused)?);
    link.pin(&link_path).map(drop::<PinnedLink>).map_err(|error| pin(&link_path, io::Error::other(error)))?;
    let fd = sys::obj_get(&program_path).map_err(|error| pin(&program_path, error))?;
    Ok(Program::from_fd(program, fd))
}

/// Ends what an earlier agent left, for one that cannot run the probe.
pub fn forget(pins: &Pins) {
    Left::remove(pins);
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn reasons() -> Reasons {
        let names = [(0, "SKB_NOT_DROPPED_YET"), (2, UNSPECIFIED[0]), (3, "SKB_DROP_REASON_NO_SOCKET")];
        Reasons { by_number: names.map(|(number, name)| (number, name.to_owned())).into() }
    }

    #[test]
    fn reasons_have_the_kernels_names() {
        let reasons = reasons();
        assert_eq!(reasons.name(3), "NO_SOCKET");
        assert_eq!(reasons.name(77), "REASON_77");
        assert_eq!(reasons.name(3 << 16 | 7), "SUBSYSTEM_3_7");
        assert_eq!(reasons.numbers(["SKB_CONSUMED", "SKB_NOT_DROPPED_YET"]), [NO_REASON, 0]);
    }

    #[test]
    fn the_constants_are_this_kernels() {
        let Ok(btf) = Btf::of_this_kernel() else { return };
        let Ok(reasons) = Reasons::of(&btf) else { return };
        let mut constants = Constants::of(&btf, &reasons).unwrap();
        let distinct: HashSet<u32> = constants.offsets[..7].iter().copied().collect();
        assert_eq!(distinct.len(), 7, "fields of one structure stand in different places");
        assert_ne!(constants.unspecified[0], NO_REASON);
        let digest = constants.digest();
        assert_eq!(digest, Constants::of(&btf, &reasons).unwrap().digest());
        constants.offsets[3] += 1;
        assert_ne!(constants.digest(), digest, "with other constants it is another program");
    }
}
