//! DNS: what the kernel programs hand over of packets to and from a resolver, and the names that outlive the agent.

/// Names of the maps.
pub mod maps {
    /// Ring buffer of [`super::Record`]s.
    pub const RECORDS: &str = "DNS_RECORDS";
    /// Packets that could not be handed over, by [`super::lost_index`].
    pub const LOST: &str = "DNS_LOST";
    /// [`super::PeerKey`] to [`super::PeerName`]: the names that series carry. Written by the agent alone.
    pub const PEER_NAMES: &str = "PEER_NAMES";
    /// Cgroup id to [`super::ClientRecord`]: what answers were counted. Written by the agent alone.
    pub const CLIENTS: &str = "DNS_CLIENTS";
}

/// Names of the constants that the loader sets.
pub mod globals {
    /// The resolvers' ports, packed by [`super::pack_ports`] (`u64`); 0: nothing is handed over.
    pub const DNS_PORTS: &str = "DNS_PORTS";
}

/// Ports that can be looked at.
pub const MAX_PORTS: usize = 4;
/// Bytes of the ring buffer.
pub const RING_BYTES: u32 = 1 << 20;
/// Bytes that wait before the reader is woken; what is less waits for its next tick.
pub const WAKE_BYTES: u64 = RING_BYTES as u64 / 4;
/// Payload of a short record: a header and a question, and most answers.
pub const SMALL: usize = 256;
/// Payload of a long record: what fits a packet on Ethernet.
pub const LARGE: usize = 1472;
/// Names that can be kept.
pub const MAX_PEER_NAMES: u32 = 16_384;

/// Cgroups whose counts can be kept.
pub const MAX_CLIENTS: u32 = 8_192;

/// Packs ports, in host byte order, into the constant. Unused places repeat the first; no ports give 0. More than
/// [`MAX_PORTS`] are left out.
#[must_use]
pub fn pack_ports(ports: &[u16]) -> u64 {
    let first = ports.first().copied().unwrap_or(0);
    let port = |at: usize| ports.get(at).copied().unwrap_or(first);
    (0..MAX_PORTS).fold(0, |packed, at| packed | u64::from(port(at)) << (16 * at))
}

/// Whether `port` is one of the packed ones.
#[inline(always)]
#[must_use]
pub const fn has_port(packed: u64, port: u16) -> bool {
    // One branch in the place of four: the verifier walks each.
    const MASK: u64 = 0xffff;
    let port = port as u64;
    let product = ((packed ^ port) & MASK)
        * ((packed >> 16 ^ port) & MASK)
        * ((packed >> 32 ^ port) & MASK)
        * ((packed >> 48 ^ port) & MASK);
    packed != 0 && product == 0
}

/// Bits of [`Head::flags`]. The lower three are those of TCP (RFC 9293, section 3.1).
pub mod flags {
    /// The other side has ended its stream.
    pub const FIN: u8 = 0x01;
    /// A stream begins.
    pub const SYN: u8 = 0x02;
    /// The connection is given up.
    pub const RST: u8 = 0x04;
    /// The container sent the packet.
    pub const EGRESS: u8 = 0x80;
}

/// What is known of a packet whose other side is a resolver's port.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// Cgroup v2 id of the observed socket's cgroup.
    pub cgroup: u64,
    /// When it passed, in nanoseconds of the monotonic clock (`bpf_ktime_get_ns`).
    pub at: u64,
    /// The resolver's address in network byte order, IPv4 as `::ffff:a.b.c.d`.
    pub remote: [u32; 4],
    /// TCP sequence number, in host byte order; 0 for UDP.
    pub sequence: u32,
    /// TCP acknowledgment number, in host byte order; 0 for UDP.
    pub acknowledgment: u32,
    /// Bytes of the packet's payload.
    pub length: u32,
    /// Bytes of it that the record has.
    pub captured: u16,
    /// The resolver's port in host byte order.
    pub remote_port: u16,
    /// The container's port in host byte order.
    pub local_port: u16,
    /// The IP protocol number.
    pub protocol: u8,
    /// See [`flags`].
    pub flags: u8,
    /// Always 0: makes the size a multiple of 8 without hidden padding.
    pub zero: u32,
}

