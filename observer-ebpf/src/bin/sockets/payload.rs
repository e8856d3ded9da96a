//! What a socket has sent and received, by its own counters.
//!
//! Sent is `bytes_sent` less `bytes_retrans`: each byte of payload when it leaves for the first time. Received is
//! `bytes_received`: each byte when all before it are there, and one more for the end of the stream
//! (`tcp_rcv_nxt_update` in net/ipv4/tcp_input.c counts sequence numbers), which is taken off.

use aya_ebpf::Global;
use observer_common::{abi, sockets::Base, tcp::TcpRow};

use crate::{
    add::add,
    full::{Address, Full, Measures, Pointer, load},
    life,
    maps::{SK_PROTOCOL, TCP_QUALITY, TP_SRTT_US},
    own::{
        SK_FLAGS, SK_LOCK, SK_OWNED, SOCKET_BASES, SOCKETS_OLDER, TP_BYTES_RECEIVED, TP_BYTES_RETRANS, TP_BYTES_SENT,
    },
    pairs,
    slot::Caller,
    sock,
};

/// `IPPROTO_TCP`.
const TCP: u16 = 6;
/// The bit of `enum sock_flags` (include/net/sock.h) that `tcp_fin` alone sets: the other side's FIN was received in order.
const SOCK_DONE: u32 = 1;

/// A full socket that a hook of its own was called with.
pub trait Carries: Full {
    /// Its protocol is TCP: other protocols have the same states.
    fn is_tcp(self) -> bool;

    /// It is established, and of TCP.
    fn begins(self, dialed: bool);
    /// What it has counted in its life, and what the kernel has measured. Nothing else happens to it in its hook, so this is
    /// exact.
    fn carried(self) -> (Base, Measures);
}

impl Carries for Address {
    #[inline(always)]
    fn is_tcp(self) -> bool {
        sock::is_tcp(self.0)
    }

    #[inline(always)]
    fn begins(self, dialed: bool) {
        match life::far_by_copy(self.0, dialed) {
            life::LOOPBACK => life::over_loopback_by_copy(self.0, dialed),
            slot => life::begin::<Self>(self.0, slot, self.measures(), dialed),
        }
    }
    #[inline(always)]
    fn carried(self) -> (Base, Measures) {
        let base = Base { tx: sent(self.0), rx: received(self.0).wrapping_sub(has_ended(self.0)) };
        (base, self.measures())
    }
}

impl Carries for Pointer {
    #[inline(always)]
    fn is_tcp(self) -> bool {
        self.load::<u16>(&SK_PROTOCOL) == TCP
    }

    #[inline(always)]
    fn begins(self, dialed: bool) {
        match pairs::tag(&self, dialed) {
            0 => life::begin::<Self>(self.address(), self.slot(Caller::of(dialed)), self.measures(), dialed),
            tag => life::over_loopback(self, &self, tag, dialed),
        }
    }

    #[inline(always)]
    fn carried(self) -> (Base, Measures) {
        let Some(tcp) = self.tcp() else { return Default::default() };
        let field = |offset: &Global<u32>| load::<u64>(tcp, offset.load() as usize);
        let ended = self.load::<u64>(&SK_FLAGS) >> SOCK_DONE & 1;
        let base = Base {
            tx: field(&TP_BYTES_SENT).wrapping_sub(field(&TP_BYTES_RETRANS)),
            rx: field(&TP_BYTES_RECEIVED).wrapping_sub(ended),
        };
        (base, Measures::of(tcp))
    }
}

/// What the socket at an address has counted while the socket goes on on another CPU: never more than it is, and whether it is
/// that exactly. It is while nothing happens to the socket.
#[inline(always)]
pub fn while_busy(sk: u64) -> (Base, bool) {
    let rx = received(sk);
    let ended = has_ended(sk);
    let tx = sent(sk);
    // The kernel counts the end of the stream first and marks it then, under the socket's lock.
    let locked: u32 = sock::read(sk, &SK_LOCK);
    let owned: i32 = sock::read(sk, &SK_OWNED);
    let is_sure = locked == 0 && owned == 0 && has_ended(sk) == ended && sent(sk) == tx;
    let unsure_end = u64::from(!is_sure && rx > 0);
    (Base { tx, rx: rx.wrapping_sub(if ended == 0 { unsure_end } else { 1 }) }, is_sure)
}

/// The same, but never less than it is.
#[inline(always)]
pub fn at_most(sk: u64) -> Base {
    // All in the opposite order.
    let ended = has_ended(sk);
    let rx = received(sk).wrapping_sub(ended);
    let again: u64 = sock::read(sk, &TP_BYTES_RETRANS);
    let sent: u64 = sock::read(sk, &TP_BYTES_SENT);
    Base { tx: sent.wrapping_sub(again), rx }
}

/// The counters of the socket at this address, which is over, are those of a connection that was established: that has a round trip
/// time, or has carried something (a server that sent its SYN-ACK twice and got no more than data has none). Others have been there
/// if not: a call that failed, or part of the memory is used for something else.
#[inline(always)]
pub fn is_of_connection(sk: u64) -> bool {
    /// More than 280 TB, or less than nothing: no connection has carried that.
    const BITS: u32 = 48;
    let (tx, rx) = (sent(sk), received(sk));
    let round_trip: u32 = sock::read(sk, &TP_SRTT_US);
    (round_trip != 0 || tx | rx != 0) && (tx | rx) >> BITS == 0
}

/// In this order: what is sent again between both reads makes it less, not more (`__tcp_retransmit_skb` in
/// net/ipv4/tcp_output.c counts it as sent again first).
#[inline(always)]
fn sent(sk: u64) -> u64 {
    let sent: u64 = sock::read(sk, &TP_BYTES_SENT);
    let again: u64 = sock::read(sk, &TP_BYTES_RETRANS);
    sent.wrapping_sub(again)
}

#[inline(always)]
fn received(sk: u64) -> u64 {
    sock::read(sk, &TP_BYTES_RECEIVED)
}

/// 1 when the other side's FIN was received in order.
#[inline(always)]
fn has_ended(sk: u64) -> u64 {
    let flags: u64 = sock::read(sk, &SK_FLAGS);
    flags >> SOCK_DONE & 1
}

/// What a socket had counted when the agent came, if it is older.
#[inline(always)]
pub fn base(sk: u64) -> Option<Base> {
    if SOCKETS_OLDER.get(0).is_none_or(|older| *older == 0) {
        return None;
    }
    // SAFETY: the value is copied at once; nobody changes it while it is there.
    unsafe { SOCKET_BASES.get(sk) }.copied()
}

/// The row of a slot.
#[inline(always)]
pub fn row(slot: u32) -> Option<*mut TcpRow> {
    // No such row: cannot happen while the table is as large as the loader said. Not lost all the same.
    TCP_QUALITY.get_ptr_mut(slot).or_else(|| TCP_QUALITY.get_ptr_mut(abi::UNATTRIBUTED_SLOT))
}

/// Adds what a connection has carried to the totals of its slot.
///
/// # Safety
///
/// `counters` is a live value of the map.
#[inline(always)]
pub unsafe fn count(counters: *mut TcpRow, tx: u64, rx: u64) {
    // SAFETY: the caller's promise.
    unsafe {
        add(&raw mut (*counters).tx, tx);
        add(&raw mut (*counters).rx, rx);
    }
}
