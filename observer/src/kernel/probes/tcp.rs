//! The TCP probe: fills the rows of [`TcpCounters`](observer_common::tcp::TcpCounters) that the edge table reads.

use std::sync::Arc;

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, MapData, MapError},
    programs::{Iter, ProgramError},
};
use observer_common::{
    abi::maps::{EDGES, FREE_SLOTS, ROWS},
    counters::Loss,
    missed, older,
    tcp::{COMMON_LEN, globals, maps, programs},
};
use tracing::{info, warn};

use super::{Misses, ProbeError, Successor, load, sockets, succession::loaded, take};
use crate::{
    clock,
    kernel::{
        Accounting, Program, Programs,
        btf::{Btf, BtfError},
        edge_table::{EdgeTable, MissedEnds, Older, Sizes},
        pins::Pins,
    },
};

/// The object file. Empty when the build had no toolchain for it.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/tcp"));

/// Where this kernel has the fields that the programs read, by the names of their constants.
struct Offsets {
    /// Of sockets: those that programs read which count by sockets, too.
    shared: Vec<(&'static str, u32)>,
    /// On the way from an open file to its socket.
    open: Vec<(&'static str, u32)>,
}

impl Offsets {
    /// Looks them up.
    fn of(btf: &Btf) -> Result<Self, BtfError> {
        let common = |field: &str| {
            let offset = btf.offset("sock", &format!("__sk_common.{field}"))?;
            // The largest field is an IPv6 address.
            if offset as usize + 16 > COMMON_LEN {
                return Err(BtfError::Field {
                    structure: "struct sock_common near enough".into(),
                    field: field.into(),
                });
            }
            Ok(offset)
        };
        let cgroup = btf.first_offset(&[("sock", "sk_cgrp_data.cgroup"), ("sock", "sk_cgrp_data.val")])?;
        let shared = vec![
            (globals::DADDR, common("skc_daddr")?),
            (globals::RCV_SADDR, common("skc_rcv_saddr")?),
            (globals::DPORT, common("skc_dport")?),
            (globals::NUM, common("skc_num")?),
            (globals::FAMILY, common("skc_family")?),
            (globals::STATE, common("skc_state")?),
            (globals::NET, common("skc_net")?),
            (globals::V6_DADDR, common("skc_v6_daddr")?),
            (globals::V6_RCV_SADDR, common("skc_v6_rcv_saddr")?),
            (globals::COOKIE, common("skc_cookie")?),
            (globals::PROTOCOL, btf.offset("sock", "sk_protocol")?),
            (globals::ERR, btf.offset("sock", "sk_err")?),
            (globals::SOCKET, btf.offset("sock", "sk_socket")?),
            (globals::SOCKET_STATE, btf.offset("socket", "state")?),
            (globals::CGROUP, cgroup),
            (globals::CGROUP_KN, btf.offset("cgroup", "kn")?),
            (globals::KN_ID, btf.offset("kernfs_node", "id")?),
            // Since kernel 6.15 with underscores.
            (globals::KN_PARENT, btf.first_offset(&[("kernfs_node", "__parent"), ("kernfs_node", "parent")])?),
            (globals::SRTT_US, btf.offset("tcp_sock", "srtt_us")?),
            (globals::TOTAL_RETRANS, btf.offset("tcp_sock", "total_retrans")?),
            // Without these less is read of sockets that are over, and nothing that is wrong.
            (globals::PACING, btf.offset("tcp_sock", "pacing_timer.function").unwrap_or(0)),
            (globals::HELD_BACK, btf.offset("tcp_sock", "compressed_ack_timer.function").unwrap_or(0)),
            (globals::SIGNING, btf.offset("tcp_sock", "af_specific").unwrap_or(0)),
            (globals::LAST, last_byte(btf)),
        ];
        let open = vec![
            (older::globals::FILE_PRIVATE, btf.offset("file", "private_data")?),
            (older::globals::FILE_INODE, btf.offset("file", "f_inode")?),
            (older::globals::INODE_MODE, btf.offset("inode", "i_mode")?),
            (older::globals::SOCKET_SK, btf.offset("socket", "sk")?),
        ];
        Ok(Self { shared, open })
    }
}

/// The last byte of what programs read of a `struct tcp_sock`, those that count by sockets, too. All of it are numbers of up to eight
/// bytes.
fn last_byte(btf: &Btf) -> u32 {
    let fields = ["srtt_us", "total_retrans", "bytes_sent", "bytes_retrans", "bytes_received"];
    fields.iter().filter_map(|field| btf.offset("tcp_sock", field).ok()).max().map_or(0, |offset| offset + 7)
}

/// Whether this kernel's tracepoints have the arguments that the programs take.
fn check_tracepoints(btf: &Btf) -> Result<(), BtfError> {
    /// Arguments that the programs read; kernels may have more behind them.
    const ARGUMENTS: [usize; 5] = [3, 1, 2, 1, 1];
    let all = std::iter::once(programs::STATE).chain(programs::RARE);
    for ((_, tracepoint), wanted) in all.zip(ARGUMENTS) {
        if btf.tracepoint_argument_count(tracepoint).is_none_or(|count| count < wanted) {
            let field = format!("{wanted} arguments");
            return Err(BtfError::Field { structure: format!("tracepoint {tracepoint}"), field });
        }
    }
    Ok(())
}

/// Loads the programs and attaches them. They go on when the agent ends; those of an earlier agent count until the moment
/// when these do.
///
/// The maps are those of `table`, which are pinned already. Gives what the programs were not run for, and all of them.
///
/// # Errors
///
/// See [`ProbeError`].
pub fn start(pins: &Pins, btf: &Btf, table: &EdgeTable) -> Result<(Misses, Programs), ProbeError> {
    check_tracepoints(btf)?;
    let offsets = Offsets::of(btf)?;
    // No two agents start in the same nanosecond since boot: they hold a lock, and pins end with the machine. The wall
    // clock may tell a moment twice. 0 is nobody's.
    let generation = clock::monotonic().max(1);
    let sizes = table.sizes();
    let mut ebpf = load(OBJECT, pins, &maps::SHARED, |loader| {
        configure(loader, &offsets.shared, &generation, sizes);
        set_offsets(loader, &offsets.open);
    })?;
    let earlier = Misses::pinned(pins, &[&programs::ALL[..], &sockets::PROGRAMS].concat());
    let types = Types::of_this_kernel();
    let mut successors = Vec::new();
    let mut unused = None;
    // Attached nowhere, run by the agent.
    let mut called = Vec::new();
    let (adopt, ends);
    if pins.accounting() == Accounting::Sockets {
        let more = sockets::Offsets::of(btf)?;
        let shared = |loader: &mut _| configure(loader, &offsets.shared, &generation, sizes);
        let started = sockets::start(pins, table, &more, &types, shared)?;
        successors.push(started.states);
        called.push(started.read);
        adopt = Ok(started.adopt);
        ends = Ok(started.missed);
    } else {
        let (states, other) = types.follow_states(&mut ebpf, pins, [programs::CHANGE, programs::STATE])?;
        successors.push(states);
        unused = Some(other);
        adopt = loaded(&mut ebpf, older::programs::ADOPT);
        ends = loaded(&mut ebpf, missed::programs::MISSED);
    }
    for program in programs::RARE {
        successors.push(Successor::attach(&mut ebpf, pins, program)?);
    }
    let mut owner: Array<MapData, u64> = take(&mut ebpf, maps::OWNER)?;
    owner.set(0, generation, 0).map_err(|source| ProbeError::Map { map: maps::OWNER, source })?;
    let running = successors.into_iter().map(Successor::succeed).collect::<Result<Vec<_>, _>>()?;
    super::forget(pins, unused.as_slice());
    // Only now, when their ends are seen for sure.
    match adopt.and_then(|adopt| Ok((types.iterator(&mut ebpf, older::programs::OPEN, "task_file")?, adopt))) {
        Ok((open, adopt)) => {
            called.extend([Arc::clone(&open), Arc::clone(&adopt)]);
            table.meet(Older::new(open, adopt));
        }
        Err(error) => warn!("connections that are older than the agent are not counted: {error}"),
    }
    match ends {
        Ok(program) => {
            called.push(Arc::clone(&program));
            let passed_over = Misses::new(running.clone(), 0);
            table.watch_for_missed(MissedEnds::new(program, move || passed_over.total().ok().flatten()));
        }
        Err(error) => {
            warn!("a TCP connection whose end the kernel passes over (tcp_missed) is shown as one that lives: {error}");
        }
    }
    // Where procfs cannot be read, the collector will say so.
    let missed = earlier.total().ok().flatten().unwrap_or_default();
    let programs = running.iter().cloned().chain(called).collect();
    Ok((Misses::new(running, table.lose(Loss::TcpMissed, missed)), programs))
}

/// The kernel's types, for programs that are loaded with them.
pub(super) struct Types(Result<aya::Btf, aya::BtfError>);

impl Types {
    fn of_this_kernel() -> Self {
        Self(aya::Btf::from_sys_fs())
    }

    fn get(&self) -> Result<&aya::Btf, ProbeError> {
        self.0.as_ref().map_err(|error| ProbeError::NoTypes(error.to_string()))
    }

    /// Attaches the program that sees connections begin and end: the first one, which costs less, where the kernel takes it.
    /// Tells also which it is not.
    pub(super) fn follow_states(
        &self,
        ebpf: &mut Ebpf,
        pins: &Pins,
        [typed, other]: [(&'static str, &'static str); 2],
    ) -> Result<(Successor, (&'static str, &'static str)), ProbeError> {
        match self.get().and_then(|types| Successor::attach_typed(ebpf, pins, typed, types)) {
            Ok(states) => Ok((states, other)),
            Err(refused) => {
                info!(
                    "following a TCP connection costs a little more on this kernel than on newer ones (5.15): {refused}"
                );
                Ok((Successor::attach(ebpf, pins, other)?, typed))
            }
        }
    }

    /// Loads an iterator over what the kernel calls `over`.
    fn iterator(&self, ebpf: &mut Ebpf, program: &'static str, over: &str) -> Result<Arc<Program>, ProbeError> {
        let refused = |source| ProbeError::Program { program, source };
        let missing = || refused(ProgramError::NotLoaded);
        let iterator: &mut Iter = ebpf.program_mut(program).ok_or_else(missing)?.try_into().map_err(refused)?;
        iterator.load(over, self.get()?).map_err(refused)?;
        iterator.fd().and_then(|fd| Ok(Program::of(program, fd)?)).map_err(refused)
    }
}

/// Ends the programs, or what an earlier agent left of them. The traffic's programs count connections by themselves then.
pub fn forget(pins: &Pins) {
    if let Err(error) = disown(pins) {
        warn!("TCP connections that begin are not counted: {error}");
    }
    super::forget(pins, &programs::ALL);
    sockets::forget(pins);
}

/// From now on no generation counts.
fn disown(pins: &Pins) -> Result<(), MapError> {
    let map = aya::maps::Map::Array(MapData::from_pin(pins.map(maps::OWNER))?);
    let mut owner: Array<MapData, u64> = Array::try_from(map)?;
    owner.set(0, 0, 0)
}

fn configure<'a>(loader: &mut EbpfLoader<'a>, offsets: &'a [(&'static str, u32)], generation: &'a u64, table: Sizes) {
    loader
        .map_max_entries(EDGES, table.slots)
        .map_max_entries(ROWS, table.slots)
        .map_max_entries(maps::QUALITY, table.slots)
        .map_max_entries(FREE_SLOTS, table.edges)
        .override_global(globals::GENERATION, generation, true);
    set_offsets(loader, offsets);
}

