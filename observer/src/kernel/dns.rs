//! The DNS maps as the agent sees them: packets to and from resolvers, and the names of peers that outlive the agent.

use std::os::fd::{AsRawFd, BorrowedFd};

use aya::maps::{Array, HashMap, MapData, MapError, RingBuf};
use observer_common::dns::{Head, Lost, PeerKey, PeerName, lost_index};

/// Packets that the kernel programs could not hand over, since the maps were made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DnsLosses {
    /// Received by a container while the ring buffer was full.
    pub received_full: u64,
    /// Sent by a container while the ring buffer was full.
    pub sent_full: u64,
    /// Received, with headers that could not be read.
    pub received_unreadable: u64,
    /// Sent, with headers that could not be read.
    pub sent_unreadable: u64,
}

/// The ring buffer of packets, and what did not come into it.
pub struct DnsRecords {
    ring: RingBuf<MapData>,
    lost: Array<MapData, u64>,
}

impl DnsRecords {
    /// A reader of these maps.
    #[must_use]
    pub const fn new(ring: RingBuf<MapData>, lost: Array<MapData, u64>) -> Self {
        Self { ring, lost }
    }

    /// Gives at most `limit` packets to `each`, with as much of the payload as was captured. Says how many they were.
    pub fn drain(&mut self, limit: usize, mut each: impl FnMut(&Head, &[u8])) -> usize {
        let mut count = 0;
        while count < limit
            && let Some(item) = self.ring.next()
        {
            count += 1;
            if let Some((head, payload)) = split(&item) {
                each(&head, payload);
            }
        }
        count
    }

    /// What could not be handed over.
    ///
    /// # Errors
    ///
    /// What bpf(2) says.
    pub fn losses(&self) -> Result<DnsLosses, MapError> {
        let lost = |reason, egress| self.lost.get(&lost_index(reason, egress), 0);
        Ok(DnsLosses {
            received_full: lost(Lost::Full, false)?,
            sent_full: lost(Lost::Full, true)?,
            received_unreadable: lost(Lost::Unreadable, false)?,
            sent_unreadable: lost(Lost::Unreadable, true)?,
        })
    }

    /// Becomes readable when much waits.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor belongs to the ring buffer, which lives as long as the borrow.
        unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) }
    }
}

/// A record taken apart; `None` for one that is shorter than it says.
fn split(record: &[u8]) -> Option<(Head, &[u8])> {
    let (head, payload) = record.split_at_checked(size_of::<Head>())?;
    // SAFETY: as long as a `Head`, which is made of integers only; the read may be unaligned.
    let head = unsafe { head.as_ptr().cast::<Head>().read_unaligned() };
    Some((head, payload.get(..usize::from(head.captured))?))
}

/// The names that series carry, by container and address.
pub struct PeerNames {
    map: HashMap<MapData, PeerKey, PeerName>,
}

impl PeerNames {
    /// The names in this map.
    #[must_use]
    pub const fn new(map: HashMap<MapData, PeerKey, PeerName>) -> Self {
        Self { map }
    }

    /// All of them.
    #[must_use]
    pub fn all(&self) -> Vec<(PeerKey, String)> {
        self.map.iter().filter_map(Result::ok).map(|(key, name)| (key, text(&name))).collect()
    }

    /// Keeps a name for the next agent.
    ///
    /// # Errors
    ///
    /// What bpf(2) says: the map is full.
    pub fn put(&mut self, key: PeerKey, name: &str) -> Result<(), MapError> {
        let mut record = PeerName([0; 256]);
        // The last byte stays zero.
        let length = name.len().min(record.0.len() - 1);
        record.0[..length].copy_from_slice(&name.as_bytes()[..length]);
        self.map.insert(key, record, 0)
    }

    /// Forgets a name that no series carries any more.
    pub fn forget(&mut self, key: &PeerKey) {
        let _ = self.map.remove(key);
    }
}

fn text(name: &PeerName) -> String {
    let length = name.0.iter().position(|byte| *byte == 0).unwrap_or(name.0.len());
    String::from_utf8_lossy(&name.0[..length]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_as_long_as_it_says_or_nothing() {
        let head = Head { cgroup: 7, captured: 3, ..Head::default() };
        // SAFETY: a `Head` is integers without padding.
        let bytes = unsafe { std::slice::from_raw_parts((&raw const head).cast::<u8>(), size_of::<Head>()) };
        let mut record = bytes.to_vec();
        record.extend_from_slice(b"ab");
        assert_eq!(split(&record), None);
        record.extend_from_slice(b"cde");
        assert_eq!(split(&record), Some((head, &b"abc"[..])));
        assert_eq!(split(&record[..10]), None);
    }
}
