//! The run-queue probe: waits by slot, and which cgroup has which slot.

use std::{os::fd::AsFd, sync::Arc};

use aya::{
    Ebpf,
    maps::{HashMap, MapData, MapError},
    programs::{BtfTracePoint, ProgramError},
};
use observer_common::runqueue::{BUCKETS, PROGRAM, SLOTS, Waits, globals, maps};

use super::{ProbeError, take};
use crate::kernel::{Program, btf::Btf, mapping::Mapping};

/// The object file. Empty when the build had no toolchain for it.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/runqueue"));

/// Where the fields are that the program reads, by the constant's name.
const OFFSETS: [(&str, &str, &str); 11] = [
    (globals::TASK_PID, "task_struct", "pid"),
    (globals::TASK_RUNS, "task_struct", "sched_info.pcount"),
    (globals::TASK_RUN_DELAY, "task_struct", "sched_info.run_delay"),
    (globals::TASK_LAST_QUEUED, "task_struct", "sched_info.last_queued"),
    (globals::TASK_CFS_RQ, "task_struct", "se.cfs_rq"),
    (globals::CFS_RQ_RQ, "cfs_rq", "rq"),
    (globals::RQ_CLOCK, "rq", "clock"),
    (globals::TASK_CGROUPS, "task_struct", "cgroups"),
    (globals::CSS_SET_CGROUP, "css_set", "dfl_cgrp"),
    (globals::CGROUP_NODE, "cgroup", "kn"),
    (globals::NODE_ID, "kernfs_node", "id"),
];

/// The running probe. It ends when it is dropped: nothing of it is pinned.
pub struct RunQueueProbe {
    observed: HashMap<MapData, u64, u32>,
    waits: Mapping<Waits>,
    cpus: u32,
    program: Arc<Program>,
    _ebpf: Ebpf,
}

/// What one slot has counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WaitReading {
    /// How many waits, by length: [`observer_common::runqueue::bucket`].
    pub buckets: [u64; BUCKETS],
    /// How long all of them were, in nanoseconds.
    pub sum: u64,
}

impl std::ops::AddAssign for WaitReading {
    fn add_assign(&mut self, other: Self) {
        self.buckets.iter_mut().zip(other.buckets).for_each(|(mine, theirs)| *mine += theirs);
        self.sum += other.sum;
    }
}

impl RunQueueProbe {
    /// Loads and attaches it.
    ///
    /// # Errors
    ///
    /// See [`ProbeError`].
    pub fn start(btf: &Btf) -> Result<Self, ProbeError> {
        let offsets = OFFSETS
            .iter()
            .map(|(_, structure, field)| btf.offset(structure, field))
            .collect::<Result<Vec<u32>, _>>()?;
        let cpus = aya::util::nr_cpus().map_err(|(_, error)| ProbeError::Cpus(error))? as u32;
        if OBJECT.is_empty() {
            return Err(ProbeError::NotBuilt);
        }
        let mut loader = aya::EbpfLoader::new();
        loader.map_max_entries(maps::WAITS, SLOTS * cpus);
        for ((name, ..), offset) in OFFSETS.iter().zip(&offsets) {
            loader.override_global(name, offset, true);
        }
        let mut ebpf = loader.load(OBJECT)?;
        let observed = take(&mut ebpf, maps::OBSERVED)?;
        let missing =
            || ProbeError::Map { map: maps::WAITS, source: MapError::InvalidName { name: maps::WAITS.into() } };
        let Some(aya::maps::Map::Array(waits)) = ebpf.take_map(maps::WAITS) else { return Err(missing()) };
        let waits = Mapping::new(waits.fd().as_fd(), (SLOTS * cpus) as usize)
            .map_err(|source| ProbeError::Mmap { map: maps::WAITS, source })?;
        let (program, tracepoint) = PROGRAM;
        let refused = |source| ProbeError::Program { program, source };
        let types = aya::Btf::from_sys_fs().map_err(|error| ProbeError::NoTypes(error.to_string()))?;
        let point: &mut BtfTracePoint =
            ebpf.program_mut(program).ok_or_else(|| refused(ProgramError::NotLoaded))?.try_into().map_err(refused)?;
        point.load(tracepoint, &types).map_err(refused)?;
        point.attach().map_err(refused)?;
        let program = point.fd().and_then(|fd| Ok(Program::of(program, fd)?)).map_err(refused)?;
        Ok(Self { observed, waits, cpus, program, _ebpf: ebpf })
    }

    /// The program.
    #[must_use]
    pub const fn program(&self) -> &Arc<Program> {
        &self.program
    }

    /// Counts the threads of a cgroup in a slot from now on.
    ///
    /// # Errors
    ///
    /// What bpf(2) says: E2BIG when there are too many.
    pub fn observe(&mut self, cgroup: u64, slot: u32) -> Result<(), MapError> {
        self.observed.insert(cgroup, slot, 0)
    }

    /// Counts the threads of a cgroup no more.
    pub fn leave(&mut self, cgroup: u64) {
        let _ = self.observed.remove(&cgroup);
    }

    /// What a slot has counted so far.
    #[must_use]
    pub fn read(&self, slot: u32) -> WaitReading {
        let mut reading = WaitReading::default();
        for cpu in 0..self.cpus {
            let index = (cpu * SLOTS + slot) as usize;
            for (bucket, count) in reading.buckets.iter_mut().enumerate() {
                *count += self.waits.load(index, bucket);
            }
            reading.sum += self.waits.load(index, BUCKETS);
        }
        reading
    }

    /// Sets a slot to zero. No cgroup may have it, nor may one have had it a moment ago.
    pub fn clear(&self, slot: u32) {
        (0..self.cpus).for_each(|cpu| self.waits.zero((cpu * SLOTS + slot) as usize));
    }
}
