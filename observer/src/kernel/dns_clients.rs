//! What was counted of DNS, where it outlives the agent.

use aya::maps::{HashMap, MapData};
use observer_common::dns::{BUCKETS, ClientRecord, QTYPES, RCODES};

use crate::dns::{BOUNDS, Client, Durations, Keep, Qtype, Rcode};

// A type, outcome or bucket more is a change of the ABI.
const _: () = assert!(Qtype::ALL.len() == QTYPES && Rcode::ALL.len() == RCODES && BOUNDS.len() + 1 == BUCKETS);

/// The pinned map of counts.
pub struct DnsClients {
    map: HashMap<MapData, u64, ClientRecord>,
}

impl DnsClients {
    pub(super) const fn new(map: HashMap<MapData, u64, ClientRecord>) -> Self {
        Self { map }
    }
}

impl Keep for DnsClients {
    fn load(&self) -> Vec<(u64, Client)> {
        self.map.iter().filter_map(Result::ok).map(|(cgroup, record)| (cgroup, client(&record))).collect()
    }

    fn put(&mut self, cgroup: u64, client: &Client) -> anyhow::Result<()> {
        Ok(self.map.insert(cgroup, record(client), 0)?)
    }

    fn forget(&mut self, cgroup: u64) {
        let _ = self.map.remove(&cgroup);
    }
}

fn record(client: &Client) -> ClientRecord {
    let mut record = ClientRecord {
        responses: [[0; RCODES]; QTYPES],
        buckets: [[0; BUCKETS]; RCODES],
        sums: [0; RCODES],
        malformed: client.malformed,
    };
    for ((qtype, rcode), count) in &client.responses {
        record.responses[*qtype as usize][*rcode as usize] = *count;
    }
    for (rcode, durations) in &client.durations {
        record.buckets[*rcode as usize] = durations.buckets;
        record.sums[*rcode as usize] = durations.sum;
    }
    record
}

fn client(record: &ClientRecord) -> Client {
    let mut client = Client::default();
    client.malformed = record.malformed;
    for (qtype, by_rcode) in Qtype::ALL.iter().zip(record.responses) {
        let counted = Rcode::ALL.iter().zip(by_rcode).filter(|(_, count)| *count != 0);
        client.responses.extend(counted.map(|(rcode, count)| ((*qtype, *rcode), count)));
    }
    for ((rcode, buckets), sum) in Rcode::ALL.iter().zip(record.buckets).zip(record.sums) {
        if buckets != [0; BUCKETS] {
            client.durations.insert(*rcode, Durations { buckets, sum });
        }
    }
    client
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let mut before = Client::default();
        before.malformed = 3;
        for (at, (qtype, rcode)) in Qtype::ALL.iter().zip(Rcode::ALL.iter().cycle()).enumerate() {
            before.responses.insert((*qtype, *rcode), at as u64 + 1);
        }
        for (at, rcode) in Rcode::ALL.iter().enumerate().skip(1) {
            let durations = before.durations.entry(*rcode).or_default();
            durations.observe(at as u64 * 3_000_000);
            durations.observe(u64::from(u32::MAX) * 9);
        }
        let after = client(&record(&before));
        assert_eq!((after.responses, after.malformed), (before.responses, before.malformed));
        assert_eq!(after.durations, before.durations);
        let none = client(&record(&Client::default()));
        assert!(none.responses.is_empty() && none.durations.is_empty() && none.malformed == 0);
    }

    #[test]
    fn places_in_the_record_are_those_of_the_lists() {
        assert!(Qtype::ALL.iter().enumerate().all(|(at, qtype)| *qtype as usize == at));
        assert!(Rcode::ALL.iter().enumerate().all(|(at, rcode)| *rcode as usize == at));
    }
}
