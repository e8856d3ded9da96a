//! The headers of a common packet, read in place.

use aya_ebpf::bindings::__sk_buff;

use crate::packet::{Packet, TCP, UDP};

/// Reads the headers in place when they are the common ones: IPv4 without options or IPv6 without extensions, then TCP
/// or UDP, in the packet's linear part. False when they are not; `packet` is then not complete.
///
/// # Safety
///
/// `skb` is the context of the running program, and `packet` can be written.
#[inline(always)]
pub unsafe fn direct(skb: *mut __sk_buff, egress: bool, packet: *mut Packet) -> bool {
    /// An IPv4 header without options, and ports.
    const V4: usize = 28;
    /// An IPv6 header, and ports with the UDP length and checksum.
    const V6: usize = 48;
    // SAFETY: `skb` is the context; the verifier knows these two for the packet's bounds, and every access below
    // stands behind a comparison with the end. Headers need not be aligned.
    unsafe {
        let data = (*skb).data as usize;
        let end = (*skb).data_end as usize;
        if data + V4 > end {
            return false;
        }
        let first = *(data as *const u8);
        if first == 0x45 {
            // The fragment offset, 13 bits.
            if in_place::half::<6>(data) & 0x1fff_u16.to_be() != 0 {
                return false;
            }
            let source = in_place::word::<12>(data);
            let destination = in_place::word::<16>(data);
            let (local, remote) = if egress { (source, destination) } else { (destination, source) };
            let mapped = 0xffffu32.to_be();
            (*packet).local = [0, 0, mapped, local];
            (*packet).remote = [0, 0, mapped, remote];
            (*packet).ipv6 = 0;
            direct_ports::<20, 22, 33>(data, end, *((data + 9) as *const u8), egress, packet)
        } else if first >> 4 == 6 {
            if data + V6 > end {
                return false;
            }
            let source = [
                in_place::word::<8>(data),
                in_place::word::<12>(data),
                in_place::word::<16>(data),
                in_place::word::<20>(data),
            ];
            let destination = [
                in_place::word::<24>(data),
                in_place::word::<28>(data),
                in_place::word::<32>(data),
                in_place::word::<36>(data),
            ];
            if egress {
                (*packet).local = source;
                (*packet).remote = destination;
            } else {
                (*packet).local = destination;
                (*packet).remote = source;
            }
            (*packet).ipv6 = 1;
            direct_ports::<40, 42, 53>(data, end, *((data + 6) as *const u8), egress, packet)
        } else {
            false
        }
    }
}

/// Reads ports and TCP flags at their offsets in the packet. The caller has compared the ports with the end.
#[inline(always)]
unsafe fn direct_ports<const SOURCE: usize, const DESTINATION: usize, const FLAGS: usize>(
    data: usize,
    end: usize,
    protocol: u8,
    egress: bool,
    packet: *mut Packet,
) -> bool {
    // SAFETY: as in `direct`.
    unsafe {
        let mut flags = 0;
        if protocol == TCP {
            if data + FLAGS + 1 > end {
                return false;
            }
            flags = *((data + FLAGS) as *const u8);
        } else if protocol != UDP {
            return false;
        }
        let source = u16::from_be(in_place::half::<SOURCE>(data));
        let destination = u16::from_be(in_place::half::<DESTINATION>(data));
        let (local_port, remote_port) = if egress { (source, destination) } else { (destination, source) };
        (*packet).remote_port = remote_port;
        (*packet).local_port = local_port;
        (*packet).protocol = protocol;
        (*packet).tcp_flags = flags;
    }
    true
}

/// Loads from a packet that need not be aligned. For a pointer that may not be, the compiler loads byte by byte and puts
/// the bytes together: 15 instructions for a word. The kernel allows the single load on every processor with efficient
/// unaligned access (`CONFIG_HAVE_EFFICIENT_UNALIGNED_ACCESS`: x86-64, arm64 and others).
mod in_place {
    /// The word at `OFFSET`, in network byte order.
    ///
    /// # Safety
    ///
    /// `data` is the packet's start, and the word was compared with its end.
    #[inline(always)]
    pub unsafe fn word<const OFFSET: usize>(data: usize) -> u32 {
        #[cfg(target_arch = "bpf")]
        {
            let value: u64;
            // SAFETY: the caller's promise; the instruction needs no alignment.
            unsafe {
                core::arch::asm!("{value} = *(u32 *)({data} + {offset})", value = lateout(reg) value,
                    data = in(reg) data, offset = const OFFSET, options(readonly, nostack));
            }
            value as u32
        }
        #[cfg(not(target_arch = "bpf"))]
        // SAFETY: the caller's promise.
        unsafe {
            ((data + OFFSET) as *const u32).read_unaligned()
        }
    }

    /// The half word at `OFFSET`, in network byte order.
    ///
    /// # Safety
    ///
    /// As for [`word`].
    #[inline(always)]
    pub unsafe fn half<const OFFSET: usize>(data: usize) -> u16 {
        #[cfg(target_arch = "bpf")]
        {
            let value: u64;
            // SAFETY: the caller's promise; the instruction needs no alignment.
            unsafe {
                core::arch::asm!("{value} = *(u16 *)({data} + {offset})", value = lateout(reg) value,
                    data = in(reg) data, offset = const OFFSET, options(readonly, nostack));
            }
            value as u16
        }
        #[cfg(not(target_arch = "bpf"))]
        // SAFETY: the caller's promise.
        unsafe {
            ((data + OFFSET) as *const u16).read_unaligned()
        }
    }
}
