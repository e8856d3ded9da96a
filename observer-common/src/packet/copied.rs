//! Headers of any kind, copied out.

use super::{Bytes, Packet, Plain, SCTP, TCP, TcpStart, UDP, UDPLITE};

/// IPv6 extension headers that are walked over before the search is given up. More are rare, and each one multiplies the
/// paths that the verifier walks.
const EXTENSION_HEADERS: usize = 3;
/// The packet is a later fragment, or its transport header cannot be found.
const NO_TRANSPORT: u32 = u32::MAX;

/// RFC 791, section 3.1.
#[repr(C)]
#[derive(Clone, Copy)]
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
#[derive(Clone, Copy)]
struct Ipv6Header {
    version_and_flow: u32,
    payload_length: u16,
    next_header: u8,
    hop_limit: u8,
    source: [u32; 4],
    destination: [u32; 4],
}

const _: () = assert!(size_of::<Ipv4Header>() == 20 && size_of::<Ipv6Header>() == 40);

// SAFETY: integers; the size is the sum of the fields.
unsafe impl Plain for Ipv4Header {}
// SAFETY: as above.
unsafe impl Plain for Ipv6Header {}

/// Reads headers of any kind. False when there is no IP header, and then `packet` is not complete; ports are 0 when the
/// transport header cannot be read.
///
/// # Safety
///
/// `packet` can be written. It need not be initialised, and is when the answer is true.
#[inline(always)]
pub unsafe fn copied<B: Bytes>(bytes: &B, egress: bool, packet: *mut Packet) -> bool {
    let mut first = 0u8;
    if !bytes.load(0, &mut first) {
        return false;
    }
    // SAFETY: the caller's promise.
    let Some(transport) = (unsafe {
        (*packet).local_port = 0;
        (*packet).remote_port = 0;
        (*packet).tcp_flags = 0;
        match first >> 4 {
            4 => ipv4(bytes, egress, packet),
            6 => ipv6(bytes, egress, packet),
            _ => None,
        }
    }) else {
        return false;
    };
    if transport == NO_TRANSPORT {
        return true;
    }
    // SAFETY: the caller's promise.
    unsafe { ports(bytes, transport, egress, packet) };
    true
}

#[inline(always)]
unsafe fn ipv4<B: Bytes>(bytes: &B, egress: bool, packet: *mut Packet) -> Option<u32> {
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
    if !bytes.load(0, &mut header) {
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
unsafe fn ipv6<B: Bytes>(bytes: &B, egress: bool, packet: *mut Packet) -> Option<u32> {
    let mut header = Ipv6Header {
        version_and_flow: 0,
        payload_length: 0,
        next_header: 0,
        hop_limit: 0,
        source: [0; 4],
        destination: [0; 4],
    };
    if !bytes.load(0, &mut header) {
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
    for walked in 0..=EXTENSION_HEADERS {
        if !matches!(protocol, 0 | 43 | 60 | 44 | 51) {
            transport = offset;
            break;
        }
        if walked == EXTENSION_HEADERS {
            break;
        }
        // Next header, length, and for a fragment header the offset (RFC 8200, section 4; RFC 4302 for 51).
        let mut extension = [0u8; 4];
        if !bytes.load(offset, &mut extension) {
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
unsafe fn ports<B: Bytes>(bytes: &B, transport: u32, egress: bool, packet: *mut Packet) {
    let mut header = TcpStart::EMPTY;
    // SAFETY: the caller's promise; the protocol was written before.
    match unsafe { (*packet).protocol } {
        TCP => {
            if !bytes.load(transport, &mut header) {
                return;
            }
            // SAFETY: the caller's promise: `packet` can be written.
            unsafe { (*packet).tcp_flags = header.flags };
        }
        UDP | UDPLITE | SCTP => {
            let mut pair = [0u16; 2];
            if !bytes.load(transport, &mut pair) {
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
