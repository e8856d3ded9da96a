//! Where a packet's payload begins.

use super::{Bytes, Packet, TcpStart};
use crate::dns::{Head, flags};

/// Bytes of a UDP header (RFC 768).
const UDP_HEADER: u32 = 8;
/// Bytes of an IPv6 header (RFC 8200).
const IPV6_HEADER: u32 = 40;

/// Where the payload begins, of a packet that was read before. Fills in what the head takes from a TCP header. `None` for
/// what is neither TCP nor UDP, or has IPv6 extension headers.
#[inline(always)]
pub fn payload<B: Bytes>(bytes: &B, packet: &Packet, head: &mut Head) -> Option<u32> {
    let mut byte = 0u8;
    let transport = if packet.is_ipv6() {
        if !bytes.load(6, &mut byte) || byte != packet.protocol() {
            return None;
        }
        IPV6_HEADER
    } else {
        if !bytes.load(0, &mut byte) {
            return None;
        }
        u32::from(byte & 0xf) * 4
    };
    if packet.is_udp() {
        return Some(transport + UDP_HEADER);
    }
    let mut header = TcpStart::EMPTY;
    if !packet.is_tcp() || !bytes.load(transport, &mut header) {
        return None;
    }
    head.sequence = u32::from_be(header.sequence);
    head.acknowledgment = u32::from_be(header.acknowledgment);
    head.flags |= header.flags & (flags::SYN | flags::FIN | flags::RST);
    Some(transport + u32::from(header.offset >> 4) * 4)
}
