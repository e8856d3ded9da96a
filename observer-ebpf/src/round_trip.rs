//! Round trip times of connections that live: a sample now and then, from a packet that is in hand anyway. When they are over
//! the TCP probe adds the last one.

use aya_ebpf::{
    bindings::__sk_buff,
    helpers::{bpf_sk_fullsock, bpf_tcp_sock},
};
use observer_common::tcp::SAMPLE_EVERY;

use crate::{
    histogram::observe,
    maps::{TCP_OWNER, TCP_QUALITY},
};

/// Whether the packet that made a counter this large is one to look at.
#[inline(always)]
pub const fn is_due(packets: u64) -> bool {
    packets.is_multiple_of(SAMPLE_EVERY)
}

/// Adds the smoothed round trip time of the packet's socket, if it is TCP's, has one, and somebody counts. Not inlined: it is
/// rare, and what it needs must not be on the way of every packet.
#[inline(never)]
pub fn sample(skb: *mut __sk_buff, slot: u32) {
    if TCP_OWNER.get(0).is_none_or(|owner| *owner == 0) {
        return;
    }
    // SAFETY: `skb` is the context of the running program. Each helper takes what is not null and answers with the same socket,
    // or with null when it is a request or not TCP's; the program holds it while it runs.
    let round_trip = unsafe {
        let sk = (*skb).__bindgen_anon_2.sk;
        if sk.is_null() {
            return;
        }
        let sk = bpf_sk_fullsock(sk);
        if sk.is_null() {
            return;
        }
        let tcp = bpf_tcp_sock(sk);
        if tcp.is_null() {
            return;
        }
        // In eighths (`tcp_rtt_estimator` in net/ipv4/tcp_input.c).
        (*tcp).srtt_us >> 3
    };
    if round_trip == 0 {
        return;
    }
    if let Some(counters) = TCP_QUALITY.get_ptr_mut(slot) {
        // SAFETY: the map gave a valid, aligned pointer.
        unsafe { observe(&raw mut (*counters).rtt, &raw mut (*counters).rtt_us, round_trip) };
    }
}
