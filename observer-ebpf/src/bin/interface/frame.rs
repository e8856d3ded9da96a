//! The link header in front of a packet, and how long the packet is behind it.

use aya_ebpf::bindings::__sk_buff;
use observer_common::packet::Bytes;

use crate::packet::Skb;

/// An Ethernet header.
pub const ETHERNET: u32 = 14;
/// A VLAN tag.
const TAG: u32 = 4;
/// Frames that are shorter are filled up (IEEE 802.3, 64 bytes with a tag and without the checksum).
const SHORTEST: u32 = 64;

/// Types of frames (include/uapi/linux/if_ether.h).
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const VLAN: u16 = 0x8100;
const SERVICE_VLAN: u16 = 0x88a8;

/// The length of the link header and that of the packet behind it, as a socket would see it. `None` for what is no IP
/// packet: a socket's hook would not see it either. A tag that the kernel keeps beside the frame is in neither.
///
/// # Safety
///
/// `skb` is the context of the running program.
#[inline(always)]
pub unsafe fn measure(skb: *mut __sk_buff) -> Option<(u32, u64)> {
    // SAFETY: the caller's promise.
    let bytes = unsafe { Skb::at(skb, 0) };
    let mut link = ETHERNET;
    let mut kind = kind(&bytes, link)?;
    if kind == VLAN || kind == SERVICE_VLAN {
        link += TAG;
        kind = self::kind(&bytes, link)?;
    }
    if kind == VLAN {
        link += TAG;
        kind = self::kind(&bytes, link)?;
    }
    if kind != IPV4 && kind != IPV6 {
        return None;
    }
    // SAFETY: the caller's promise.
    let all = unsafe { (*skb).len };
    let length = all.saturating_sub(link);
    if all > SHORTEST {
        return Some((link, u64::from(length)));
    }
    // What fills a short frame up is cut off before a socket sees the packet (`ip_rcv_core`, `ip6_rcv_core`).
    let mut told = [0u16; 2];
    let said = if kind == IPV4 {
        if bytes.load(link, &mut told) { u32::from(u16::from_be(told[1])) } else { length }
    } else if bytes.load(link + 4, &mut told) {
        u32::from(u16::from_be(told[0])) + 40
    } else {
        length
    };
    Some((link, u64::from(if said < length { said } else { length })))
}

/// The type that stands at the end of a link header of this length.
#[inline(always)]
fn kind(bytes: &Skb, link: u32) -> Option<u16> {
    let mut pair = [0u16; 2];
    // The type and the two bytes before it: those are there in any case.
    bytes.load(link - 4, &mut pair).then(|| u16::from_be(pair[1]))
}
