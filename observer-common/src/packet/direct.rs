//! The headers of a common packet, read in place.

use super::{InPlace, Packet, TCP, TcpStart, UDP};

/// Reads the headers in place when they are the common ones: IPv4 without options or IPv6 without extensions, then TCP
/// or UDP, in the part that can be read so. False when they are not; `packet` is then not complete.
///
/// # Safety
///
/// `packet` can be written. It need not be initialised, and is when the answer is true.
#[inline(always)]
pub unsafe fn direct<P: InPlace>(bytes: P, egress: bool, packet: *mut Packet) -> bool {
    /// An IPv4 header without options, and ports.
    const V4: usize = 28;
    /// An IPv6 header, and ports with the UDP length and checksum.
    const V6: usize = 48;
    // SAFETY: the caller's promise, and every access stands behind a question whether the bytes are there.
    unsafe {
        if !bytes.reaches(V4) {
            return false;
        }
        let first = bytes.byte::<0>();
        if first == 0x45 {
            // The fragment offset, 13 bits.
            if bytes.half::<6>() & 0x1fff_u16.to_be() != 0 {
                return false;
            }
            let source = bytes.word::<12>();
            let destination = bytes.word::<16>();
            let (local, remote) = if egress { (source, destination) } else { (destination, source) };
            let mapped = 0xffffu32.to_be();
            (*packet).local = [0, 0, mapped, local];
            (*packet).remote = [0, 0, mapped, remote];
            (*packet).ipv6 = 0;
            ports::<P, 20, 22, 33>(bytes, bytes.byte::<9>(), egress, packet)
        } else if first >> 4 == 6 {
            if !bytes.reaches(V6) {
                return false;
            }
            let source = [bytes.word::<8>(), bytes.word::<12>(), bytes.word::<16>(), bytes.word::<20>()];
            let destination = [bytes.word::<24>(), bytes.word::<28>(), bytes.word::<32>(), bytes.word::<36>()];
            if egress {
                (*packet).local = source;
                (*packet).remote = destination;
            } else {
                (*packet).local = destination;
                (*packet).remote = source;
            }
            (*packet).ipv6 = 1;
            ports::<P, 40, 42, 53>(bytes, bytes.byte::<6>(), egress, packet)
        } else {
            false
        }
    }
}

/// Reads ports and TCP flags at their offsets in the packet. The caller knows that the ports are there.
#[inline(always)]
unsafe fn ports<P: InPlace, const SOURCE: usize, const DESTINATION: usize, const FLAGS: usize>(
    bytes: P,
    protocol: u8,
    egress: bool,
    packet: *mut Packet,
) -> bool {
    // SAFETY: as in `direct`.
    unsafe {
        let mut flags = 0;
        if protocol == TCP {
            // The same bytes that are copied out: a header that ends before is none, either way.
            if !bytes.reaches(SOURCE + size_of::<TcpStart>()) {
                return false;
            }
            flags = bytes.byte::<FLAGS>();
        } else if protocol != UDP {
            return false;
        }
        let source = u16::from_be(bytes.half::<SOURCE>());
        let destination = u16::from_be(bytes.half::<DESTINATION>());
        let (local_port, remote_port) = if egress { (source, destination) } else { (destination, source) };
        (*packet).remote_port = remote_port;
        (*packet).local_port = local_port;
        (*packet).protocol = protocol;
        (*packet).tcp_flags = flags;
    }
    true
}
