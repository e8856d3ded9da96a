//! The headers of a packet, as far as an edge needs them.

use core::mem::MaybeUninit;

use aya_ebpf::{bindings::__sk_buff, helpers::bpf_skb_load_bytes};

use crate::{direct::direct, opaque};

/// Protocol number of TCP.
pub const TCP: u8 = 6;
/// Protocol number of UDP.
pub const UDP: u8 = 17;
/// Protocol number of UDP-Lite.
pub const UDPLITE: u8 = 136;
/// Protocol number of SCTP.
pub const SCTP: u8 = 132;

/// TCP flags (RFC 9293, section 3.1).
pub mod tcp {
    /// Synchronize: a connection begins.
    pub const SYN: u8 = 0x02;
    /// Reset.
    pub const RST: u8 = 0x04;
    /// The acknowledgment field counts.
    pub const ACK: u8 = 0x10;
}

/// IPv6 extension headers that are walked over before the search is given up. More are rare, and each one multiplies the
/// paths that the verifier walks.
const EXTENSION_HEADERS: usize = 3;

/// Addresses and ports, seen from the socket in hand. Integers alone, a multiple of 8 bytes: see [`crate::opaque`].
#[repr(C, align(8))]
pub struct Packet {
    /// The other side's address in network byte order, IPv4 as `::ffff:a.b.c.d`.
    pub remote: [u32; 4],
    /// This side's address.
    pub local: [u32; 4],
    /// The other side's port in host byte order, or 0.
    pub remote_port: u16,
    /// This side's port in host byte order, or 0.
    pub local_port: u16,
    /// The IP protocol number.
    pub protocol: u8,
    /// TCP flags, or 0.
    pub tcp_flags: u8,
    /// 1 for IPv6, 0 for IPv4.
    pub ipv6: u16,
}

impl Packet {
    /// The protocol, read anew: a branch on it teaches the verifier nothing about the next one.
    #[inline(always)]
    pub fn protocol(&self) -> u8 {
        // SAFETY: a reference can be read.
        unsafe { core::ptr::read_volatile(&raw const self.protocol) }
    }

    /// The TCP flags, as [`Packet::protocol`].
    #[inline(always)]
    pub fn tcp_flags(&self) -> u8 {
        // SAFETY: as above.
        unsafe { core::ptr::read_volatile(&raw const self.tcp_flags) }
    }

    /// Whether it is IPv6, as [`Packet::protocol`].
    #[inline(always)]
    pub fn is_ipv6(&self) -> bool {
        // SAFETY: as above.
        unsafe { core::ptr::read_volatile(&raw const self.ipv6) != 0 }
    }

    /// TCP.
    #[inline(always)]
    pub fn is_tcp(&self) -> bool {
        self.protocol() == TCP
    }

    /// UDP or UDP-Lite.
    #[inline(always)]
    pub fn is_udp(&self) -> bool {
        let protocol = self.protocol();
        protocol == UDP || protocol == UDPLITE
    }
}

/// RFC 791, section 3.1.
#[repr(C)]
struct Ipv4Header {
    version_and_length: u8,
    service: u8,
    total_length: u16,
    identification: u16,
    fragment: u16,
    time_to_live: u8,
    protocol: u8,
    checksum: u16,
    source: u32,
    destination: u32,
}

/// RFC 8200, section 3.
#[repr(C)]
struct Ipv6Header {
    version_and_flow: u32,
    payload_length: u16,
    next_header: u8,
    hop_limit: u8,
    source: [u32; 4],
    destination: [u32; 4],
}

/// Ports of TCP, UDP and SCTP, and the bytes of a TCP header up to its flags.
#[repr(C)]
struct TcpStart {
    source: u16,
    destination: u16,
    sequence: u32,
    acknowledgment: u32,
    offset: u8,
    flags: u8,
}

/// Reads the headers. False when there is no IP header, and then `packet` is not complete; ports are 0 when the transport header cannot be read.
///
/// # Safety
///
/// `skb` is the context of the running program.
#[inline(always)]
pub unsafe fn parse(skb: *mut __sk_buff, egress: bool, packet: &mut MaybeUninit<Packet>) -> bool {
    let packet = packet.as_mut_ptr();
    // SAFETY: the caller's promise; both write the whole packet when they say so.
    unsafe {
        if !direct(skb, egress, packet) && !copied(skb, egress, packet) {
            return false;
        }
        opaque::forget(packet);
    }
    true
}

/// Reads headers of any kind by copying them out.
#[inline(never)]
unsafe fn copied(skb: *mut __sk_buff, egress: bool, packet: *mut Packet) -> bool {
    let mut first = 0u8;
    // SAFETY: the caller's promise, and `first` is one byte.
    if !unsafe { load(skb, 0, &mut first) } {
        return false;
    }
    // SAFETY: the caller's promise.
    let Some(transport) = (unsafe {
        (*packet).local_port = 0;
        (*packet).remote_port = 0;
        (*packet).tcp_flags = 0;
        match first >> 4 {
            4 => ipv4(skb, egress, packet),
            6 => ipv6(skb, egress, packet),
            _ => None,
        }
    }) else {
        return false;
    };
    if transport == NO_TRANSPORT {
        return true;
    }
    // SAFETY: the caller's promise.
    unsafe { ports(skb, transport, egress, packet) };
    true
}

