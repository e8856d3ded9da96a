//! The map of dropped packets, and how what is counted in one entry becomes another's.

use std::os::fd::{AsFd, OwnedFd};

use aya::maps::{HashMap, Map, MapData, MapError};
use observer_common::drops::{DropCount, DropKey, maps};

use super::super::{ProbeError, take};
use crate::kernel::sys;

/// The map of entries.
pub(super) struct DropsMap {
    map: HashMap<MapData, DropKey, DropCount>,
    fd: OwnedFd,
}

/// What handing over does with entries.
pub(super) trait Entries {
    /// What an entry holds.
    fn get(&self, key: &DropKey) -> Result<Option<DropCount>, MapError>;
    /// Makes an entry, or changes one.
    fn put(&mut self, key: &DropKey, count: DropCount) -> Result<(), MapError>;
    /// Takes an entry out, with all that programs have counted in it.
    fn take(&mut self, key: &DropKey) -> Result<DropCount, MapError>;
}

/// Adds an entry to one that no program writes. It is taken before it is given: an agent that is killed in between leaves its
/// packets out rather than counting them twice, as the edge table does. What programs count until then is taken with it, and
/// what they count afterwards makes an entry of its own. Only a program that has found the entry and not yet added to it adds
/// to whatever gets its memory next: one packet for each CPU at most.
///
/// # Errors
///
/// What bpf(2) says; the entry stays then.
pub(super) fn hand_over(entries: &mut impl Entries, key: &DropKey, heir: &DropKey) -> Result<(), MapError> {
    let before = match entries.get(heir)? {
        Some(before) => before,
        None => {
            // So that there is room for what is taken. An entry that is there can always be changed.
            entries.put(heir, DropCount::default())?;
            DropCount::default()
        }
    };
    let taken = entries.take(key)?;
    let sum = DropCount { packets: before.packets + taken.packets, last: before.last.max(taken.last) };
    entries.put(heir, sum).or_else(|error| entries.put(key, taken).and(Err(error)))
}

impl DropsMap {
    pub(super) fn take(ebpf: &mut aya::Ebpf) -> Result<Self, ProbeError> {
        let fd = match ebpf.map(maps::DROPS) {
            Some(Map::HashMap(map)) => map.fd().as_fd().try_clone_to_owned().map_err(MapError::IoError),
            _ => Err(MapError::InvalidName { name: maps::DROPS.to_owned() }),
        };
        let fd = fd.map_err(|source| ProbeError::Map { map: maps::DROPS, source })?;
        Ok(Self { map: take(ebpf, maps::DROPS)?, fd })
    }

    pub(super) fn all(&self) -> Result<Vec<(DropKey, DropCount)>, MapError> {
        self.map.iter().collect()
    }

    /// One that is not there is no error.
    pub(super) fn forget(&mut self, key: &DropKey) {
        let _ = self.map.remove(key);
    }
}

impl Entries for DropsMap {
    fn get(&self, key: &DropKey) -> Result<Option<DropCount>, MapError> {
        match self.map.get(key, 0) {
            Ok(count) => Ok(Some(count)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn put(&mut self, key: &DropKey, count: DropCount) -> Result<(), MapError> {
        self.map.insert(key, count, 0)
    }

    fn take(&mut self, key: &DropKey) -> Result<DropCount, MapError> {
        sys::take_entry(self.fd.as_fd(), key).map_err(MapError::IoError)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    /// Entries, of which `key` is counted in by a program before each step, and an agent that is killed after so many steps.
    struct Killed {
        entries: HashMap<DropKey, DropCount>,
        key: DropKey,
        counted: u64,
        steps: usize,
    }

    impl Killed {
        fn step(&mut self) -> Result<(), MapError> {
            self.steps = self.steps.checked_sub(1).ok_or(MapError::KeyNotFound)?;
            self.entries.entry(self.key).or_default().packets += 1;
            self.counted += 1;
            Ok(())
        }

        fn total(&self) -> u64 {
            self.entries.values().map(|count| count.packets).sum()
        }
    }

    impl Entries for Killed {
        fn get(&self, key: &DropKey) -> Result<Option<DropCount>, MapError> {
            Ok(self.entries.get(key).copied())
        }

        fn put(&mut self, key: &DropKey, count: DropCount) -> Result<(), MapError> {
            self.step()?;
            self.entries.insert(*key, count);
            Ok(())
        }

        fn take(&mut self, key: &DropKey) -> Result<DropCount, MapError> {
            self.step()?;
            self.entries.remove(key).ok_or(MapError::KeyNotFound)
        }
    }

    #[test]
    fn what_is_handed_over_is_never_counted_twice_and_nothing_is_passed_over() {
        let (key, heir) = (DropKey { cgroup: 7, ..DropKey::default() }, DropKey { cgroup: 8, ..DropKey::default() });
        let of = |packets, last| DropCount { packets, last };
        let start = |heirs: &[u64], steps| {
            let heirs = heirs.iter().map(|packets| (heir, of(*packets, 9)));
            let entries = heirs.chain([(key, of(40, 5))]).collect();
            Killed { entries, key, counted: 0, steps }
        };
        // Made, taken, given; with an heir that is there already, taken and given.
        for (before, whole) in [(&[][..], 3), (&[100], 2)] {
            let mut entries = start(before, whole);
            let all = entries.total();
            hand_over(&mut entries, &key, &heir).unwrap();
            assert_eq!(entries.total(), all + entries.counted, "what came meanwhile included");
            assert_eq!(entries.entries[&key].packets, 1, "what came afterwards");
            let last = if before.is_empty() { 5 } else { 9 };
            assert_eq!(entries.entries[&heir].last, last);
            for steps in 0..whole {
                let mut entries = start(before, steps);
                assert!(hand_over(&mut entries, &key, &heir).is_err());
                let counted = all + entries.counted;
                let taken = !entries.entries.contains_key(&key);
                assert!(if taken { entries.total() < counted } else { entries.total() == counted });
            }
        }
    }
}
