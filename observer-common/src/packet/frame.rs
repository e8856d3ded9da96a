//! The link header in front of a packet, and how long the packet is behind it.

use super::Bytes;

/// An Ethernet header, in bytes.
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

/// The length of the link header and that of the packet behind it, in bytes, as a socket would see it; `all` is the length of
/// the frame. `None` for what is no IP packet: a socket's hook would not see it either. A tag that the kernel keeps beside the
/// frame is in neither.
#[inline(always)]
pub fn measure(frame: &impl Bytes, all: u32) -> Option<(u32, u64)> {
    let mut link = ETHERNET;
    let mut kind = kind(frame, link)?;
    if kind == VLAN || kind == SERVICE_VLAN {
        link += TAG;
        kind = self::kind(frame, link)?;
    }
    if kind == VLAN {
        link += TAG;
        kind = self::kind(frame, link)?;
    }
    if kind != IPV4 && kind != IPV6 {
        return None;
    }
    let length = all.saturating_sub(link);
    if all > SHORTEST {
        return Some((link, u64::from(length)));
    }
    // What fills a short frame up is cut off before a socket sees the packet (`ip_rcv_core`, `ip6_rcv_core`).
    let mut told = [0u16; 2];
    let said = if kind == IPV4 {
        if frame.load(link, &mut told) { u32::from(u16::from_be(told[1])) } else { length }
    } else if frame.load(link + 4, &mut told) {
        u32::from(u16::from_be(told[0])) + 40
    } else {
        length
    };
    Some((link, u64::from(if said < length { said } else { length })))
}

/// The type that stands at the end of a link header of this length.
#[inline(always)]
fn kind(frame: &impl Bytes, link: u32) -> Option<u16> {
    let mut pair = [0u16; 2];
    // The type and the two bytes before it: those are there in any case.
    frame.load(link - 4, &mut pair).then(|| u16::from_be(pair[1]))
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use crate::packet::measure_frame;

    /// A frame of these types, one behind another, and so many bytes behind them.
    fn frame(kinds: &[u16], behind: &[u8]) -> Vec<u8> {
        let mut frame = std::vec![0; 12];
        for (at, kind) in kinds.iter().enumerate() {
            if at > 0 {
                // The tag's own number.
                frame.extend([0, 7]);
            }
            frame.extend(kind.to_be_bytes());
        }
        frame.extend(behind);
        frame
    }

    #[test]
    fn tags_are_part_of_the_link_header() {
        let packet = [0x45; 100];
        for (kinds, link) in [
            (&[0x0800][..], 14),
            (&[0x86dd], 14),
            (&[0x8100, 0x0800], 18),
            (&[0x88a8, 0x8100, 0x86dd], 22),
            (&[0x8100, 0x8100, 0x0800], 22),
        ] {
            assert_eq!(measure_frame(&frame(kinds, &packet)), Some((link, 100)), "{kinds:x?}");
        }
    }

    #[test]
    fn other_frames_are_no_packets() {
        // ARP, one tag too many, and a service tag behind another one.
        for kinds in [&[0x0806][..], &[0x8100, 0x8100, 0x8100, 0x0800], &[0x8100, 0x88a8, 0x0800], &[0x8100]] {
            assert_eq!(measure_frame(&frame(kinds, &[0; 100])), None, "{kinds:x?}");
        }
        for length in 0..14 {
            assert_eq!(measure_frame(&frame(&[0x0800], &[])[..length]), None);
        }
    }

    #[test]
    fn filling_is_not_counted() {
        let mut packet = [0; 46];
        packet[2..4].copy_from_slice(&29u16.to_be_bytes());
        assert_eq!(measure_frame(&frame(&[0x0800], &packet)), Some((14, 29)));
        packet[4..6].copy_from_slice(&3u16.to_be_bytes());
        assert_eq!(measure_frame(&frame(&[0x86dd], &packet)), Some((14, 43)));
        // A header that tells more than there is, and one that is not there.
        packet[2..4].copy_from_slice(&u16::MAX.to_be_bytes());
        assert_eq!(measure_frame(&frame(&[0x0800], &packet)), Some((14, 46)));
        assert_eq!(measure_frame(&frame(&[0x0800], &[0x45, 0])), Some((14, 2)));
    }
}
