//! A packet that the kernel filters twice, to be counted once.
//!
//! What ends a handshake finds the request, and is filtered for the listener (`tcp_v4_rcv` in `net/ipv4/tcp_ipv4.c` and
//! `tcp_v6_rcv` in `net/ipv6/tcp_ipv6.c`, `TCP_NEW_SYN_RECV`). Where another CPU has made the connection out of the same request
//! meanwhile (`req_stolen`), the kernel looks the socket up again, and filters the packet for the connection. No other packet
//! is received on this CPU in between.

use aya_ebpf::{bindings::__sk_buff, helpers::bpf_skb_load_bytes};

use observer_common::cache::SPREAD;

use crate::{packet::Packet, socket::Socket};

/// The packet that a CPU has just filtered for a listener. A line of the processor's caches for each.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Filtered {
    /// Its `struct sk_buff`; 0: none. A copy of a packet has another.
    skb: u64,
    /// [`numbers`] of it: the next packet may have its memory.
    numbers: u64,
}

/// CPUs that have a line of their own. Where there are more, others share: one that was overwritten is counted twice.
const LINES: usize = 256;

#[unsafe(no_mangle)]
static mut FILTERED: [Filtered; LINES] = [Filtered { skb: 0, numbers: 0 }; LINES];

/// Remembers the packet in hand, which was filtered for a listener.
///
/// # Safety
///
/// `skb` is the context of the running program.
#[inline(always)]
pub unsafe fn remember(skb: *mut __sk_buff, cpu: u32, packet: &Packet) {
    let line = line(cpu);
    // SAFETY: the caller's promise, and a line of the table.
    unsafe {
        (&raw mut (*line).numbers).write_volatile(numbers(skb, packet.is_ipv6()));
        (&raw mut (*line).skb).write_volatile(skb as u64);
    }
}

/// Whether the packet in hand was filtered for a listener just now. What is asked for after each listener's packet is one load and
/// a comparison otherwise.
///
/// # Safety
///
/// `skb` is the context of the running program.
#[inline(always)]
pub unsafe fn is_counted(skb: *mut __sk_buff, cpu: u32) -> bool {
    let line = line(cpu);
    // SAFETY: a line of the table, and the caller's promise.
    unsafe {
        let filtered = (&raw const (*line).skb).read_volatile();
        if filtered == 0 {
            return false;
        }
        (&raw mut (*line).skb).write_volatile(0);
        filtered == skb as u64 && is_same(skb, (&raw const (*line).numbers).read_volatile())
    }
}

/// The memory of a packet is soon that of the next one, which may say the same: the end of a handshake that the listener had no room
/// for comes again. But then it meets the listener again, and only a packet that meets a connection was filtered before.
///
/// Not inlined: it is rare, and what it needs must not be on the way of every packet.
#[inline(never)]
unsafe fn is_same(skb: *mut __sk_buff, filtered: u64) -> bool {
    // SAFETY: the caller's promise.
    unsafe {
        // `ETH_P_IPV6` in network byte order.
        let ipv6 = (*skb).protocol == u32::from(0x86ddu16.to_be());
        !Socket::of(skb).is_listening() && numbers(skb, ipv6) == filtered
    }
}

/// What tells a packet from the next one of the same connection: its TCP header from the sequence number on (with the flags, the
/// checksum, and what stands where most senders have the time of their clock), its length, and the number that IPv4 gives it. Of a
/// packet with options of IP it is what stands there in their place. What is the same in all of that is the same packet, or one
/// that its sender has sent twice within a tick of its clock, over IPv6, with nothing received on this CPU in between.
#[inline(always)]
unsafe fn numbers(skb: *mut __sk_buff, ipv6: bool) -> u64 {
    let segment = if ipv6 { 40 } else { 20 };
    let [mut id, mut options] = [0u64; 2];
    let mut header = [0u64; 2];
    // SAFETY: as many bytes as is said; where the packet ends before, they are zeros.
    unsafe {
        bpf_skb_load_bytes(skb.cast(), segment + 4, (&raw mut header).cast(), 16);
        bpf_skb_load_bytes(skb.cast(), segment + 24, (&raw mut options).cast(), 8);
        if !ipv6 {
            bpf_skb_load_bytes(skb.cast(), 4, (&raw mut id).cast(), 2);
        }
        mix(mix(mix(mix(u64::from((*skb).len), header[0]), header[1]), options), id)
    }
}

/// One word more, whose bits do not meet the same bits of the others.
#[inline(always)]
const fn mix(all: u64, word: u64) -> u64 {
    (all ^ word).wrapping_mul(SPREAD).rotate_left(31)
}

#[inline(always)]
fn line(cpu: u32) -> *mut Filtered {
    // SAFETY: in bounds.
    unsafe { (&raw mut FILTERED).cast::<Filtered>().add(cpu as usize & (LINES - 1)) }
}
