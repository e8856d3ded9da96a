//! Packets between a container and a resolver, handed over to the agent.
//!
//! Sockets that talk to a resolver's port never get a line in `SOCKETS`, so that all their packets come through
//! `find.rs`, where the port is at hand. A packet of any other socket pays one comparison, and only when it comes there.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP},
    helpers::{bpf_ktime_get_ns, bpf_skb_load_bytes},
};
use observer_common::dns::{Head, LARGE, Lost, Record, SMALL, WAKE_BYTES, flags, has_port, lost_index};

use crate::{
    add::add,
    maps::{DNS_LOST, DNS_PORTS, DNS_RECORDS},
    packet::{Packet, Skb, payload},
};

/// Whether the other side's port is a resolver's.
#[inline(always)]
pub fn is_dns(packet: &Packet) -> bool {
    has_port(DNS_PORTS.load(), packet.remote_port())
}

/// Hands a packet over, or counts that it could not be. Bare acknowledgments are left out.
#[inline(never)]
pub fn hand_over(skb: *mut __sk_buff, packet: &Packet, cgroup: u64, egress: bool) {
    let mut head = Head {
        cgroup,
        // SAFETY: a helper without arguments.
        at: unsafe { bpf_ktime_get_ns() },
        remote: packet.remote,
        sequence: 0,
        acknowledgment: 0,
        length: 0,
        captured: 0,
        remote_port: packet.remote_port,
        local_port: packet.local_port,
        protocol: packet.protocol(),
        flags: if egress { flags::EGRESS } else { 0 },
        zero: 0,
    };
    // SAFETY: `skb` is the context of the running program.
    let Some(offset) = (unsafe { payload(&Skb::new(skb), packet, &mut head) }) else {
        return lose(Lost::Unreadable, egress);
    };
    // SAFETY: as above.
    let total = unsafe { (*skb).len };
    if offset > total {
        return lose(Lost::Unreadable, egress);
    }
    head.length = total - offset;
    if head.length == 0 && head.flags & (flags::SYN | flags::FIN | flags::RST) == 0 && packet.is_tcp() {
        return;
    }
    // SAFETY: as above.
    unsafe {
        if head.length <= SMALL as u32 {
            record::<SMALL>(skb, &mut head, offset, egress);
        } else {
            record::<LARGE>(skb, &mut head, offset, egress);
        }
    }
}

#[inline(always)]
unsafe fn record<const N: usize>(skb: *mut __sk_buff, head: &mut Head, offset: u32, egress: bool) {
    let length = if head.length < N as u32 { head.length } else { N as u32 };
    head.captured = length as u16;
    let Some(mut entry) = DNS_RECORDS.reserve::<Record<N>>(0) else {
        return lose(Lost::Full, egress);
    };
    let record = entry.as_mut_ptr();
    // SAFETY: the ring buffer gave room for a whole record, which nobody else sees before it is submitted; at most `N`
    // bytes of it are asked for.
    let read = unsafe {
        (&raw mut (*record).head).write(*head);
        // One less, and one more again: on older kernels (5.10) the verifier learns nothing from a comparison with zero, but a
        // length must be seen to be more than that.
        let last = unknown(u64::from(length).wrapping_sub(1));
        if last < N as u64 {
            bpf_skb_load_bytes(skb.cast(), offset, (&raw mut (*record).payload).cast(), (last + 1) as u32) == 0
        } else {
            length == 0
        }
    };
    if read {
        entry.submit(wake_flags());
    } else {
        entry.discard(u64::from(BPF_RB_NO_WAKEUP));
        lose(Lost::Unreadable, egress);
    }
}

/// The same number, of which the compiler knows nothing: so that it leaves the comparisons in place that the verifier
/// wants to see.
#[inline(always)]
fn unknown(number: u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    {
        let mut same = number;
        // Not quite nothing: an instruction of its own, because the kernel refuses two line numbers for one.
        // SAFETY: adds zero.
        unsafe { core::arch::asm!("{same} += 0", same = inout(reg) same, options(pure, nomem, nostack)) };
        same
    }
    #[cfg(not(target_arch = "bpf"))]
    number
}

/// The reader looks by itself every now and then; it is woken only when much waits.
#[inline(always)]
fn wake_flags() -> u64 {
    let wake = DNS_RECORDS.query(u64::from(BPF_RB_AVAIL_DATA)) >= WAKE_BYTES;
    u64::from(if wake { BPF_RB_FORCE_WAKEUP } else { BPF_RB_NO_WAKEUP })
}

#[inline(always)]
fn lose(reason: Lost, egress: bool) {
    if let Some(counter) = DNS_LOST.get_ptr_mut(lost_index(reason, egress)) {
        // SAFETY: the map gave a valid, aligned pointer that lives as long as the program runs.
        unsafe { add(counter, 1) };
    }
}
