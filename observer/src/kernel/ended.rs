//! What ended containers used, where it outlives the agent.

use std::cmp::Reverse;

use anyhow::Context;
use aya::maps::{HashMap, MapData};
use observer_common::record::{ENDED_CGROUPS, ENDED_COUNTERS, ENDED_DEVICES, EndedKey, EndedRecord};

use super::text;
use crate::resources::{COUNTERS, DeviceIo, Entry, Facts, Name, REMEMBERED, Store};

/// A number that says that there is none.
const NONE: u64 = u64::MAX;

const _: () = assert!(REMEMBERED == ENDED_CGROUPS && COUNTERS == ENDED_COUNTERS);

/// The pinned map of entries.
#[derive(Debug)]
pub struct EndedMap {
    map: HashMap<MapData, EndedKey, EndedRecord>,
}

impl EndedMap {
    pub(super) const fn new(map: HashMap<MapData, EndedKey, EndedRecord>) -> Self {
        Self { map }
    }
}

impl Store for EndedMap {
    fn load(&mut self) -> Vec<(Name, Entry)> {
        self.map.iter().filter_map(Result::ok).map(|(key, record)| (name(&key), entry(&record))).collect()
    }

    fn save(&mut self, name: &Name, entry: &Entry) -> anyhow::Result<()> {
        self.map.insert(key(name), record(entry), 0).with_context(|| {
            format!(
                "cannot keep what ended containers named {} used; after a restart of the agent it is missing from \
                 their counters",
                name.container
            )
        })
    }

    fn forget(&mut self, name: &Name) {
        let _ = self.map.remove(&key(name));
    }
}

fn key(name: &Name) -> EndedKey {
    EndedKey {
        namespace: text::bytes(&name.namespace),
        pod: text::bytes(&name.pod),
        name: text::bytes(&name.container),
    }
}

fn name(key: &EndedKey) -> Name {
    Name {
        namespace: text::read(&key.namespace).to_owned(),
        pod: text::read(&key.pod).to_owned(),
        container: text::read(&key.name).to_owned(),
    }
}

fn record(entry: &Entry) -> EndedRecord {
    let mut record = EndedRecord {
        cgroups: [0; ENDED_CGROUPS],
        known: 0,
        counters: [0; ENDED_COUNTERS],
        devices: [[NONE; 5]; ENDED_DEVICES],
    };
    for (place, cgroup) in record.cgroups.iter_mut().zip(&entry.cgroups) {
        *place = *cgroup;
    }
    for (at, counter) in entry.sums.clone().counters().into_iter().enumerate() {
        if let Some(value) = counter {
            record.known |= 1 << at;
            record.counters[at] = *value;
        }
    }
    // Where there are more than have a place, those that carried least are left out.
    let mut devices: Vec<&DeviceIo> = entry.sums.io.iter().collect();
    devices.sort_by_key(|io| Reverse(io.read_bytes.unwrap_or(0).saturating_add(io.write_bytes.unwrap_or(0))));
    for (place, io) in record.devices.iter_mut().zip(devices) {
        let number = u64::from(io.device.0) << 32 | u64::from(io.device.1);
        let count = |value: Option<u64>| value.unwrap_or(NONE);
        *place = [number, count(io.read_bytes), count(io.write_bytes), count(io.reads), count(io.writes)];
    }
    record
}

fn entry(record: &EndedRecord) -> Entry {
    let mut sums = Facts::default();
    for (at, counter) in sums.counters().into_iter().enumerate() {
        *counter = (record.known >> at & 1 == 1).then_some(record.counters[at]);
    }
    let count = |value: u64| (value != NONE).then_some(value);
    sums.io = record
        .devices
        .iter()
        .filter(|[number, ..]| *number != NONE)
        .map(|[number, read_bytes, write_bytes, reads, writes]| DeviceIo {
            device: ((number >> 32) as u32, *number as u32),
            read_bytes: count(*read_bytes),
            write_bytes: count(*write_bytes),
            reads: count(*reads),
            writes: count(*writes),
        })
        .collect();
    Entry { sums, cgroups: record.cgroups.iter().copied().filter(|cgroup| *cgroup != 0).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let mut sums = Facts::default();
        for (at, counter) in sums.counters().into_iter().enumerate() {
            *counter = (at % 3 > 0).then_some(at as u64 * 1_000_000_007);
        }
        sums.io = vec![
            DeviceIo { device: (254, 16), read_bytes: Some(1), write_bytes: None, reads: Some(0), writes: Some(4) },
            DeviceIo { device: (0, 0), ..DeviceIo::default() },
        ];
        let before = Entry { sums, cgroups: [5, 6, 7].into() };
        assert_eq!(entry(&record(&before)), before);
        assert_eq!(entry(&record(&Entry::default())), Entry::default());
        let long = Name { namespace: "n".into(), pod: "p".repeat(253), container: "c".repeat(63) };
        assert_eq!(name(&key(&long)), long);
    }
}
