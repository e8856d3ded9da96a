//! TCP connections that live, as the TCP probe keeps them: in lines, or in a hash map where a line was taken.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{
        Mutex,
        atomic::{
            AtomicU64,
            Ordering::{AcqRel, Relaxed},
        },
    },
};

use aya::maps::{HashMap, MapData, MapError};
use observer_common::tcp::{Connection, LiveLine, hashed_index, live_index};

use super::{
    super::{mapping::Mapping, sys},
    lock,
};

/// `BPF_EXIST` of include/uapi/linux/bpf.h: change what is there, add nothing.
const BPF_EXIST: u64 = 2;
/// `BPF_NOEXIST`: add, change nothing.
const BPF_NOEXIST: u64 = 1;

/// The words of a line.
const SOCKET: usize = std::mem::offset_of!(LiveLine, socket) / 8;
const CONNECTION: usize = std::mem::offset_of!(LiveLine, connection) / 8;

/// Both places.
pub(in crate::kernel) struct Connections {
    lines: Mapping<LiveLine>,
    rest: Mutex<HashMap<MapData, u64, Connection>>,
    rest_fd: OwnedFd,
    /// Who looks for a connection in the rest asks here first whether there may be one.
    hashed: Mapping<u64>,
}

impl Connections {
    pub(in crate::kernel) fn new(
        lines: Mapping<LiveLine>,
        rest: HashMap<MapData, u64, Connection>,
        rest_fd: OwnedFd,
        hashed: Mapping<u64>,
    ) -> Self {
        Self { lines, rest: rest.into(), rest_fd, hashed }
    }

    /// How many there may be in the rest of the sockets whose lines are beside this one's.
    fn hashed(&self, socket: u64) -> &AtomicU64 {
        self.hashed.word(hashed_index(socket as u32) as usize, 0)
    }

    /// Connections of slots that have an heir count for it when they end.
    pub(super) fn redirect(&self, heir_of: impl Fn(u32) -> Option<u32>) -> Result<(), MapError> {
        for (index, _) in self.taken() {
            let word = self.lines.word(index, CONNECTION);
            let mut now = word.load(Relaxed);
            while let Some(heir) = heir_of(slot(now)) {
                // A program may have counted another segment meanwhile, or the line may be that of another connection.
                match word.compare_exchange(now, with_slot(now, heir), Relaxed, Relaxed) {
                    Ok(_) => break,
                    Err(other) => now = other,
                }
            }
        }
        let mut rest = lock(&self.rest);
        let all: Vec<(u64, Connection)> = rest.iter().collect::<Result<_, _>>()?;
        for (socket, connection) in all {
            if let Some(slot) = heir_of(connection.slot) {
                // One that is not there any more has ended, and has counted in the old slot.
                let _ = rest.insert(socket, Connection { slot, ..connection }, BPF_EXIST);
            }
        }
        Ok(())
    }

    /// Connections of these slots are not followed any more.
    pub(super) fn forget(&self, of: impl Fn(u32) -> bool) -> Result<(), MapError> {
        for (index, socket) in self.taken() {
            if of(slot(self.lines.load(index, CONNECTION))) {
                // One that is not there any more has ended by itself.
                let _ = self.lines.word(index, SOCKET).compare_exchange(socket, 0, Relaxed, Relaxed);
            }
        }
        let mut rest = lock(&self.rest);
        let all: Vec<(u64, Connection)> = rest.iter().collect::<Result<_, _>>()?;
        for (socket, _) in all.into_iter().filter(|(_, connection)| of(connection.slot)) {
            if rest.remove(&socket).is_ok() {
                self.hashed(socket).fetch_sub(1, AcqRel);
            }
        }
        Ok(())
    }

    /// The addresses of their sockets, each once.
    pub(super) fn sockets(&self) -> io::Result<Vec<u64>> {
        let lines: Vec<u64> = self.taken().map(|(_, socket)| socket).collect();
        let rest = sys::all_entries::<u64, Connection>(self.rest_fd.as_fd())?;
        Ok(each_once(lines, rest.into_iter().map(|(socket, _)| socket)))
    }

    /// Takes the line of a socket back, and tells what was in it: the word of a [`Connection`]. `None` when it has none.
    pub(super) fn take_line(&self, socket: u64) -> Option<u64> {
        let index = live_index(socket as u32) as usize;
        // Before the exchange, after which the line is another's. In a line of another socket it is nobody's.
        let connection = self.lines.load(index, CONNECTION);
        let taken = self.lines.word(index, SOCKET).compare_exchange(socket, 0, AcqRel, Relaxed);
        taken.is_ok().then_some(connection)
    }

    /// Gives a connection a place again whose line was taken in the moment when it began.
    pub(super) fn give_back(&self, socket: u64, line: u64) {
        let connection = Connection { slot: slot(line), retransmitted: (line >> 32) as u32 };
        self.hashed(socket).fetch_add(1, AcqRel);
        // Where another has a place at this address by now, that one goes on.
        if lock(&self.rest).insert(socket, connection, BPF_NOEXIST).is_err() {
            self.hashed(socket).fetch_sub(1, AcqRel);
        }
    }

    /// Lines in use, each with its socket.
    fn taken(&self) -> impl Iterator<Item = (usize, u64)> {
        (0..self.lines.len()).map(|index| (index, self.lines.load(index, SOCKET))).filter(|(_, socket)| *socket != 0)
    }
}

/// Sockets of both places. One may be read in a line, end, and have its memory given to a connection that finds the line
/// taken and is read among the rest. What such an address carries is asked for later, of the connection that has it then: so
/// it does not matter which of both stays, but asked for twice it would count twice.
fn each_once(mut lines: Vec<u64>, rest: impl Iterator<Item = u64>) -> Vec<u64> {
    lines.extend(rest);
    lines.sort_unstable();
    lines.dedup();
    lines
}

/// The slot in the word of a [`Connection`].
fn slot(word: u64) -> u32 {
    let [a, b, c, d, ..] = word.to_ne_bytes();
    u32::from_ne_bytes([a, b, c, d])
}

fn with_slot(word: u64, slot: u32) -> u64 {
    let ([a, b, c, d], [.., e, f, g, h]) = (slot.to_ne_bytes(), word.to_ne_bytes());
    u64::from_ne_bytes([a, b, c, d, e, f, g, h])
}

const _: () = assert!(std::mem::offset_of!(Connection, slot) == 0 && size_of::<Connection>() == 8);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_that_moved_between_the_reads_is_asked_for_once() {
        assert_eq!(each_once(vec![0x30, 0x10], [0x20, 0x30].into_iter()), [0x10, 0x20, 0x30]);
    }

    #[test]
    fn a_slot_is_changed_and_the_rest_of_the_word_stays() {
        // SAFETY: eight bytes of integers each.
        let word = |connection: Connection| unsafe { std::mem::transmute::<Connection, u64>(connection) };
        let before = word(Connection { slot: 70_000, retransmitted: 3 });
        assert_eq!(slot(before), 70_000);
        assert_eq!(with_slot(before, 5), word(Connection { slot: 5, retransmitted: 3 }));
    }
}
