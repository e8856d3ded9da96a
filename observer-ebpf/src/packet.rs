//! The headers of the packet in hand: what `observer_common::packet` reads, with the kernel's means.

use core::mem::MaybeUninit;

use aya_ebpf::{bindings::__sk_buff, helpers::bpf_skb_load_bytes};
use observer_common::packet::{self, Bytes, InPlace, Plain};
#[allow(unused_imports, reason = "each object that includes this file uses some of it")]
pub use observer_common::packet::{Packet, SCTP, payload, tcp};

use crate::opaque;

/// Reads the headers. False when there is no IP header, and then `packet` is not complete; ports are 0 when the transport
/// header cannot be read.
///
/// # Safety
///
/// `skb` is the context of the running program.
#[inline(always)]
#[allow(dead_code, reason = "each object that includes this file uses some of it")]
pub unsafe fn parse(skb: *mut __sk_buff, egress: bool, packet: &mut MaybeUninit<Packet>) -> bool {
    // SAFETY: the caller's promise.
    unsafe { parse_at::<0>(skb, egress, packet) }
}

/// As [`parse`], of a packet that has `LINK` bytes of a link header before it.
///
/// # Safety
///
/// As for [`parse`].
#[inline(always)]
pub unsafe fn parse_at<const LINK: usize>(skb: *mut __sk_buff, egress: bool, packet: &mut MaybeUninit<Packet>) -> bool {
    let packet = packet.as_mut_ptr();
    // SAFETY: the caller's promise; both write the whole packet when they say so.
    unsafe {
        if !packet::direct(Linear::of(skb, LINK), egress, packet) && !copied(skb, LINK as u32, egress, packet) {
            return false;
        }
        opaque::forget(packet);
    }
    true
}

/// As [`parse_at`], with any link header.
///
/// # Safety
///
/// As for [`parse`].
#[inline(always)]
#[allow(dead_code, reason = "as above")]
pub unsafe fn parse_copied(skb: *mut __sk_buff, link: u32, egress: bool, packet: &mut MaybeUninit<Packet>) -> bool {
    let packet = packet.as_mut_ptr();
    // SAFETY: as above.
    unsafe {
        if !copied(skb, link, egress, packet) {
            return false;
        }
        opaque::forget(packet);
    }
    true
}

/// Reads headers of any kind by copying them out.
#[inline(never)]
unsafe fn copied(skb: *mut __sk_buff, link: u32, egress: bool, packet: *mut Packet) -> bool {
    // SAFETY: the caller's promise.
    unsafe { packet::copied(&Skb::at(skb, link), egress, packet) }
}

/// The packet in hand, whose bytes the kernel copies out.
pub struct Skb {
    skb: *mut __sk_buff,
    /// Where the packet begins.
    begin: u32,
}

impl Skb {
    /// # Safety
    ///
    /// `skb` is the context of the running program.
    #[inline(always)]
    #[allow(dead_code, reason = "as above")]
    pub unsafe fn new(skb: *mut __sk_buff) -> Self {
        Self { skb, begin: 0 }
    }

    /// The packet that begins after so many bytes.
    ///
    /// # Safety
    ///
    /// As for [`Skb::new`].
    #[inline(always)]
    pub unsafe fn at(skb: *mut __sk_buff, begin: u32) -> Self {
        Self { skb, begin }
    }
}

impl Bytes for Skb {
    #[inline(always)]
    fn load<T: Plain>(&self, offset: u32, into: &mut T) -> bool {
        let into = core::ptr::from_mut(into).cast();
        // SAFETY: the pointer is the context (`Skb::new`), and `into` has room for the length that is asked for; any bytes
        // are a `Plain`.
        unsafe { bpf_skb_load_bytes(self.skb.cast(), self.begin + offset, into, size_of::<T>() as u32) == 0 }
    }
}

/// The part of the packet in hand that can be read in place.
#[derive(Clone, Copy)]
struct Linear {
    data: usize,
    end: usize,
}

impl Linear {
    /// # Safety
    ///
    /// `skb` is the context of the running program.
    #[inline(always)]
    unsafe fn of(skb: *mut __sk_buff, begin: usize) -> Self {
        // SAFETY: the caller's promise; the verifier knows these two for the packet's bounds.
        unsafe { Self { data: (*skb).data as usize + begin, end: (*skb).data_end as usize } }
    }
}

/// For a pointer that may not be aligned, the compiler loads byte by byte and puts the bytes together: 15 instructions for
/// a word. The kernel allows the single load on every processor with efficient unaligned access
/// (`CONFIG_HAVE_EFFICIENT_UNALIGNED_ACCESS`: x86-64, arm64 and others).
impl InPlace for Linear {
    #[inline(always)]
    fn reaches(self, length: usize) -> bool {
        self.data + length <= self.end
    }

    #[inline(always)]
    unsafe fn byte<const OFFSET: usize>(self) -> u8 {
        // SAFETY: the caller's promise.
        unsafe { *((self.data + OFFSET) as *const u8) }
    }

    #[inline(always)]
    unsafe fn half<const OFFSET: usize>(self) -> u16 {
        #[cfg(target_arch = "bpf")]
        {
            let value: u64;
            // SAFETY: the caller's promise; the instruction needs no alignment.
            unsafe {
                core::arch::asm!("{value} = *(u16 *)({data} + {offset})", value = lateout(reg) value,
                    data = in(reg) self.data, offset = const OFFSET, options(readonly, nostack));
            }
            value as u16
        }
        #[cfg(not(target_arch = "bpf"))]
        // SAFETY: the caller's promise.
        unsafe {
            ((self.data + OFFSET) as *const u16).read_unaligned()
        }
    }

    #[inline(always)]
    unsafe fn word<const OFFSET: usize>(self) -> u32 {
        #[cfg(target_arch = "bpf")]
        {
            let value: u64;
            // SAFETY: the caller's promise; the instruction needs no alignment.
            unsafe {
                core::arch::asm!("{value} = *(u32 *)({data} + {offset})", value = lateout(reg) value,
                    data = in(reg) self.data, offset = const OFFSET, options(readonly, nostack));
            }
            value as u32
        }
        #[cfg(not(target_arch = "bpf"))]
        // SAFETY: the caller's promise.
        unsafe {
            ((self.data + OFFSET) as *const u32).read_unaligned()
        }
    }
}
