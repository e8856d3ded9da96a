//! The TCP probe's part for `--traffic.accounting=sockets`: payload from the sockets' own counters.

use std::{os::fd::AsFd, sync::Arc};

use aya::{
    EbpfLoader,
    maps::{Map, MapError},
};
use observer_common::{
    missed,
    sockets::{BATCH, globals, maps, programs},
    tcp,
};

use super::{ProbeError, Successor, load, succession::loaded, tcp::Types};
use crate::kernel::{
    Program,
    btf::{Btf, BtfError},
    edge_table::{Carried, EdgeTable},
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
            (globals::FLAGS, btf.first_offset(&[("sock", "sk_flags"), ("sock", "__sk_common.skc_flags")])?),
            (globals::LOCK, btf.offset("sock", "sk_lock.slock")?),
            (globals::OWNED, btf.offset("sock", "sk_lock.owned")?),
            (globals::SPORT, btf.offset("inet_sock", "inet_sport")?),
            (globals::BYTES_SENT, btf.offset("tcp_sock", "bytes_sent")?),
            (globals::BYTES_RETRANS, btf.offset("tcp_sock", "bytes_retrans")?),
            (globals::BYTES_RECEIVED, btf.offset("tcp_sock", "bytes_received")?),
        ]))
    }
}

/// What runs.
pub(super) struct Started {
    /// The program for state changes, which is attached.
    pub(super) states: Successor,
    /// The one that reads.
    pub(super) read: Arc<Program>,
    /// The one that begins to follow a connection.
    pub(super) adopt: Arc<Program>,
    /// The one that ends a connection whose end was missed.
    pub(super) missed: Arc<Program>,
}

/// Loads the programs, attaches the one for state changes and lets the table read the answers of the one that reads.
/// `configure` sets what this object shares with the TCP probe's.
pub(super) fn start<'a>(
    pins: &Pins,
    table: &EdgeTable,
    offsets: &'a Offsets,
    types: &Types,
    configure: impl FnOnce(&mut EbpfLoader<'a>),
) -> Result<Started, ProbeError> {
    let pinned: Vec<&str> = tcp::maps::SHARED.into_iter().chain(maps::PINNED).collect();
    let mut ebpf = load(OBJECT, pins, &pinned, |loader| {
        configure(loader);
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
    let missed = loaded(&mut ebpf, missed::programs::SOCKETS_MISSED)?;
    let (states, _) = types.follow_states(&mut ebpf, pins, PROGRAMS)?;
    table.carry(Carried::new(Arc::clone(&read), asked));
    Ok(Started { states, read, adopt, missed })
}

/// Ends what an earlier agent left.
pub(super) fn forget(pins: &Pins) {
    super::forget(pins, &PROGRAMS);
}
