//! DNS over TCP: messages with their length before them (RFC 1035, section 4.2.2), from segments. Bounded: of each
//! message the first bytes are kept, of each container some connections. Pure.

use std::collections::HashMap;

use observer_common::dns::{Head, LARGE, flags};

/// Bytes of a message's length.
const LENGTH: usize = 2;
/// Connections of a container that are followed at a time.
pub(super) const MAX_STREAMS: usize = 128;

/// One direction of a connection.
#[derive(Debug, Default)]
struct Half {
    /// The sequence number that comes next; `None` when it is not known where messages begin.
    next: Option<u32>,
    /// The current message's length and its first bytes.
    kept: Vec<u8>,
    /// Bytes of the current message that have passed.
    passed: usize,
    /// It has ended.
    ended: bool,
}

impl Half {
    /// Takes a segment's payload, of which only the beginning may be known. Gives each message that ends in it to
    /// `each`, as far as it was kept, and whether that is all of it. False when the place in the stream is lost.
    fn take(&mut self, sequence: u32, length: u32, known: &[u8], mut each: impl FnMut(&[u8], bool)) -> bool {
        let Some(next) = self.next else { return length == 0 };
        // Bytes that were sent before: a segment may come again.
        let again = next.wrapping_sub(sequence);
        if again > i32::MAX as u32 {
            self.next = None;
            return false;
        }
        if again >= length {
            return true;
        }
        self.next = Some(sequence.wrapping_add(length));
        let mut known = known.get(again as usize..).unwrap_or_default();
        let mut left = (length - again) as usize;
        while left > 0 {
            if self.kept.len() < LENGTH {
                let Some((byte, rest)) = known.split_first() else {
                    self.next = None;
                    return false;
                };
                self.kept.push(*byte);
                known = rest;
                left -= 1;
            }
            let Some(prefix) = self.kept.first_chunk::<LENGTH>() else { continue };
            let wanted = usize::from(u16::from_be_bytes(*prefix));
            let now = left.min(wanted - self.passed);
            let (these, rest) = known.split_at(now.min(known.len()));
            // Without a gap, and no more than a whole datagram would have.
            if self.kept.len() - LENGTH == self.passed {
                self.kept.extend(&these[..these.len().min(LARGE.saturating_sub(self.passed))]);
            }
            known = rest;
            self.passed += now;
            left -= now;
            if self.passed == wanted {
                let message = &self.kept[LENGTH..];
                each(message, message.len() == wanted);
                self.kept.clear();
                self.passed = 0;
            }
        }
        true
    }
}

#[derive(Debug, Default)]
struct Stream {
    sent: Half,
    received: Half,
    last: u64,
}

/// The ends of a connection: the resolver's address and port, the container's port.
type Ends = ([u32; 4], u16, u16);

/// A container's connections to resolvers.
#[derive(Debug, Default)]
pub(super) struct Streams {
    open: HashMap<Ends, Stream>,
}

impl Streams {
    /// Takes a segment; see [`Half::take`]. False when messages in it could not be read: its connection is older than
    /// the agent, a segment of it is missing, or too many were open.
    pub fn take(&mut self, head: &Head, known: &[u8], each: impl FnMut(&[u8], bool)) -> bool {
        let ends = (head.remote, head.remote_port, head.local_port);
        let sends = head.flags & flags::EGRESS != 0;
        let begins = head.flags & flags::SYN != 0;
        if begins && sends {
            self.make_room();
            self.open.insert(ends, Stream::default());
        }
        let Some(stream) = self.open.get_mut(&ends) else { return head.length == 0 };
        stream.last = head.at;
        let half = if sends { &mut stream.sent } else { &mut stream.received };
        let mut sequence = head.sequence;
        if begins {
            // The SYN has a number of its own (RFC 9293, section 3.4).
            sequence = sequence.wrapping_add(1);
            *half = Half { next: Some(sequence), ..Half::default() };
        }
        let read = half.take(sequence, head.length, known, each);
        half.ended |= head.flags & flags::FIN != 0;
        if head.flags & flags::RST != 0 || (stream.sent.ended && stream.received.ended) {
            self.open.remove(&ends);
        }
        read
    }

    /// True when no connection is followed.
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// How many connections are followed.
    #[cfg(any(fuzzing, test))]
    pub fn open(&self) -> usize {
        self.open.len()
    }

