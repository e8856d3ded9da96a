//! Connections that live: a line for each, and a hash map for those whose line is taken.
//!
//! An entry of the hash map takes a lock and a free element twice in the life of a connection; a line takes neither. Taking
//! one needs an atomic exchange, which kernels before 5.12 do not have in programs.
//!
//! A look into the hash map costs more than all else that is done here, and hardly ever finds anything: so many entries as there may
//! be in it are counted for each group of lines, before they are made and after they are gone, and it is asked only where there may
//! be one.

use aya_ebpf::bindings::BPF_NOEXIST;
use observer_common::tcp::{Connection, LiveLine, hashed_index, live_index};

use crate::{
    add::add,
    exchange::compare_exchange,
    maps::{TCP_HASHED, TCP_LINES, TCP_LIVE},
    sock::lower_half,
};

/// Why a connection has no place.
pub enum Refused {
    /// This socket has one: an end that was missed.
    There,
    /// There is none.
    Full,
}

/// What is known of the connection of the socket at this address. The kernel holds the socket's lock while a program runs
/// for it, so nobody else writes to it.
#[inline(always)]
pub fn get(sk: u64) -> Option<*mut Connection> {
    match line(sk) {
        // SAFETY: the map gave a valid, aligned pointer.
        Some(line) if unsafe { (*line).socket } == sk => Some(unsafe { &raw mut (*line).connection }),
        _ if may_be_hashed(sk) => TCP_LIVE.get_ptr_mut(sk),
        _ => None,
    }
}

/// Gives it a place. Only programs whose kernel has atomic exchanges may ask for `lines`. An earlier socket at this address, whose
/// end was missed, may have been in the other place: it is told to `before`, which is called with `None` where there is none and
/// this one gets no line.
#[inline(always)]
pub fn insert(
    sk: u64,
    connection: Connection,
    lines: bool,
    before: impl Fn(Option<Connection>),
) -> Result<(), Refused> {
    if lines && let Some(line) = line(sk) {
        // SAFETY: the map gave a valid, aligned pointer.
        let there = unsafe { compare_exchange(&raw mut (*line).socket, 0, sk) };
        if there == 0 {
            // SAFETY: as above; the line is this socket's now.
            unsafe { (*line).connection = connection };
            if let Some(earlier) = remove(sk, false) {
                before(Some(earlier));
            }
            return Ok(());
        }
        if there == sk {
            return Err(Refused::There);
        }
    }
    before(None);
    hashed(sk, 1);
    if TCP_LIVE.insert(sk, connection, u64::from(BPF_NOEXIST)).is_ok() {
        return Ok(());
    }
    hashed(sk, LESS);
    Err(if TCP_LIVE.get_ptr(sk).is_some() { Refused::There } else { Refused::Full })
}

/// Takes its place back, and tells what was known of it. `lines` as for [`insert`].
#[inline(always)]
pub fn remove(sk: u64, lines: bool) -> Option<Connection> {
    take(sk, lines).map(|(connection, _)| connection)
}

/// The same, and whether its place was a line: then it is not older than the agent ([`crate::adopt`]).
#[inline(always)]
pub fn take(sk: u64, lines: bool) -> Option<(Connection, bool)> {
    if lines && let Some(line) = line(sk) {
        // SAFETY: the map gave a valid, aligned pointer.
        if unsafe { (*line).socket } == sk {
            // SAFETY: as above. Read before the exchange, after which the line is another's.
            let connection = unsafe { (*line).connection };
            // The agent takes lines back, too, when the slot of a connection is given back.
            // SAFETY: as above.
            return (unsafe { compare_exchange(&raw mut (*line).socket, sk, 0) } == sk).then_some((connection, true));
        }
    }
    if !may_be_hashed(sk) {
        return None;
    }
    // SAFETY: the value is copied at once; the kernel holds the socket's lock, so nobody else writes.
    let connection = unsafe { TCP_LIVE.get(sk) }.copied()?;
    TCP_LIVE.remove(sk).ok()?;
    hashed(sk, LESS);
    Some((connection, false))
}

/// It has a line.
#[inline(always)]
pub fn is_in_line(sk: u64) -> bool {
    // SAFETY: the map gave a valid, aligned pointer.
    line(sk).is_some_and(|line| unsafe { (&raw const (*line).socket).read_volatile() } == sk)
}

/// One less, as what is added.
const LESS: u64 = u64::MAX;

/// The hash map gets an entry of this socket, or has lost one ([`LESS`]).
#[inline(always)]
fn hashed(sk: u64, change: u64) {
    if let Some(count) = TCP_HASHED.get_ptr_mut(hashed_index(lower_half(sk))) {
        // SAFETY: the map gave a valid, aligned pointer.
        unsafe { add(count, change) };
    }
}

/// The hash map may have an entry of this socket.
#[inline(always)]
fn may_be_hashed(sk: u64) -> bool {
    // SAFETY: as above. It changes while the program runs.
    TCP_HASHED.get_ptr(hashed_index(lower_half(sk))).is_none_or(|count| unsafe { count.read_volatile() } != 0)
}

#[inline(always)]
fn line(sk: u64) -> Option<*mut LiveLine> {
    TCP_LINES.get_ptr_mut(live_index(lower_half(sk)))
}
