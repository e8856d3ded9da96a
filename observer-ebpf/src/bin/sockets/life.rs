//! The life of a connection, with what it carries.

use core::mem::MaybeUninit;

use observer_common::{counters::Loss, edge::Role, sockets::Base, tcp::Connection};

use crate::{
    add::add,
    connection, ends,
    full::{Address, Full, Measures},
    histogram,
    live::{self, Refused},
    maps::{LOSSES, TCP_QUALITY, lose},
    own::SOCKET_BASES,
    pairs::{self, Client, End},
    payload::{self, Carries},
    slot::{self, Caller, NONE},
    sock::{self, Peer, Sock},
};

/// No slot: whose it is says the other end.
pub const LOOPBACK: u32 = NONE - 1;

/// A connection begins to live.
#[inline(always)]
pub fn established<S: Carries>(socket: S, dialed: bool) {
    if socket.is_tcp() {
        socket.begins(dialed);
    }
}

/// The slot of the socket at this address, which is established; [`LOOPBACK`] when its packets stay on this host. Not inlined, and
/// apart from [`over_loopback_by_copy`]: the verifier of kernel 5.10 adds up the stack of all functions that call each other
/// (512 bytes at most), and a copy of the socket is a quarter of that.
#[inline(never)]
pub fn far_by_copy(sk: u64, dialed: bool) -> u32 {
    let mut sock = MaybeUninit::uninit();
    let sock = Sock::read(sk, &mut sock);
    if sock.ends().is_loopback() { LOOPBACK } else { slot::by_key(sk, sock, Caller::of(dialed)) }
}

/// The socket at this address is established, and its packets stay on this host.
#[inline(never)]
pub fn over_loopback_by_copy(sk: u64, dialed: bool) {
    let mut sock = MaybeUninit::uninit();
    let sock = Sock::read(sk, &mut sock);
    over_loopback(Address(sk), sock, pairs::tag(sock, dialed), dialed);
}

/// A socket is established whose packets stay on this host. `tag` is its connection's.
#[inline(always)]
pub fn over_loopback<S: Full>(socket: S, peer: &impl End, tag: u64, dialed: bool) {
    if dialed { waits(socket, peer, tag) } else { meets(socket, peer, tag) }
}

/// A client whose server is established next, and counts both.
#[inline(always)]
fn waits<S: Full>(socket: S, peer: &impl End, tag: u64) {
    let (sk, cgroup, measures) = (socket.address(), socket.cgroup_id(), socket.measures());
    let client = Client { socket: sk, cgroup, measures };
    if !pairs::leave(peer.net(), peer.num(), tag, client, S::EXCHANGES) {
        // Its server will not find it. Both count, and name nobody.
        let flags = ends::port_and_flags(u16::from_be(peer.dport()), Role::Client, peer.is_ipv6());
        begin::<S>(sk, ends::slot(sk, cgroup, 0, flags), measures, true);
    }
}

/// A server whose client has waited for it.
#[inline(always)]
fn meets<S: Full>(socket: S, peer: &impl End, tag: u64) {
    let (sk, cgroup) = (socket.address(), socket.cgroup_id());
    let flags = |role| ends::port_and_flags(peer.num(), role, peer.is_ipv6());
    let mut client_cgroup = 0;
    pairs::meet(peer.net(), u16::from_be(peer.dport()), tag, S::EXCHANGES, |client| {
        client_cgroup = client.cgroup;
        let slot = ends::slot(client.socket, client_cgroup, cgroup, flags(Role::Client));
        begin::<S>(client.socket, slot, client.measures, true);
    });
    begin::<S>(sk, ends::slot(sk, cgroup, client_cgroup, flags(Role::Server)), socket.measures(), false);
}

/// A connection of this slot begins.
#[inline(always)]
pub fn begin<S: Full>(sk: u64, slot: u32, measures: Measures, dialed: bool) {
    begin_by_words::<S>(sk, slot, measures.round_trip, measures.retransmitted, dialed);
}

