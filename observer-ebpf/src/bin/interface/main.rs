//! Packets at the host's end of a sandbox's interface, for sandboxes whose packets meet no socket of the host: a virtual
//! machine (Kata) or a network stack of its own (gVisor) sends and receives them.
//!
//! The kernel runs these programs as tcx links (from 6.6 on) or as filters of a clsact queueing discipline
//! (`sch_handle_ingress` and `sch_handle_egress` in net/core/dev.c). What enters the host's end is what the sandbox sends.
//! Both count into the traffic's own edges, with the cgroup of the pod as the owner: which container it was is not to be
//! known here.

#![no_std]
#![no_main]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

#[path = "../../add.rs"]
mod add;
#[path = "../../edges.rs"]
mod edges;
mod find;
mod maps;
#[path = "../../opaque.rs"]
mod opaque;
#[path = "../../packet.rs"]
mod packet;
#[path = "../../program.rs"]
mod program;

use aya_ebpf::{bindings::__sk_buff, helpers::bpf_get_smp_processor_id, macros::classifier, programs::TcContext};
use observer_common::{abi, edge::EdgeKey, packet::frame};

use crate::{
    add::add,
    maps::{COUNTERS, INTERFACES, SLOTS_PER_CPU},
    packet::Skb,
};

/// `TCX_NEXT` and `TC_ACT_UNSPEC` (include/uapi/linux/bpf.h, pkt_cls.h): the next program decides, as if this one were
/// not there.
const NEXT: i32 = -1;

/// Counts what a sandbox sends.
#[classifier]
pub fn interface_sends(ctx: TcContext) -> i32 {
    count(ctx.skb.skb, true);
    NEXT
}

/// Counts what a sandbox receives.
#[classifier]
pub fn interface_gets(ctx: TcContext) -> i32 {
    count(ctx.skb.skb, false);
    NEXT
}

#[inline(always)]
fn count(skb: *mut __sk_buff, egress: bool) {
    // SAFETY: `skb` is the program's context, which lives as long as the program runs.
    let interface = unsafe { (*skb).ifindex };
    // SAFETY: the value is one word.
    let Some(cgroup) = (unsafe { INTERFACES.get(&interface) }).map(|cgroup| *cgroup) else { return };
    // SAFETY: `skb` is the program's context.
    let (frame, all) = unsafe { (Skb::at(skb, 0), (*skb).len) };
    let Some((link, length)) = frame::measure(&frame, all) else { return };
    let slot = find::find(skb, link, egress, cgroup);
    // SAFETY: a helper without arguments.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    let row = cpu * SLOTS_PER_CPU.load();
    let counters = match COUNTERS.get_ptr_mut(row + slot) {
        Some(counters) => counters,
        // As in `cgroup_skb.rs`.
        None => match COUNTERS.get_ptr_mut(abi::UNATTRIBUTED_SLOT) {
            Some(counters) => counters,
            None => return,
        },
    };
    // SAFETY: the map gave a valid, aligned pointer. Atomic, because the slots of all containers (the unattributed one) are
    // added to from other hooks too.
    unsafe {
        if egress {
            add(&raw mut (*counters).tx_bytes, length);
            add(&raw mut (*counters).tx_packets, 1);
        } else {
            add(&raw mut (*counters).rx_bytes, length);
            add(&raw mut (*counters).rx_packets, 1);
        }
    }
}

/// Edges are logged by the traffic's own programs alone.
#[inline(always)]
fn tell_edge(_key: &EdgeKey, _slot: u32) {}