fn set_offsets<'a>(loader: &mut EbpfLoader<'a>, offsets: &'a [(&'static str, u32)]) {
    for (name, offset) in offsets {
        loader.override_global(name, offset, true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernel_has_what_is_read() {
        let Ok(btf) = Btf::of_this_kernel() else { return };
        check_tracepoints(&btf).unwrap();
        let Offsets { shared, open } = Offsets::of(&btf).unwrap();
        let names: std::collections::HashSet<_> = shared.iter().chain(&open).map(|(name, _)| name).collect();
        assert_eq!(names.len(), shared.len() + open.len());
        // Without these programs run all the same, and know less of connections that are over.
        for wanted in [globals::PACING, globals::HELD_BACK, globals::LAST] {
            assert!(shared.iter().any(|(name, offset)| *name == wanted && *offset != 0), "{wanted}");
        }
    }

    #[test]
    fn a_kernel_without_sockets_is_told_as_such() {
        // struct btf_header without types: magic, version, flags, then lengths and offsets.
        let mut bytes = 0xeb9fu16.to_ne_bytes().to_vec();
        bytes.extend([1, 0]);
        bytes.extend([24u32, 0, 0, 0, 1].into_iter().flat_map(u32::to_ne_bytes));
        bytes.push(0);
        let btf = Btf::parse(bytes).unwrap();
        let error = check_tracepoints(&btf).unwrap_err().to_string();
        assert!(error.contains("tracepoint inet_sock_set_state"), "{error}");
        assert!(Offsets::of(&btf).is_err());
    }
}