/// The packet is a later fragment, or its transport header cannot be found.
const NO_TRANSPORT: u32 = u32::MAX;

#[inline(always)]
unsafe fn ipv4(skb: *mut __sk_buff, egress: bool, packet: *mut Packet) -> Option<u32> {
    let mut header = Ipv4Header {
        version_and_length: 0,
        service: 0,
        total_length: 0,
        identification: 0,
        fragment: 0,
        time_to_live: 0,
        protocol: 0,
        checksum: 0,
        source: 0,
        destination: 0,
    };
    // SAFETY: the caller's promise, and the header is plain integers.
    if !unsafe { load(skb, 0, &mut header) } {
        return None;
    }
    let (local, remote) =
        if egress { (header.source, header.destination) } else { (header.destination, header.source) };
    // SAFETY: the caller's promise: `packet` can be written.
    unsafe {
        (*packet).local = [0, 0, 0xffffu32.to_be(), local];
        (*packet).remote = [0, 0, 0xffffu32.to_be(), remote];
        (*packet).protocol = header.protocol;
        (*packet).ipv6 = 0;
    }
    // The fragment offset, 13 bits: only the first fragment has a transport header.
    if u16::from_be(header.fragment) & 0x1fff != 0 {
        return Some(NO_TRANSPORT);
    }
    Some(u32::from(header.version_and_length & 0xf) * 4)
}

#[inline(always)]
unsafe fn ipv6(skb: *mut __sk_buff, egress: bool, packet: *mut Packet) -> Option<u32> {
    let mut header = Ipv6Header {
        version_and_flow: 0,
        payload_length: 0,
        next_header: 0,
        hop_limit: 0,
        source: [0; 4],
        destination: [0; 4],
    };
    // SAFETY: the caller's promise, and the header is plain integers.
    if !unsafe { load(skb, 0, &mut header) } {
        return None;
    }
    let (local, remote) =
        if egress { (header.source, header.destination) } else { (header.destination, header.source) };
    let mut protocol = header.next_header;
    // SAFETY: the caller's promise: `packet` can be written.
    unsafe {
        (*packet).local = local;
        (*packet).remote = remote;
        (*packet).ipv6 = 1;
    }
    let mut transport = NO_TRANSPORT;
    let mut offset = size_of::<Ipv6Header>() as u32;
    for _ in 0..EXTENSION_HEADERS {
        // Next header, length, and for a fragment header the offset (RFC 8200, section 4; RFC 4302 for 51).
        let mut extension = [0u8; 4];
        if !matches!(protocol, 0 | 43 | 60 | 44 | 51) {
            transport = offset;
            break;
        }
        // SAFETY: the caller's promise, and four bytes are any bytes.
        if !unsafe { load(skb, offset, &mut extension) } {
            break;
        }
        let length = u32::from(extension[1]);
        let later_fragment = protocol == 44 && (extension[2] != 0 || extension[3] >> 3 != 0);
        offset += match protocol {
            44 => 8,
            51 => (length + 2) * 4,
            _ => (length + 1) * 8,
        };
        protocol = extension[0];
        if later_fragment {
            break;
        }
    }
    // SAFETY: the caller's promise: `packet` can be written.
    unsafe { (*packet).protocol = protocol };
    Some(transport)
}

#[inline(always)]
unsafe fn ports(skb: *mut __sk_buff, transport: u32, egress: bool, packet: *mut Packet) {
    let mut header = TcpStart { source: 0, destination: 0, sequence: 0, acknowledgment: 0, offset: 0, flags: 0 };
    // SAFETY: the caller's promise; the protocol was written before.
    match unsafe { (*packet).protocol } {
        TCP => {
            // SAFETY: the caller's promise, and the header is plain integers.
            if !unsafe { load(skb, transport, &mut header) } {
                return;
            }
            // SAFETY: the caller's promise: `packet` can be written.
            unsafe { (*packet).tcp_flags = header.flags };
        }
        UDP | UDPLITE | SCTP => {
            let mut pair = [0u16; 2];
            // SAFETY: the caller's promise, and the pair is plain integers.
            if !unsafe { load(skb, transport, &mut pair) } {
                return;
            }
            [header.source, header.destination] = pair;
        }
        _ => return,
    }
    let (local, remote) =
        if egress { (header.source, header.destination) } else { (header.destination, header.source) };
    // SAFETY: as above.
    unsafe {
        (*packet).local_port = u16::from_be(local);
        (*packet).remote_port = u16::from_be(remote);
    }
}

/// Copies a header out of the packet. `T` must be made of integers alone.
#[inline(always)]
unsafe fn load<T>(skb: *mut __sk_buff, offset: u32, into: &mut T) -> bool {
    // SAFETY: `skb` is the context, and `into` has room for the length that is asked for.
    unsafe { bpf_skb_load_bytes(skb.cast(), offset, core::ptr::from_mut(into).cast(), size_of::<T>() as u32) == 0 }
}
