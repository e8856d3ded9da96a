//! TCP connections that are older than the agent.
//!
//! The kernel tells of the open files of all processes, whatever their network namespace. Those that are TCP connections of
//! observed containers are followed from then on. Who listens at a connection's own port says that it is the server's end.
//! Connections that nobody has open (not accepted yet, or closed and still sending) are not found, and not followed.

use std::{
    collections::{HashMap, HashSet},
    io::{self, Read},
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use observer_common::older::{Adopted, LISTEN, Open};

use super::{super::Program, super::sys, EdgeTable, lock};

/// How often a socket is asked that something happens to, after which pauses, and for how long.
const TRIES: usize = 200;
const PAUSE: Duration = Duration::from_micros(20);
const LONGEST: Duration = Duration::from_secs(1);

/// The programs that find and follow them.
pub(in crate::kernel) struct Older {
    open: Arc<Program>,
    adopt: Arc<Program>,
    refused: Refused,
}

/// Sockets that found no place when they were last tried. All are tried again whenever more containers are observed.
#[derive(Default)]
struct Refused(HashSet<u64>);

/// What was found.
#[derive(Debug, Clone, Copy, Default)]
pub struct Found {
    /// Followed from now on.
    pub counted: usize,
    /// Without a place.
    pub full: usize,
}

impl EdgeTable {
    /// Follows connections that are older than the agent, from now on. `None` when nobody follows connections.
    ///
    /// # Errors
    ///
    /// When the kernel refuses one of the programs that find and follow them.
    pub fn adopt_older_connections(&self) -> io::Result<Option<Found>> {
        self.older.get().map(|older| lock(older).adopt(&self.older_full)).transpose()
    }
}

impl Older {
    /// With the iterator over open files, and the program that begins to follow a connection.
    pub(in crate::kernel) fn new(open: Arc<Program>, adopt: Arc<Program>) -> Self {
        Self { open, adopt, refused: Refused::default() }
    }

    /// Adds those that found no place to `lost`, each once.
    fn adopt(&mut self, lost: &AtomicU64) -> io::Result<Found> {
        let mut found = Found::default();
        let open = self.open()?;
        let mut refused = std::mem::take(&mut self.refused);
        refused.keep(&open);
        let mut adopted = Vec::new();
        let mut failed = None;
        self.ask_each(ends(&open), |end, outcome| match outcome {
            Ok(outcome) => {
                let full = outcome == Adopted::Full as u32;
                found.full += usize::from(full);
                if refused.is_new(end.socket, full) {
                    lost.fetch_add(1, Relaxed);
                }
                if outcome == Adopted::Now as u32 {
                    adopted.push(end);
                }
                true
            }
            Err(error) => {
                failed = Some(error);
                false
            }
        });
        self.refused = refused;
        found.counted = adopted.len();
        // Those that ended in the moment when they were adopted are taken back. Another socket may have the memory of one by now and
        // be adopted in its place.
        for _ in 0..TRIES {
            let mut again = Vec::new();
            for end in adopted {
                if self.ask(&end, true)? == Adopted::Now as u32 {
                    again.push(end);
                }
            }
            adopted = again;
            if adopted.is_empty() {
                break;
            }
        }
        failed.map_or(Ok(found), Err)
    }

    /// Asks for each connection until something else than that it is busy is said of it, which is told. The busy ones are asked
    /// again together: on a node without a CPU to spare a sleep may take long. Ends early when `tell` answers false.
    fn ask_each(&self, mut ends: Vec<End>, mut tell: impl FnMut(End, io::Result<u32>) -> bool) {
        let begin = Instant::now();
        for tries in 1.. {
            let is_last = tries == TRIES || begin.elapsed() >= LONGEST;
            let mut busy = Vec::new();
            for end in ends {
                let outcome = self.ask(&end, is_last);
                if matches!(outcome, Ok(outcome) if outcome == Adopted::Busy as u32) {
                    busy.push(end);
                } else if !tell(end, outcome) {
                    return;
                }
            }
            if busy.is_empty() || is_last {
                return;
            }
            ends = busy;
            std::thread::sleep(PAUSE);
        }
    }

    fn ask(&self, end: &End, whatever: bool) -> io::Result<u32> {
        let arguments = [end.socket, end.other, end.is_server.into(), whatever.into()];
        sys::run_raw_tracepoint(self.adopt.as_fd(), &arguments)
    }

    /// The TCP sockets that processes have open, with repetitions: connections of observed containers, those whose both ends are
    /// in one namespace, and what listens.
    fn open(&self) -> io::Result<Vec<Open>> {
        let mut bytes = Vec::new();
        let mut file = sys::iterate(self.open.as_fd())?;
        // EAGAIN: a million files in a row were none of these (`MAX_ITER_OBJECTS` in kernel/bpf/bpf_iter.c). The next read goes
        // on behind them, and what was read before stays.
        while let Err(error) = file.read_to_end(&mut bytes) {
            if error.kind() != io::ErrorKind::WouldBlock {
                return Err(error);
            }
        }
        Ok(bytes.chunks_exact(size_of::<Open>()).map(record).collect())
    }
}

impl Refused {
    /// Those that nobody has open any more are forgotten: another socket may get their memory.
    fn keep(&mut self, open: &[Open]) {
        let open: HashSet<u64> = open.iter().map(|open| open.socket).collect();
        self.0.retain(|socket| open.contains(socket));
    }

    /// Notes whether a socket found no place (`full`). True when it is the first time.
    fn is_new(&mut self, socket: u64, full: bool) -> bool {
        if !full {
            self.0.remove(&socket);
        }
        full && self.0.insert(socket)
    }
}

/// Reads a record in the order of its fields.
fn record(bytes: &[u8]) -> Open {
    let word = |at: usize| u64::from_ne_bytes(std::array::from_fn(|byte| bytes[at + byte]));
    let half = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
    let state = u32::from_ne_bytes(std::array::from_fn(|byte| bytes[20 + byte]));
    Open { socket: word(0), net: word(8), port: half(16), peer_port: half(18), state }
}

/// One end of a connection.
#[derive(Debug, PartialEq, Eq)]
struct End {
    socket: u64,
    /// The socket that may be at the other end, 0 when there is none on this node.
    other: u64,
    is_server: bool,
}

/// The connections among sockets, each once.
fn ends(open: &[Open]) -> Vec<End> {
    let is_listening = |open: &&Open| open.state == LISTEN;
    let listening: HashSet<_> = open.iter().filter(is_listening).map(|open| (open.net, open.port)).collect();
    let by_ports: HashMap<_, _> = open
        .iter()
        .filter(|open| !is_listening(open))
        .map(|open| ((open.net, open.port, open.peer_port), open))
        .collect();
    let mut seen = HashSet::new();
    let mut ends = Vec::new();
    for end in open.iter().filter(|open| !is_listening(open) && open.peer_port != 0) {
        if seen.insert(end.socket) {
            // The kernel says whether it is.
            let other = by_ports.get(&(end.net, end.peer_port, end.port)).map_or(0, |other| other.socket);
            ends.push(End { socket: end.socket, other, is_server: listening.contains(&(end.net, end.port)) });
        }
    }
    ends
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(socket: u64, port: u16, peer_port: u16, state: u32) -> Open {
        Open { socket, net: 1, port, peer_port, state }
    }

    #[test]
    fn both_ends_know_each_other_and_who_listens_is_the_server() {
        let all = [
            open(1, 80, 0, LISTEN),
            open(2, 80, 40_000, 1),
            open(3, 40_000, 80, 1),
            open(3, 40_000, 80, 1),
            open(4, 40_001, 443, 1),
            Open { net: 2, ..open(5, 80, 40_001, 1) },
        ];
        let end = |socket, other, is_server| End { socket, other, is_server };
        assert_eq!(ends(&all), [end(2, 3, true), end(3, 2, false), end(4, 0, false), end(5, 0, false)]);
    }

    #[test]
    fn what_finds_no_place_is_lost_once() {
        let mut refused = Refused::default();
        let tries = [(2, true), (2, true), (3, true), (2, false), (2, true)];
        assert_eq!(tries.map(|(socket, full)| refused.is_new(socket, full)), [true, false, true, false, true]);
        refused.keep(&[open(2, 80, 40_000, 1)]);
        assert!(!refused.is_new(2, true));
        assert!(refused.is_new(3, true), "another socket at the same address");
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let written = Open { socket: 1 << 40, net: 7, port: 80, peer_port: 40_000, state: 1 };
        // SAFETY: plain integers without padding.
        let bytes: [u8; 24] = unsafe { std::mem::transmute(written) };
        assert_eq!(record(&bytes), written);
    }
}
