//! The TCP probe's part for `--traffic.accounting=sockets`: payload from the sockets' own counters.

use std::os::fd::AsFd;

use aya::{
    Ebpf, EbpfLoader,
    maps::{Map, MapError},
};
use observer_common::{
    abi,
    sockets::{BATCH, globals, maps, programs},
    tcp,
};
use tracing::info;

use super::{ProbeError, Successor, load, succession::loaded};
use crate::kernel::{
    btf::{Btf, BtfError},
    edge_table::{Carried, EdgeTable, Older, Sizes},
    mapping::Mapping,
    pins::Pins,
};

/// The object file. Empty when the build had no toolchain for it.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/sockets"));

/// The programs for state changes, of which one runs.
pub(super) const PROGRAMS: [(&str, &str); 2] = [programs::CHANGE, programs::STATE];

/// Where this kernel has the fields that only these programs read.
pub(super) struct Offsets(Vec<(&'static str, u32)>);

impl Offsets {
    /// Looks them up.
    pub(super) fn of(btf: &Btf) -> Result<Self, BtfError> {
        Ok(Self(vec![
            (globals::NET, btf.offset("sock", "__sk_common.skc_net")?),
            (globals::FLAGS, btf.first_offset(&[("sock", "sk_flags"), ("sock", "__sk_common.skc_flags")])?),
            (globals::LOCK, btf.offset("sock", "sk_lock.slock")?),
            (globals::OWNED, btf.offset("sock", "sk_lock.owned")?),
            (globals::SPORT, btf.offset("inet_sock", "inet_sport")?),
            (globals::BYTES_SENT, btf.offset("tcp_sock", "bytes_sent")?),
            (globals::BYTES_RETRANS, btf.offset("tcp_sock", "bytes_retrans")?),
            (globals::BYTES_RECEIVED, btf.offset("tcp_sock", "bytes_received")?),
            (globals::FILE_PRIVATE, btf.offset("file", "private_data")?),
            (globals::FILE_INODE, btf.offset("file", "f_inode")?),
            (globals::INODE_MODE, btf.offset("inode", "i_mode")?),
            (globals::SOCKET_SK, btf.offset("socket", "sk")?),
        ]))
    }
}

/// Loads the programs, attaches the one for state changes and lets the table read the others' answers. `configure` sets
/// what this object shares with the TCP probe's.
pub(super) fn start<'a>(
    pins: &Pins,
    table: &EdgeTable,
    (offsets, sizes): (&'a Offsets, &'a Sizes),
    configure: impl FnOnce(&mut EbpfLoader<'a>),
) -> Result<Successor, ProbeError> {
    let pinned: Vec<&str> = tcp::maps::SHARED.into_iter().chain(maps::SHARED).chain(maps::PINNED).collect();
    let mut ebpf = load(OBJECT, pins, &pinned, |loader| {
        configure(loader);
        loader.map_max_entries(abi::maps::COUNTERS, sizes.slots.saturating_mul(sizes.rows())).override_global(
            abi::globals::SLOTS_PER_CPU,
            &sizes.slots,
            true,
        );
        for (name, offset) in &offsets.0 {
            loader.override_global(name, offset, true);
        }
    })?;
    let read = loaded(&mut ebpf, programs::READ)?;
    let asked = match ebpf.take_map(maps::ASKED) {
        Some(Map::Array(map)) => Mapping::new(map.fd().as_fd(), BATCH as usize)
            .map_err(|source| ProbeError::Mmap { map: maps::ASKED, source })?,
        _ => {
            let source = MapError::InvalidName { name: maps::ASKED.to_owned() };
            return Err(ProbeError::Map { map: maps::ASKED, source });
        }
    };
    let adopt = loaded(&mut ebpf, programs::ADOPT)?;
    let successor = follow_states(&mut ebpf, pins)?;
    table.carry(Carried::new(read, asked), Older::new(ebpf, adopt));
    Ok(successor)
}

/// Attaches the program that sees connections begin and end: the cheaper one where the kernel takes it.
fn follow_states(ebpf: &mut Ebpf, pins: &Pins) -> Result<Successor, ProbeError> {
    let types = || aya::Btf::from_sys_fs().map_err(|error| ProbeError::NoTypes(error.to_string()));
    types().and_then(|types| Successor::attach_typed(ebpf, pins, programs::CHANGE, &types)).or_else(|refused| {
        info!("following a TCP connection costs a little more on this kernel than on newer ones (5.12): {refused}");
        Successor::attach(ebpf, pins, programs::STATE)
    })
}

/// Ends what an earlier agent left.
pub(super) fn forget(pins: &Pins) {
    super::forget(pins, &PROGRAMS);
}