    fn make_room(&mut self) {
        if self.open.len() >= MAX_STREAMS
            && let Some(oldest) = self.open.iter().min_by_key(|(_, stream)| stream.last).map(|(ends, _)| *ends)
        {
            self.open.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::parse::tests::Random, *};

    const START: u32 = u32::MAX - 40;

    fn stream(messages: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for message in messages {
            bytes.extend(u16::try_from(message.len()).unwrap().to_be_bytes());
            bytes.extend(message);
        }
        bytes
    }

    fn half() -> Half {
        Half { next: Some(START), ..Half::default() }
    }

    fn give(half: &mut Half, from: usize, bytes: &[u8], got: &mut Vec<(Vec<u8>, bool)>) -> bool {
        let sequence = START.wrapping_add(u32::try_from(from).unwrap());
        let length = u32::try_from(bytes.len()).unwrap();
        half.take(sequence, length, &bytes[..bytes.len().min(LARGE)], |message, whole| {
            got.push((message.to_vec(), whole));
        })
    }

    #[test]
    fn messages_come_whole_however_they_are_cut_and_repeated() {
        let mut random = Random(7);
        let messages: Vec<Vec<u8>> = [12, 0, 300, 1472, 1].map(|length| vec![random.next() as u8; length]).to_vec();
        let bytes = stream(&messages);
        let wanted: Vec<(Vec<u8>, bool)> = messages.iter().map(|message| (message.clone(), true)).collect();
        for _ in 0..2_000 {
            let (mut half, mut got, mut at) = (half(), Vec::new(), 0);
            while at < bytes.len() {
                let end = (at + 1 + random.below(700)).min(bytes.len());
                let from = at.saturating_sub(random.below(3) * 50);
                assert!(give(&mut half, from, &bytes[from..end], &mut got));
                at = end;
            }
            assert_eq!(got, wanted);
        }
    }

    #[test]
    fn of_a_long_message_the_beginning_is_kept() {
        let bytes = stream(&[vec![1; 5_000], vec![2; 20]]);
        let (mut half, mut got) = (half(), Vec::new());
        assert!(give(&mut half, 0, &bytes[..5_002], &mut got), "one segment, cut by the kernel program");
        assert!(give(&mut half, 5_002, &bytes[5_002..], &mut got));
        assert_eq!(got, [(vec![1; LARGE - LENGTH], false), (vec![2; 20], true)]);
    }

    #[test]
    fn a_gap_loses_the_place() {
        let bytes = stream(&[vec![1; 5_000], vec![2; 20]]);
        let (mut cut, mut got) = (half(), Vec::new());
        assert!(!give(&mut cut, 0, &bytes, &mut got), "where the second begins was not captured");
        assert_eq!(got.len(), 1);
        let mut missing = half();
        assert!(give(&mut missing, 0, &bytes[..10], &mut got));
        assert!(!give(&mut missing, 11, &bytes[11..20], &mut got));
        assert!(!give(&mut missing, 20, &bytes[20..30], &mut got));
        assert_eq!(got.len(), 1);
    }

    #[test]
    fn connections_begin_end_and_give_way() {
        let head = |port, flags, sequence, length| Head {
            local_port: port,
            flags,
            sequence,
            length,
            at: u64::from(port),
            ..Head::default()
        };
        let bytes = stream(&[vec![9; 12]]);
        let mut streams = Streams::default();
        let mut got = 0;
        assert!(!streams.take(&head(1, 0, 5, 14), &bytes, |_, _| got += 1), "older than the agent");
        for port in 0..=u16::try_from(MAX_STREAMS).unwrap() {
            assert!(streams.take(&head(port, flags::EGRESS | flags::SYN, 100, 0), &[], |_, _| got += 1));
            assert!(streams.take(&head(port, flags::SYN, 4, 0), &[], |_, _| got += 1));
        }
        assert_eq!(streams.open.len(), MAX_STREAMS);
        assert!(!streams.take(&head(0, 0, 5, 14), &bytes, |_, _| got += 1), "gave way");
        assert_eq!(got, 0);
        assert!(streams.take(&head(9, flags::EGRESS | flags::FIN, 101, 14), &bytes, |_, _| got += 1));
        assert!(streams.take(&head(9, flags::FIN, 5, 14), &bytes, |_, _| got += 1));
        assert!(streams.take(&head(8, flags::RST, 5, 0), &[], |_, _| got += 1));
        assert_eq!((got, streams.open.len()), (2, MAX_STREAMS - 2));
    }
}
