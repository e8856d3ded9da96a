//! Who peers were decided to be, where it outlives the agent.

use aya::maps::{HashMap, MapData, MapError};
use observer_common::{
    decision::DecisionRecord,
    record::{NAME_LEN, POD_LEN},
};

use super::text;
use crate::traffic::Decision;

/// The pinned map of decisions, by number.
#[derive(Debug)]
pub struct DecisionMap {
    map: HashMap<MapData, u64, DecisionRecord>,
}

impl DecisionMap {
    pub(super) const fn new(map: HashMap<MapData, u64, DecisionRecord>) -> Self {
        Self { map }
    }

    /// Everything that an earlier agent has decided.
    #[must_use]
    pub fn all(&self) -> Vec<(u64, Decision)> {
        self.map.iter().filter_map(Result::ok).filter_map(|(number, record)| Some((number, read(&record)?))).collect()
    }

    /// Keeps a decision for the next agent.
    ///
    /// # Errors
    ///
    /// What bpf(2) says: the map is full.
    pub fn put(&mut self, number: u64, decision: &Decision) -> Result<(), MapError> {
        self.map.insert(number, write(decision), 0)
    }

    /// Forgets a decision that no slot has any more.
    pub fn forget(&mut self, number: u64) {
        let _ = self.map.remove(&number);
    }
}

fn read(record: &DecisionRecord) -> Option<Decision> {
    Some(Decision {
        kind: Decision::kind_of(record.kind)?,
        container: text::read(&record.container).into(),
        namespace: text::read(&record.namespace).into(),
        pod: text::read(&record.pod).into(),
        workload_kind: text::read(&record.workload_kind).into(),
        workload: text::read(&record.workload).into(),
    })
}

fn write(decision: &Decision) -> DecisionRecord {
    DecisionRecord {
        kind: decision.kind_number(),
        container: text::bytes::<NAME_LEN>(&decision.container),
        namespace: text::bytes::<NAME_LEN>(&decision.namespace),
        pod: text::bytes::<POD_LEN>(&decision.pod),
        workload_kind: text::bytes::<NAME_LEN>(&decision.workload_kind),
        workload: text::bytes::<POD_LEN>(&decision.workload),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traffic::PeerKind;

    #[test]
    fn what_is_written_is_read_back() {
        for kind in
            [PeerKind::Container, PeerKind::Pod, PeerKind::Service, PeerKind::Node, PeerKind::External, PeerKind::Other]
        {
            let decision = Decision {
                kind,
                container: "c".repeat(63).into(),
                namespace: "n".repeat(63).into(),
                pod: "p".repeat(253).into(),
                workload_kind: "StatefulSet".into(),
                workload: "w".repeat(253).into(),
            };
            assert_eq!(read(&write(&decision)), Some(decision));
        }
        let record = write(&Decision::default());
        assert_eq!(read(&DecisionRecord { kind: 99, ..record }), None, "of an agent that knew more");
    }
}
