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
    fn the_largest_table_fits_a_line() {
        assert!(u64::from(crate::abi::slots_for(crate::abi::MAX_EDGES)) <= SLOT_MASK);
    }
}