/// A packet as it is handed over. Of the payload the first [`Head::captured`] bytes are written, the rest is what was
/// there before.
#[repr(C)]
pub struct Record<const N: usize> {
    /// What is known of it.
    pub head: Head,
    /// What came after the UDP or TCP header.
    pub payload: [u8; N],
}

/// Why a packet could not be handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Lost {
    /// The ring buffer was full.
    Full = 0,
    /// Its headers could not be read.
    Unreadable = 1,
}

/// Entries of the map of losses: each reason for each direction.
pub const LOST_KINDS: u32 = 4;

/// The index of a loss counter.
#[inline(always)]
#[must_use]
pub const fn lost_index(reason: Lost, egress: bool) -> u32 {
    reason as u32 * 2 + egress as u32
}

/// Whose peer has a name: a container's cgroup and an address, as in [`crate::edge::EdgeKey`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PeerKey {
    /// Cgroup v2 id.
    pub cgroup: u64,
    /// The peer's address.
    pub peer: [u32; 4],
}

/// The longest name in text form, without the trailing dot (RFC 1035, section 2.3.4).
pub const NAME_LEN: usize = 253;

/// A name, up to the first zero byte. Empty: it was decided that the peer has none.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerName(pub [u8; 256]);

/// Types of questions in a [`ClientRecord`].
pub const QTYPES: usize = 13;
/// Outcomes in a [`ClientRecord`].
pub const RCODES: usize = 7;
/// Buckets in a [`ClientRecord`].
pub const BUCKETS: usize = 15;

/// What was counted of one cgroup's answers, for the next agent. The meaning and order of types, outcomes and buckets is the
/// agent's own affair; a change of it is a change of the ABI all the same.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientRecord {
    /// Answers by type and outcome.
    pub responses: [[u64; RCODES]; QTYPES],
    /// Those that were timed, by outcome and bucket.
    pub buckets: [[u64; BUCKETS]; RCODES],
    /// How long they took, by outcome, in nanoseconds.
    pub sums: [u64; RCODES],
    /// What came from a resolver and was no DNS message.
    pub malformed: u64,
}

const _: () = assert!(size_of::<ClientRecord>() == 8 * (QTYPES * RCODES + BUCKETS * RCODES + RCODES + 1));
const _: () = assert!(size_of::<Head>() == 56);
const _: () = assert!(size_of::<Record<SMALL>>() == 56 + SMALL && size_of::<Record<SMALL>>().is_multiple_of(8));
const _: () = assert!(size_of::<Record<LARGE>>() == 56 + LARGE && size_of::<Record<LARGE>>().is_multiple_of(8));
const _: () = assert!(size_of::<PeerKey>() == 24 && size_of::<PeerName>() > NAME_LEN);

#[cfg(feature = "user")]
mod user {
    // SAFETY: integers only, no padding (the size is the sum of the fields), every bit pattern is valid.
    unsafe impl aya::Pod for super::PeerKey {}
    // SAFETY: bytes only.
    unsafe impl aya::Pod for super::PeerName {}
    // SAFETY: integers of one size only, every bit pattern is valid.
    unsafe impl aya::Pod for super::ClientRecord {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_found_and_no_others() {
        assert_eq!(pack_ports(&[]), 0);
        for ports in [&[53][..], &[53, 5353], &[53, 1, 65_535, 8053]] {
            let packed = pack_ports(ports);
            let found = (0..=u16::MAX).filter(|port| has_port(packed, *port)).count();
            assert_eq!(found, ports.len(), "{ports:?}");
            assert!(ports.iter().all(|port| has_port(packed, *port)), "{ports:?}");
        }
        assert!((0..=u16::MAX).all(|port| !has_port(0, port)));
    }
}
