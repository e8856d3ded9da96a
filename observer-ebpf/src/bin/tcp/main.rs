//! How well TCP works: connections that live, that failed, segments sent again, resets, times.
//!
//! Tracepoints, which see every socket of the node. Whose it is tell the traffic's caches and edges: a socket that has
//! no slot there is not observed, and the programs end early. Only what happens to a connection as a whole is looked at,
//! never a packet.
//!
//! Programs of two agents are attached side by side for a moment when one takes over from the other. `TCP_OWNER` names
//! those that count.

#![no_std]
#![no_main]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

#[path = "../../add.rs"]
mod add;
mod adopt;
mod connection;
#[path = "../../edges.rs"]
mod edges;
mod ends;
mod exchange;
mod full;
#[path = "../../histogram.rs"]
mod histogram;
mod live;
mod maps;
mod missed;
mod open;
#[path = "../../program.rs"]
mod program;
mod slot;
mod sock;

use core::{ffi::c_void, mem::MaybeUninit};

use aya_ebpf::{
    macros::{btf_tracepoint, raw_tracepoint},
    programs::{BtfTracePointContext, RawTracePointContext},
};
use observer_common::{edge::EdgeKey, tcp::TcpRow};

use crate::{
    add::add,
    full::{Address, Full, Pointer},
    maps::{TCP_GENERATION, TCP_OWNER, TCP_QUALITY, TP_TOTAL_RETRANS},
    slot::Caller,
    sock::{Sock, state},
};

/// `inet_sock_set_state(const struct sock *sk, const int oldstate, const int newstate)`
/// (include/trace/events/sock.h), before the state is written. Here the verifier knows the socket, so that its fields are
/// loads; it needs a kernel with atomic exchanges (5.12), and with a plain pointer to a socket's cgroup (5.15).
#[btf_tracepoint(function = "inet_sock_set_state")]
pub fn tcp_change(ctx: BtfTracePointContext) -> i32 {
    connection::changes(Pointer(ctx.arg(0)), ctx.arg(1), ctx.arg(2), is_mine);
    0
}

/// The same for every other kernel.
#[raw_tracepoint]
pub fn tcp_state(ctx: RawTracePointContext) -> i32 {
    connection::changes(Address(ctx.arg(0)), ctx.arg(1), ctx.arg(2), is_mine);
    0
}

/// `tcp_retransmit_skb(const struct sock *sk, const struct sk_buff *skb, …)` (`__tcp_retransmit_skb` in
/// net/ipv4/tcp_output.c), after the socket has counted what is sent again. From kernel 6.16 on it also tells of what could
/// not be sent, so the socket's own count is taken. What a SYN adds to it is counted when the handshake is over.
#[raw_tracepoint]
pub fn tcp_retransmit(ctx: RawTracePointContext) -> i32 {
    if !is_mine() {
        return 0;
    }
    let sk: u64 = ctx.arg(0);
    if let Some(connection) = live::get(sk) {
        let total: u32 = sock::read(sk, &TP_TOTAL_RETRANS);
        // SAFETY: the map gave a valid, aligned pointer; the kernel holds the socket's lock, so nobody else writes.
        let (slot, more) = unsafe {
            let more = total.wrapping_sub((*connection).retransmitted);
            (*connection).retransmitted = total;
            ((*connection).slot, more)
        };
        retransmitted(slot, more.into());
    }
    0
}

/// `tcp_retransmit_synack(const struct sock *sk, const struct request_sock *req)` (`tcp_rtx_synack` in
/// net/ipv4/tcp_output.c). The request begins with a `struct sock_common`, too; its cgroup is the listener's.
#[raw_tracepoint]
pub fn tcp_synack(ctx: RawTracePointContext) -> i32 {
    if is_mine() {
        let mut request = MaybeUninit::uninit();
        let request = Sock::read(ctx.arg(1), &mut request);
        retransmitted(slot::by_key(ctx.arg(0), request, Caller::Them), 1);
    }
    0
}

