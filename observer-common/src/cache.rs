//! Direct-mapped caches in front of the edge table.
//!
//! A line is one `u64`, so that a reader never sees half of it: the upper 40 bits are a tag, the lower 24 the slot.
//! An empty line is 0; slot 0 is never cached.

/// Lines of the socket cache. At least as many as there are live sockets is best.
pub const SOCKET_LINES: u32 = 16_384;
/// Lines of the cache for peers of unconnected sockets.
pub const PEER_LINES: u32 = 4_096;
/// Bits of a line that hold the slot.
pub const SLOT_BITS: u32 = 24;
/// Mask of the slot in a line.
pub const SLOT_MASK: u64 = (1 << SLOT_BITS) - 1;
/// Odd constant whose product spreads the bits (2^64 divided by the golden ratio).
pub const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// Makes a line of the tag in the upper 40 bits of `tag` and a slot.
#[inline(always)]
#[must_use]
pub const fn line(tag: u64, slot: u32) -> u64 {
    (tag & !SLOT_MASK) | slot as u64
}

/// The slot in `line` when its tag is the one in the upper 40 bits of `tag`, else 0.
#[inline(always)]
#[must_use]
pub const fn slot_of(line: u64, tag: u64) -> u32 {
    let difference = line ^ (tag & !SLOT_MASK);
    if difference <= SLOT_MASK { difference as u32 } else { 0 }
}

/// Mixed into the tag of a socket whose SYN has no answer yet: packets do not find its line, the TCP probe does.
pub const DIALING: u64 = 1 << 63;

/// The line of a socket in the socket cache.
#[inline(always)]
#[must_use]
pub const fn socket_index(cookie: u64) -> u32 {
    // Cookies are handed out one after another: the low bits are the best index, the rest tells sockets apart.
    cookie as u32 & (SOCKET_LINES - 1)
}

/// The tag of a socket, in the upper 40 bits. The peer that it is connected to (fields as the kernel has them, in network
/// byte order) is part of it: a socket that is connected anew, to somebody else, misses its old line.
#[inline(always)]
#[must_use]
pub const fn socket_tag(cookie: u64, ip6: [u32; 4], ip4: u32, port: u16) -> u64 {
    let low = ((ip6[0] ^ ip6[2]) as u64) << 32 | (ip6[1] ^ ip6[3]) as u64;
    let peer = low ^ ip4 as u64 ^ (port as u64) << 40;
    ((cookie >> SOCKET_LINES.ilog2()) << SLOT_BITS) ^ peer.wrapping_mul(SPREAD)
}

/// A tag for a peer of an unconnected socket, good in its upper 40 bits and in those that [`peer_index`] takes. Ports are
/// in host byte order.
#[inline(always)]
#[must_use]
pub const fn peer_tag(who: u64, protocol: u8, remote: &[u32; 4], remote_port: u16, local_port: u16) -> u64 {
    let mut hash = who.wrapping_mul(SPREAD);
    hash = (hash ^ ((remote[0] as u64) << 32 | remote[1] as u64)).wrapping_mul(SPREAD);
    hash ^= hash >> 29;
    hash = (hash ^ ((remote[2] as u64) << 32 | remote[3] as u64)).wrapping_mul(SPREAD);
    hash ^= hash >> 29;
    let ports = (protocol as u64) << 32 | (remote_port as u64) << 16 | local_port as u64;
    hash = (hash ^ ports).wrapping_mul(SPREAD);
    hash ^ hash >> 32
}

/// A tag like [`peer_tag`] for one end of a connection over loopback, by the cgroups of this end and of the other, and by the
/// server's port and the edge's flags (in the bits above it). No handshake has it: those have a local port.
#[inline(always)]
#[must_use]
pub const fn ends_tag(cgroup: u64, peer: u64, port_and_flags: u32) -> u64 {
    peer_tag(cgroup, 0, &[peer as u32, (peer >> 32) as u32, port_and_flags, 0], 0, 0)
}

/// The line of a tag in the cache of peers.
#[inline(always)]
#[must_use]
pub const fn peer_index(tag: u64) -> u32 {
    (tag >> (SLOT_BITS - PEER_LINES.ilog2())) as u32 & (PEER_LINES - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_gives_its_slot_to_its_own_tag_only() {
        let tag = 0xdead_beef_0000_0000u64.wrapping_mul(SPREAD);
        assert_eq!(slot_of(line(tag, 77), tag), 77);
        assert_eq!(slot_of(line(tag, 77), tag ^ (1 << SLOT_BITS)), 0);
        assert_eq!(slot_of(0, tag), 0);
        assert_eq!(slot_of(0, 0), 0);
        assert_eq!(slot_of(line(0, 5), 0), 5);
    }

    #[test]
    fn a_socket_that_is_dialing_is_another() {
        let tag = socket_tag(70_000, [0, 0, 0, 0], u32::from_be(0x0a58_0002), 80u16.to_be());
        assert_eq!(slot_of(line(tag ^ DIALING, 9), tag), 0);
        assert_eq!(slot_of(line(tag ^ DIALING, 9), tag ^ DIALING), 9);
        assert_ne!(tag, socket_tag(70_000, [0, 0, 0, 0], u32::from_be(0x0a58_0003), 80u16.to_be()));
        assert_ne!(tag & !SLOT_MASK, socket_tag(70_000 + u64::from(SOCKET_LINES), [0; 4], 0, 0) & !SLOT_MASK);
    }

    #[test]
    fn both_ends_and_their_edges_have_tags_of_their_own() {
        let tag = ends_tag(7, 8, 80);
        for other in
            [ends_tag(8, 7, 80), ends_tag(7, 8, 81), ends_tag(7, 8, 80 | 1 << 16), ends_tag(7, 8 | 1 << 32, 80)]
        {
            assert_ne!(tag & !SLOT_MASK, other & !SLOT_MASK);
        }
    }

    #[test]
    fn the_largest_table_fits_a_line() {
        assert!(u64::from(crate::abi::slots_for(crate::abi::MAX_EDGES)) <= SLOT_MASK);
    }
}
