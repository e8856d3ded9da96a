//! The OOM probe: counts by cgroup, what is carried of cgroups that are gone, and a record for each kill.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

use aya::maps::{HashMap, MapData, MapError, RingBuf};
use observer_common::oom::{Carried, Kill, NO_ROOM, Place, globals, maps, programs};

use super::{ProbeError, Successor, load, take};
use crate::kernel::{Programs, btf::Btf, pins::Pins};

/// The object file. Empty when the build had no toolchain for it.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/oom"));

/// Where the fields are that the programs read, by the constant's name.
const OFFSETS: [(&str, &str, &str); 12] = [
    (globals::TASK_PID, "task_struct", "pid"),
    (globals::TASK_TGID, "task_struct", "tgid"),
    (globals::TASK_LEADER, "task_struct", "group_leader"),
    (globals::TASK_COMM, "task_struct", "comm"),
    (globals::TASK_START, "task_struct", "start_time"),
    (globals::TASK_SIGNAL, "task_struct", "signal"),
    (globals::SIGNAL_LIVE, "signal_struct", "live"),
    (globals::SIGNAL_MAXRSS, "signal_struct", "maxrss"),
    (globals::TASK_CGROUPS, "task_struct", "cgroups"),
    (globals::CSS_SET_CGROUP, "css_set", "dfl_cgrp"),
    (globals::CGROUP_NODE, "cgroup", "kn"),
    (globals::NODE_ID, "kernfs_node", "id"),
];

/// The running probe's counts. Its programs go on when it is dropped.
#[derive(Debug)]
pub struct OomCounts {
    kills: HashMap<MapData, u64, u64>,
    carried: HashMap<MapData, Place, Carried>,
}

/// What it counted, at one moment.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct OomReading {
    /// Kills by cgroup v2 id.
    pub kills: BTreeMap<u64, u64>,
    /// Kills in cgroups that are gone, by the container they belonged to.
    pub carried: BTreeMap<Place, u64>,
    /// Kills that found the table full.
    pub lost: u64,
}

/// A record for each kill, in order.
pub struct OomEvents(RingBuf<MapData>);

/// Loads the programs and attaches them.
///
/// # Errors
///
/// See [`ProbeError`].
pub fn start(pins: &Pins, btf: &Btf) -> Result<(OomCounts, OomEvents, Programs), ProbeError> {
    let offsets =
        OFFSETS.iter().map(|(_, structure, field)| btf.offset(structure, field)).collect::<Result<Vec<u32>, _>>()?;
    let is_task = u8::from(btf.tracepoint_argument_is_pointer(programs::MARK.1, 0) == Some(true));
    let mut ebpf = load(OBJECT, pins, &maps::PINNED, |loader| {
        loader.override_global(globals::VICTIM_IS_TASK, &is_task, true);
        for ((name, ..), offset) in OFFSETS.iter().zip(&offsets) {
            loader.override_global(name, offset, true);
        }
    })?;
    let mut counts = OomCounts { kills: take(&mut ebpf, maps::KILLS)?, carried: take(&mut ebpf, maps::CARRIED)? };
    counts.resume().map_err(|source| ProbeError::Map { map: maps::KILLS, source })?;
    let mut running = Vec::new();
    for program in programs::ALL {
        // Maps and programs are the same for all agents: both would count.
        running.push(Successor::attach(&mut ebpf, pins, program)?.succeed()?);
    }
    Ok((counts, OomEvents(take(&mut ebpf, maps::EVENTS)?), running))
}

impl OomCounts {
    /// Makes the place for what finds no place, and finishes what an earlier agent was carrying.
    fn resume(&mut self) -> Result<(), MapError> {
        if self.kills.get(&NO_ROOM, 0).is_err() {
            self.kills.insert(NO_ROOM, 0, 0)?;
        }
        let carried: Vec<(Place, Carried)> = self.carried.iter().collect::<Result<_, _>>()?;
        for (_, carried) in carried.iter().filter(|(_, carried)| carried.last != NO_ROOM) {
            self.forget(carried.last);
        }
        Ok(())
    }

    /// What was counted so far.
    ///
    /// # Errors
    ///
    /// What bpf(2) says.
    pub fn read(&self) -> Result<OomReading, MapError> {
        let mut kills: BTreeMap<u64, u64> = self.kills.iter().collect::<Result<_, _>>()?;
        let lost = kills.remove(&NO_ROOM).unwrap_or_default();
        let carried = self.carried.iter().map(|entry| entry.map(|(place, carried)| (place, carried.kills)));
        Ok(OomReading { kills, carried: carried.collect::<Result<_, _>>()?, lost })
    }

    /// Moves the count of a cgroup that is gone to its container. An agent that is killed in between has moved it or
    /// not: [`Carried::last`] tells the next one.
    ///
    /// # Errors
    ///
    /// What bpf(2) says: E2BIG when there are too many. The count stays where it was then.
    pub fn carry(&mut self, cgroup: u64, place: &Place) -> Result<(), MapError> {
        let kills = self.kills.get(&cgroup, 0)?;
        self.add(place, kills, cgroup)?;
        self.forget(cgroup);
        Ok(())
    }

    /// Moves what is carried for a container to the one that goes on with its series.
    ///
    /// # Errors
    ///
    /// As for [`OomCounts::carry`].
    pub fn go_on(&mut self, place: &Place, heir: &Place) -> Result<(), MapError> {
        let Carried { kills, last } = self.carried.get(place, 0)?;
        // In this order: an agent that is killed in between leaves them out rather than counting them twice.
        self.forget_carried(place);
        self.add(heir, kills, last)
    }

    fn add(&mut self, place: &Place, kills: u64, last: u64) -> Result<(), MapError> {
        let before = match self.carried.get(place, 0) {
            Ok(carried) => carried.kills,
            Err(MapError::KeyNotFound) => 0,
            Err(error) => return Err(error),
        };
        self.carried.insert(place, Carried { kills: before + kills, last }, 0)
    }

    /// Forgets a cgroup.
    pub fn forget(&mut self, cgroup: u64) {
        let _ = self.kills.remove(&cgroup);
    }

    /// Forgets what was carried for a container.
    pub fn forget_carried(&mut self, place: &Place) {
        let _ = self.carried.remove(place);
    }
}

impl OomEvents {
    /// The next kill that nobody has taken yet.
    pub fn next_kill(&mut self) -> Option<Kill> {
        let item = self.0.next()?;
        // SAFETY: the program writes whole `Kill`s, of integers only; the read may be unaligned.
        (item.len() >= size_of::<Kill>()).then(|| unsafe { item.as_ptr().cast::<Kill>().read_unaligned() })
    }
}

impl AsFd for OomEvents {
    /// Becomes readable when there is a kill.
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor belongs to the ring buffer, which lives as long as the borrow.
        unsafe { BorrowedFd::borrow_raw(self.0.as_raw_fd()) }
    }
}
