//! Who has sent the SYN that arrives: over loopback a packet comes to the CPU that has sent it, and most often at once. What is left
//! here spares the lookup of the socket that it came from.

use aya_ebpf::{bindings::__sk_buff, helpers::bpf_get_smp_processor_id};

use crate::packet::Packet;

/// The last SYN that a CPU has sent over loopback. A line of the processor's caches for each.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Dialed {
    /// The cgroup of the socket that has sent it.
    cgroup: u64,
    /// [`mark`] of the packet, mixed with `cgroup`: one SYN may be sent while another is written down, and then this fits neither.
    sealed: u64,
}

/// CPUs that have a line of their own; others share, and find what they have not written less often.
const LINES: usize = 64;

#[unsafe(no_mangle)]
static mut DIALED: [Dialed; LINES] = [Dialed { cgroup: 0, sealed: 0 }; LINES];

/// Leaves the cgroup that the SYN in hand is sent by.
///
/// # Safety
///
/// `skb` is the context of the running program.
#[inline(always)]
pub unsafe fn leave(skb: *mut __sk_buff, packet: &Packet, cgroup: u64) {
    // SAFETY: the caller's promise.
    let mark = unsafe { mark(skb, packet.local_port, packet.remote_port) };
    let line = line();
    // SAFETY: a line of the table; who reads half of it finds that it does not fit.
    unsafe {
        (&raw mut (*line).cgroup).write_volatile(cgroup);
        (&raw mut (*line).sealed).write_volatile(mark ^ cgroup);
    }
}

/// The cgroup that the SYN in hand was sent by; 0 when that is not known here.
///
/// # Safety
///
/// `skb` is the context of the running program.
#[inline(always)]
pub unsafe fn sender(skb: *mut __sk_buff, packet: &Packet) -> u64 {
    // SAFETY: the caller's promise.
    let mark = unsafe { mark(skb, packet.remote_port, packet.local_port) };
    let line = line();
    // SAFETY: a line of the table.
    let (cgroup, sealed) =
        unsafe { ((&raw const (*line).cgroup).read_volatile(), (&raw const (*line).sealed).read_volatile()) };
    if mark >> 32 != 0 && sealed ^ cgroup == mark { cgroup } else { 0 }
}

/// What tells a SYN from others: the ports, and in the upper half the number that its socket has drawn for itself, which the packet
/// keeps over loopback (`sk_set_txhash` and `skb_set_hash_from_sk` in include/net/sock.h); 0 there when it has none.
///
/// # Safety
///
/// `skb` is the context of the running program.
#[inline(always)]
unsafe fn mark(skb: *mut __sk_buff, from: u16, to: u16) -> u64 {
    // SAFETY: the caller's promise.
    let drawn = unsafe { (*skb).hash };
    u64::from(drawn) << 32 | u64::from(from) << 16 | u64::from(to)
}

#[inline(always)]
fn line() -> *mut Dialed {
    // SAFETY: a helper without arguments.
    let cpu = unsafe { bpf_get_smp_processor_id() } as usize;
    // SAFETY: in bounds.
    unsafe { (&raw mut DIALED).cast::<Dialed>().add(cpu & (LINES - 1)) }
}
