//! The life of a connection.

use observer_common::{
    counters::Loss,
    tcp::{Connection, Failure},
};

use crate::{
    add::add,
    full::Full,
    histogram::observe,
    live::{self, Refused},
    maps::{TCP_QUALITY, lose},
    slot::{Caller, NONE},
    sock::{self, state},
};

/// A socket goes from one state to another, which is not written yet.
#[inline(always)]
pub fn changes<S: Full>(socket: S, old: i32, new: i32, is_mine: impl Fn() -> bool) {
    match new {
        state::ESTABLISHED if is_mine() => established(socket, old == state::SYN_SENT),
        state::CLOSE if state::was_established(old) && is_mine() => closed(socket),
        state::CLOSE if never_was(socket, old) && is_mine() => failed(socket),
        _ => {}
    }
}

/// What is over now is a connection that this socket has dialed and that was never established. Most often nobody has answered the
/// SYN, or a reset has; where the other side's SYN has crossed it the socket is in the state of one that was made for a listener.
#[inline(always)]
pub fn never_was<S: Full>(socket: S, old: i32) -> bool {
    old == state::SYN_SENT || (old == state::SYN_RECV && sock::has_dialed(socket.address()))
}

/// A connection begins to live.
#[inline(always)]
fn established<S: Full>(socket: S, dialed: bool) {
    let slot = socket.slot(Caller::of(dialed));
    let Some(counters) = TCP_QUALITY.get_ptr_mut(slot) else {
        // Nobody's, but it may have the memory of one whose end was missed.
        gone(socket.address(), S::EXCHANGES);
        return;
    };
    let measures = socket.measures();
    let retransmitted = measures.retransmitted;
    if dialed && retransmitted != 0 {
        // SAFETY: the map gave a valid, aligned pointer.
        unsafe { add(&raw mut (*counters).retransmitted, retransmitted.into()) };
    }
    // SAFETY: as above.
    unsafe { add(&raw mut (*counters).opened, 1) };
    let connection = Connection { slot, retransmitted };
    let earlier = |earlier: Option<Connection>| {
        if let Some(earlier) = earlier {
            uncounted(earlier);
        }
    };
    if let Err(refused) = live::insert(socket.address(), connection, S::EXCHANGES, earlier) {
        // An end that was missed (the kernel does not run a program that it has interrupted) left its entry behind: that
        // connection is over, too.
        if matches!(refused, Refused::There) {
            gone(socket.address(), S::EXCHANGES);
        }
        if live::insert(socket.address(), connection, S::EXCHANGES, earlier).is_err() {
            lose(Loss::ConnectionsFull);
            return;
        }
    }
    // SAFETY: the map gave a valid, aligned pointer.
    unsafe { add(&raw mut (*counters).established, 1) };
    if dialed && retransmitted == 0 {
        // The answer to the SYN has just given the first measure of the round trip (`tcp_rcv_synsent_state_process` in
        // net/ipv4/tcp_input.c acknowledges before it sets the state). After a second SYN that says little, and when the
        // first left is forgotten by then.
        // SAFETY: as above.
        unsafe { observe(&raw mut (*counters).connect, &raw mut (*counters).connect_us, measures.round_trip) };
    }
}

/// A connection is over.
#[inline(always)]
fn closed<S: Full>(socket: S) {
    if let Some(connection) = live::remove(socket.address(), S::EXCHANGES) {
        over(socket, connection);
    }
}

/// A connection is over whose end no program has seen, and its socket is another's by now.
#[inline(always)]
pub fn gone(sk: u64, lines: bool) {
    if let Some(connection) = live::remove(sk, lines) {
        uncounted(connection);
    }
    // There may have been two.
    if lines && let Some(connection) = live::remove(sk, false) {
        uncounted(connection);
    }
}

/// Of a connection that is over nothing is known any more.
#[inline(always)]
pub fn uncounted(connection: Connection) {
    if let Some(counters) = TCP_QUALITY.get_ptr_mut(connection.slot) {
        // SAFETY: the map gave a valid, aligned pointer.
        unsafe { add(&raw mut (*counters).closed, 1) };
    }
    lose(Loss::EndUnknown);
}

/// A connection is over, and has no place any more.
#[inline(always)]
pub fn over<S: Full>(socket: S, connection: Connection) {
    let Some(counters) = TCP_QUALITY.get_ptr_mut(connection.slot) else { return };
    let measures = socket.measures();
    // SAFETY: the map gave a valid, aligned pointer.
    unsafe {
        add(&raw mut (*counters).closed, 1);
        if measures.retransmitted > connection.retransmitted {
            // Sent again, but dropped before it left the host.
            let more = measures.retransmitted - connection.retransmitted;
            add(&raw mut (*counters).retransmitted, more.into());
        }
        // Without a measure there is none to show.
        if measures.round_trip != 0 {
            observe(&raw mut (*counters).rtt, &raw mut (*counters).rtt_us, measures.round_trip);
        }
    }
}

/// A connection that never was.
#[inline(always)]
pub fn failed<S: Full>(socket: S) {
    let slot = socket.slot(Caller::Us);
    if slot == NONE {
        return;
    }
    let Some(counters) = TCP_QUALITY.get_ptr_mut(slot) else { return };
    let failure = Failure::of_error(socket.error()) as usize;
    let retransmitted = socket.measures().retransmitted;
    // SAFETY: the map gave a valid, aligned pointer, and there is a counter for each failure.
    unsafe {
        add((&raw mut (*counters).failures).cast::<u64>().add(failure), 1);
        if retransmitted != 0 {
            add(&raw mut (*counters).retransmitted, retransmitted.into());
        }
    }
}
