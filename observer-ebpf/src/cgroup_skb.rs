//! `cgroup_skb`: every packet of every IPv4 and IPv6 socket below a cgroup.
//!
//! Called by `__cgroup_bpf_run_filter_skb` (`kernel/bpf/cgroup.c`): on ingress from `sk_filter_trim_cap` with the
//! receiving socket, in softirq; on egress from `ip_finish_output` and `ip6_finish_output` with the sending
//! socket, in process context or softirq, before fragmentation. `skb->data` is the IP header both times.

use aya_ebpf::{
    bindings::__sk_buff,
    helpers::{bpf_get_smp_processor_id, bpf_get_socket_cookie},
    macros::cgroup_skb,
    programs::SkBuffContext,
};
use observer_common::{abi, cache};

use crate::{
    add::add,
    again,
    find::find,
    maps::{ATOMIC_INGRESS, COUNTERS, SLOTS_PER_CPU, SOCKETS},
    round_trip,
    socket::SocketLine,
};

/// The packet passes: the verdict of every program here.
const PASS: i32 = 1;

/// Counts what a sandbox's sockets receive.
#[cgroup_skb(ingress)]
pub fn observe_ingress(ctx: SkBuffContext) -> i32 {
    count(ctx.skb.skb, false);
    PASS
}

/// Counts what a sandbox's sockets send.
#[cgroup_skb(egress)]
pub fn observe_egress(ctx: SkBuffContext) -> i32 {
    count(ctx.skb.skb, true);
    PASS
}

#[inline(always)]
fn count(skb: *mut __sk_buff, egress: bool) {
    // SAFETY: a helper without arguments.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    // SAFETY: `skb` is the program's context.
    if !egress && unsafe { again::is_counted(skb, cpu) } {
        return;
    }
    // SAFETY: `skb` is the program's context, which lives as long as the program runs.
    let length = u64::from(unsafe { (*skb).len });
    // SAFETY: a helper on the program's own context.
    let cookie = unsafe { bpf_get_socket_cookie(skb.cast()) };
    // SAFETY: `skb` is the program's context.
    let socket = unsafe { SocketLine::new(skb, cookie) };
    let mut slot = SOCKETS.get(socket.index).map_or(0, |line| cache::slot_of(*line, socket.tag));
    if slot == 0 {
        slot = find(skb, egress, cookie);
    }
    let row = cpu * SLOTS_PER_CPU.load();
    let counters = match COUNTERS.get_ptr_mut(row + slot) {
        Some(counters) => counters,
        // No such row: cannot happen while the table is as large as the loader said. Not lost all the same.
        None => match COUNTERS.get_ptr_mut(abi::UNATTRIBUTED_SLOT) {
            Some(counters) => counters,
            None => return,
        },
    };
    // SAFETY: the map gave a valid, aligned pointer. On egress a softirq on the same CPU (an ACK) can come between
    // load and store, so the add is atomic. Ingress runs in softirq, which nothing that counts interrupts, except
    // where softirqs are threads (PREEMPT_RT).
    unsafe {
        if egress {
            add(&raw mut (*counters).tx_bytes, length);
            add(&raw mut (*counters).tx_packets, 1);
            return;
        }
        if ATOMIC_INGRESS.load() != 0 {
            add(&raw mut (*counters).rx_bytes, length);
            add(&raw mut (*counters).rx_packets, 1);
        } else {
            (*counters).rx_bytes += length;
            (*counters).rx_packets += 1;
        }
        if round_trip::is_due((*counters).rx_packets) {
            round_trip::sample(skb, slot);
        }
    }
}
