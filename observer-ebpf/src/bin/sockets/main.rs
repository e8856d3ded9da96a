//! TCP payload from the sockets' own counters, for `--traffic.accounting=sockets`: no program runs for a packet.
//!
//! In the place of the TCP probe's program for state changes there is one that also adds what a connection has carried to
//! its edge when it is over. What connections have carried that live is read when the agent asks, and added to nothing: the
//! total that is shown is that of the closed ones and of those that live. The other programs of the TCP probe run as they
//! are, and the files of both are the same.

#![no_std]
#![no_main]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

#[path = "../../add.rs"]
mod add;
#[path = "../tcp/adopt.rs"]
mod adopt;
#[allow(dead_code, reason = "shared with the TCP probe, which uses the rest")]
#[path = "../tcp/connection.rs"]
mod connection;
#[path = "../../edges.rs"]
mod edges;
#[path = "../tcp/ends.rs"]
mod ends;
#[path = "../tcp/exchange.rs"]
mod exchange;
#[allow(dead_code, reason = "as above")]
#[path = "../tcp/full.rs"]
mod full;
#[path = "../../histogram.rs"]
mod histogram;
mod life;
#[path = "../tcp/live.rs"]
mod live;
#[path = "../tcp/maps.rs"]
mod maps;
#[path = "../tcp/missed.rs"]
mod missed;
mod older;
mod own;
mod pairs;
mod payload;
#[path = "../../program.rs"]
mod program;
#[path = "../tcp/slot.rs"]
mod slot;
mod snapshot;
#[allow(dead_code, reason = "as above")]
#[path = "../tcp/sock.rs"]
mod sock;

use core::ffi::c_void;

use aya_ebpf::{
    macros::{btf_tracepoint, raw_tracepoint},
    programs::{BtfTracePointContext, RawTracePointContext},
};
use observer_common::edge::EdgeKey;

use crate::{
    full::{Address, Pointer},
    maps::{TCP_GENERATION, TCP_OWNER},
    payload::Carries,
    sock::state,
};

/// `inet_sock_set_state(const struct sock *sk, const int oldstate, const int newstate)`
/// (include/trace/events/sock.h), before the state is written. Here the verifier knows the socket, so that its fields are
/// loads; it needs a kernel with atomic exchanges (5.12), and with a plain pointer to a socket's cgroup (5.15).
#[btf_tracepoint(function = "inet_sock_set_state")]
pub fn sockets_change(ctx: BtfTracePointContext) -> i32 {
    changes(Pointer(ctx.arg(0)), ctx.arg(1), ctx.arg(2));
    0
}

/// The same for every other kernel.
#[raw_tracepoint]
pub fn sockets_state(ctx: RawTracePointContext) -> i32 {
    changes(Address(ctx.arg(0)), ctx.arg(1), ctx.arg(2));
    0
}

#[inline(always)]
fn changes<S: Carries>(socket: S, old: i32, new: i32) {
    match new {
        state::ESTABLISHED if is_mine() => life::established(socket, old == state::SYN_SENT),
        state::CLOSE if state::was_established(old) && is_mine() => life::closed(socket),
        state::CLOSE if connection::never_was(socket, old) && is_mine() => connection::failed(socket),
        _ => {}
    }
}

/// Run by the agent: reads as many of the sockets in `SOCKETS_ASKED` as its argument says.
#[raw_tracepoint]
pub fn sockets_read(ctx: RawTracePointContext) -> i32 {
    snapshot::read(ctx.arg(0));
    0
}

/// Run by the agent: begins to count for a socket that is older than it. The arguments are those of [`older::adopt`].
/// Declared by hand, as all that answers: the attribute `raw_tracepoint` throws away what a program returns.
#[unsafe(no_mangle)]
#[unsafe(link_section = "raw_tp")]
extern "C" fn sockets_adopt(ctx: *mut c_void) -> i32 {
    let ctx = RawTracePointContext::new(ctx);
    older::adopt(ctx.arg(0), ctx.arg(1), ctx.arg::<u64>(2) != 0, ctx.arg::<u64>(3) != 0) as i32
}

/// Run by the agent: ends a connection whose end was missed. The arguments are those of [`missed::missed`].
#[unsafe(no_mangle)]
#[unsafe(link_section = "raw_tp")]
extern "C" fn sockets_missed(ctx: *mut c_void) -> i32 {
    let ctx = RawTracePointContext::new(ctx);
    let sk = ctx.arg(0);
    let over = |connection, in_line| {
        let is_its = payload::is_of_connection(sk);
        if is_its {
            life::over(Address(sk), connection, in_line);
        }
        is_its
    };
    missed::missed(sk, ctx.arg::<u64>(1) != 0, ctx.arg(2), over, || life::forget_base(sk)) as i32
}

/// A new edge is no news here: this object has no log.
#[inline(always)]
fn tell_edge(_: &EdgeKey, _: u32) {}

/// Whether these programs are the ones that count.
#[inline(always)]
fn is_mine() -> bool {
    TCP_OWNER.get(0).is_some_and(|owner| *owner == TCP_GENERATION.load())
}
