//! The probe of Unix sockets: its edges are rows of the edge table like all others.

use aya::{
    EbpfLoader,
    maps::{Array, MapData},
};
use observer_common::{
    abi::{
        globals::SLOTS_PER_CPU,
        maps::{COUNTERS, EDGES, FREE_SLOTS, ROWS},
    },
    unix::{globals, maps, programs},
};

use super::{ProbeError, Successor, load, take};
use crate::{
    clock,
    kernel::{
        Programs,
        btf::{Btf, BtfError},
        edge_table::{EdgeTable, Sizes},
        pins::Pins,
    },
};

/// The object file. Empty when the build had no toolchain for it.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/unix"));

/// Where this kernel has the fields that the programs read, by the names of their constants.
fn offsets(btf: &Btf) -> Result<Vec<(&'static str, u32)>, BtfError> {
    let fields = [
        (globals::FAMILY, "sock", "__sk_common.skc_family"),
        (globals::TYPE, "sock", "sk_type"),
        (globals::PEER_PID, "sock", "sk_peer_pid"),
        (globals::CGROUP, "sock", "sk_cgrp_data.cgroup"),
        (globals::PEER, "unix_sock", "peer"),
        (globals::PID_TASKS, "pid", "tasks"),
        (globals::TASK_PID_LINKS, "task_struct", "pid_links"),
        (globals::TASK_CGROUPS, "task_struct", "cgroups"),
        (globals::CSS_SET_CGROUP, "css_set", "dfl_cgrp"),
        (globals::CGROUP_KN, "cgroup", "kn"),
        (globals::KN_ID, "kernfs_node", "id"),
    ];
    let found = fields.into_iter().map(|(name, structure, field)| Ok((name, btf.offset(structure, field)?)));
    // Since kernel 6.15 with underscores.
    let parent = btf.first_offset(&[("kernfs_node", "__parent"), ("kernfs_node", "parent")]);
    found.chain(std::iter::once(parent.map(|offset| (globals::KN_PARENT, offset)))).collect()
}

/// Loads the programs and attaches them. They go on when the agent ends; those of an earlier agent count until the moment
/// when these do. The maps are those of `table`, which are pinned already.
///
/// # Errors
///
/// See [`ProbeError`]; kernels before 6.3 do not have the tracepoints.
pub fn start(pins: &Pins, btf: &Btf, table: &EdgeTable) -> Result<Programs, ProbeError> {
    for (_, tracepoint) in programs::ALL {
        if btf.tracepoint_argument_count(tracepoint).is_none_or(|count| count < 3) {
            let structure = format!("tracepoint {tracepoint}");
            return Err(BtfError::Field { structure, field: "socket, length and flags".into() }.into());
        }
    }
    let offsets = offsets(btf)?;
    // No two agents start in the same nanosecond: they hold a lock. 0 is nobody's.
    let generation = clock::monotonic().max(1);
    let sizes = table.sizes();
    let mut ebpf = load(OBJECT, pins, &maps::SHARED, |loader| configure(loader, &offsets, &generation, &sizes))?;
    let types = aya::Btf::from_sys_fs().map_err(|error| ProbeError::NoTypes(error.to_string()))?;
    let follow = |program| Successor::attach_typed(&mut ebpf, pins, program, &types);
    let successors = programs::ALL.into_iter().map(follow).collect::<Result<Vec<_>, _>>()?;
    let mut owner: Array<MapData, u64> = take(&mut ebpf, maps::OWNER)?;
    owner.set(0, generation, 0).map_err(|source| ProbeError::Map { map: maps::OWNER, source })?;
    successors.into_iter().map(Successor::succeed).collect()
}

/// Ends the programs, or what an earlier agent left of them.
pub fn forget(pins: &Pins) {
    super::forget(pins, &programs::ALL);
}

fn configure<'a>(
    loader: &mut EbpfLoader<'a>,
    offsets: &'a [(&'static str, u32)],
    generation: &'a u64,
    table: &'a Sizes,
) {
    loader
        .map_max_entries(EDGES, table.slots)
        .map_max_entries(ROWS, table.slots)
        .map_max_entries(COUNTERS, table.slots.saturating_mul(table.rows()))
        .map_max_entries(FREE_SLOTS, table.edges)
        .override_global(SLOTS_PER_CPU, &table.slots, true)
        .override_global(globals::GENERATION, generation, true);
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
        let offsets = offsets(&btf).unwrap();
        let names: std::collections::HashSet<_> = offsets.iter().map(|(name, _)| name).collect();
        assert_eq!(names.len(), offsets.len());
    }
}