/// `tcp_send_reset(const struct sock *sk, const struct sk_buff *skb, …)` (`tcp_send_active_reset` in
/// net/ipv4/tcp_output.c, `tcp_v4_send_reset` in net/ipv4/tcp_ipv4.c and its like for IPv6).
#[raw_tracepoint]
pub fn tcp_reset_sent(ctx: RawTracePointContext) -> i32 {
    if is_mine()
        && let Some(counters) = of_event(ctx.arg(0))
    {
        // SAFETY: the map gave a valid, aligned pointer.
        unsafe { add(&raw mut (*counters).resets_sent, 1) };
    }
    0
}

/// `tcp_receive_reset(struct sock *sk)` (`tcp_reset` in net/ipv4/tcp_input.c), once for each reset that is taken as
/// valid.
#[raw_tracepoint]
pub fn tcp_reset_received(ctx: RawTracePointContext) -> i32 {
    if is_mine()
        && let Some(counters) = of_event(ctx.arg(0))
    {
        // SAFETY: the map gave a valid, aligned pointer.
        unsafe { add(&raw mut (*counters).resets_received, 1) };
    }
    0
}

/// Run by the agent: follows a connection that is older than it. The arguments are those of [`adopt::adopt`]. What its packets
/// carry is counted by themselves, so there is nothing to note.
/// Declared by hand, as all that answers: the attribute `raw_tracepoint` throws away what a program returns.
#[unsafe(no_mangle)]
#[unsafe(link_section = "raw_tp")]
extern "C" fn tcp_adopt(ctx: *mut c_void) -> i32 {
    let ctx = RawTracePointContext::new(ctx);
    adopt::adopt(ctx.arg(0), ctx.arg(1), ctx.arg::<u64>(2) != 0, || true, || ()) as i32
}

/// Run by the agent: ends a connection whose end was missed. The arguments are those of [`missed::missed`].
#[unsafe(no_mangle)]
#[unsafe(link_section = "raw_tp")]
extern "C" fn tcp_missed(ctx: *mut c_void) -> i32 {
    let ctx = RawTracePointContext::new(ctx);
    let sk = ctx.arg(0);
    let over = |connection, _| {
        // A call that failed has none, and may have been at this address since.
        let is_its = Address(sk).measures().round_trip != 0;
        if is_its {
            connection::over(Address(sk), connection);
        }
        is_its
    };
    missed::missed(sk, ctx.arg::<u64>(1) != 0, ctx.arg(2), over, || ()) as i32
}

/// The row of the socket to which something happens. A listener has no peer: what it refuses is no connection.
#[inline(always)]
fn of_event(sk: u64) -> Option<*mut TcpRow> {
    if sk == 0 {
        return None;
    }
    let slot = match live::get(sk) {
        // SAFETY: the map gave a valid, aligned pointer; the kernel holds the socket's lock, so nobody else writes.
        Some(connection) => unsafe { (*connection).slot },
        None => {
            let caller = match sock::state_of(sk) {
                state::LISTEN => return None,
                // It may have no cookie: only the traffic's programs ask for one.
                state::SYN_SENT => Caller::Us,
                state::SYN_RECV => Caller::of(sock::has_dialed(sk)),
                _ => Caller::Unknown,
            };
            slot::find(sk, caller)
        }
    };
    TCP_QUALITY.get_ptr_mut(slot)
}

#[inline(always)]
fn retransmitted(slot: u32, segments: u64) {
    if let Some(counters) = TCP_QUALITY.get_ptr_mut(slot) {
        // SAFETY: the map gave a valid, aligned pointer.
        unsafe { add(&raw mut (*counters).retransmitted, segments) };
    }
}

/// A new edge is no news here: this object has no log.
#[inline(always)]
fn tell_edge(_: &EdgeKey, _: u32) {}

/// Whether these programs are the ones that count.
#[inline(always)]
fn is_mine() -> bool {
    TCP_OWNER.get(0).is_some_and(|owner| *owner == TCP_GENERATION.load())
}