#[inline(never)]
fn begin_by_words<S: Full>(sk: u64, slot: u32, round_trip: u32, retransmitted: u32, dialed: bool) {
    let Some(counters) = TCP_QUALITY.get_ptr_mut(slot) else {
        // Nobody's, but it may have the memory of one whose end was missed.
        missed::<S>(sk);
        return;
    };
    if dialed && retransmitted != 0 {
        // SAFETY: the map gave a valid, aligned pointer.
        unsafe { add(&raw mut (*counters).retransmitted, retransmitted.into()) };
    }
    // SAFETY: as above.
    unsafe { add(&raw mut (*counters).opened, 1) };
    let connection = Connection { slot, retransmitted };
    // A base that lies there is an earlier socket's: this one begins with nothing, from the moment when it can be found.
    let before = |earlier: Option<Connection>| {
        forget_base(sk);
        if let Some(earlier) = earlier {
            connection::uncounted(earlier);
        }
    };
    let place = || live::insert(sk, connection, S::EXCHANGES, before);
    if let Err(refused) = place() {
        if matches!(refused, Refused::There) {
            missed::<S>(sk);
        }
        if place().is_err() {
            lose(Loss::ConnectionsFull);
            return;
        }
    }
    // SAFETY: as above.
    unsafe { add(&raw mut (*counters).established, 1) };
    if dialed && retransmitted == 0 {
        // SAFETY: as above.
        unsafe { histogram::observe(&raw mut (*counters).connect, &raw mut (*counters).connect_us, round_trip) };
    }
}

/// An end that was missed (the kernel does not run a program that it has interrupted) left its entry behind: that
/// connection is over, too. What it carried is in nobody's counters any more.
#[inline(always)]
fn missed<S: Full>(sk: u64) {
    forget_base(sk);
    connection::gone(sk, S::EXCHANGES);
}

/// A connection is over: what it carried is added to its slot, once. In this order: who reads the totals first and then
/// those that live never sees a connection in both.
#[inline(always)]
pub fn closed<S: Carries>(socket: S) {
    let sk = socket.address();
    match live::take(sk, S::EXCHANGES) {
        Some((connection, in_line)) => over(socket, connection, in_line),
        None => never_seen::<S>(sk),
    }
}

/// A connection is over, and has no place any more; whether that was a line.
#[inline(always)]
pub fn over<S: Carries>(socket: S, connection: Connection, in_line: bool) {
    let (all, Measures { round_trip, retransmitted }) = socket.carried();
    let base = if in_line { Base::default() } else { take_base(socket.address()) };
    let Some(counters) = payload::row(connection.slot) else { return };
    // SAFETY: the map gave a valid, aligned pointer.
    unsafe {
        // Less than nothing is nothing, should the base be another's.
        payload::count(counters, all.tx.saturating_sub(base.tx), all.rx.saturating_sub(base.rx));
        if retransmitted > connection.retransmitted {
            // Sent again, but dropped before it left the host.
            add(&raw mut (*counters).retransmitted, (retransmitted - connection.retransmitted).into());
        }
        // Without a measure there is none to show.
        if round_trip != 0 {
            histogram::observe(&raw mut (*counters).rtt, &raw mut (*counters).rtt_us, round_trip);
        }
        // Last: who reads this end has read what the connection carried.
        add(&raw mut (*counters).closed, 1);
    }
}

/// What an earlier socket had counted says nothing of this one.
#[inline(always)]
pub fn forget_base(sk: u64) {
    take_base(sk);
}

/// What a socket had counted when the agent came, which is not needed any more.
#[inline(always)]
fn take_base(sk: u64) -> Base {
    let Some(base) = payload::base(sk) else { return Base::default() };
    // One that is all zeros, too: it takes a place.
    let _ = SOCKET_BASES.remove(sk);
    base
}

/// The end of a connection that is not among those that live: a client over loopback that no server has answered, or one
/// that found no place. What it carried is counted whole.
#[inline(never)]
fn never_seen<S: Full>(sk: u64) {
    let mut sock = MaybeUninit::uninit();
    let sock = Sock::read(sk, &mut sock);
    if !sock::is_tcp(sk) {
        return;
    }
    let full = LOSSES.get(Loss::ConnectionsFull as u32).is_some_and(|count| *count != 0);
    let slot = if sock.ends().is_loopback() && pairs::take_back(sk, sock, S::EXCHANGES) {
        let port = u16::from_be(sock.dport());
        ends::slot(sk, sock::cgroup_id(sk), 0, ends::port_and_flags(port, Role::Client, sock.is_ipv6()))
    } else if full {
        slot::by_key(sk, sock, Caller::Unknown)
    } else {
        return;
    };
    if slot != NONE {
        let (all, _) = Address(sk).carried();
        if let Some(counters) = payload::row(slot) {
            // SAFETY: the map gave a valid, aligned pointer.
            unsafe { payload::count(counters, all.tx, all.rx) };
        }
    }
}
