//! Packets made by a builder that knows nothing of the parser, and any bytes.

use std::path::{Path, PathBuf};
use std::vec::Vec;
use std::{fs, vec};

use proptest::collection;
use proptest::prelude::*;
use proptest::sample::select;

use super::{Packet, SCTP, TCP, UDP, UDPLITE, parse, payload_of};

const ICMP: u8 = 1;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION: u8 = 60;

/// What a packet should be.
#[derive(Clone, Debug)]
struct Made {
    source: Vec<u8>,
    destination: Vec<u8>,
    ports: [u16; 2],
    protocol: u8,
    flags: u8,
    /// Words of options behind the IPv4 header, and behind the TCP header.
    options: [u8; 2],
    /// IPv6 extension headers, other than for fragments: which, and a number that their length comes from.
    extensions: Vec<(u8, u8)>,
    /// Offset in units of 8 bytes, and whether more follow.
    fragment: Option<(u16, bool)>,
    payload: Vec<u8>,
}

impl Made {
    fn is_ipv6(&self) -> bool {
        self.source.len() == 16
    }

    /// From the transport header on.
    fn transport(&self) -> Vec<u8> {
        let ports: Vec<u8> = self.ports.iter().flat_map(|port| port.to_be_bytes()).collect();
        let header = match self.protocol {
            TCP => {
                let words = 5 + self.options[1];
                let fixed = [0, 0, 0, 7, 0, 0, 0, 9, words << 4, self.flags, 1, 2, 3, 4, 0, 0];
                [ports, fixed.to_vec(), vec![1; usize::from(self.options[1]) * 4]].concat()
            }
            UDP | UDPLITE => {
                let length = u16::try_from(8 + self.payload.len()).unwrap().to_be_bytes();
                [ports, length.to_vec(), vec![0xab, 0xcd]].concat()
            }
            SCTP => [ports, vec![0; 8]].concat(),
            // Echo request.
            _ => vec![8, 0, 0xab, 0xcd, 0, 1, 0, 2],
        };
        [header, self.payload.clone()].concat()
    }

    /// Extension headers with the protocol of the first; one for a fragment comes last.
    fn extended(&self) -> (u8, Vec<u8>) {
        let mut bytes = self.transport();
        let mut next = self.protocol;
        if let Some((offset, more)) = self.fragment {
            let [high, low] = (offset << 3 | u16::from(more)).to_be_bytes();
            bytes = [vec![next, 0, high, low, 0, 0, 0, 5], bytes].concat();
            next = FRAGMENT;
        }
        for (kind, length) in self.extensions.iter().rev() {
            // Units of 8 bytes beyond the first 8; for authentication of 4 bytes beyond the first 8.
            let unit = if *kind == AUTHENTICATION { 4 } else { 8 };
            let mut header = vec![0; 8 + usize::from(*length) * unit];
            (header[0], header[1]) = (next, *length);
            bytes = [header, bytes].concat();
            next = *kind;
        }
        (next, bytes)
    }

    fn bytes(&self) -> Vec<u8> {
        if self.is_ipv6() {
            let (next, rest) = self.extended();
            let [high, low] = u16::try_from(rest.len()).unwrap().to_be_bytes();
            [&[0x60, 1, 2, 3, high, low, next, 64][..], &self.source, &self.destination, &rest].concat()
        } else {
            let rest = [vec![1; usize::from(self.options[0]) * 4], self.transport()].concat();
            let [high, low] = u16::try_from(20 + rest.len()).unwrap().to_be_bytes();
            let (offset, more) = self.fragment.unwrap_or_default();
            let [first, second] = (offset | u16::from(more) << 13).to_be_bytes();
            let start = [0x45 + self.options[0], 0, high, low, 0, 1, first, second, 64, self.protocol, 0, 0];
            [&start[..], &self.source, &self.destination, &rest].concat()
        }
    }

    /// Where the transport header begins.
    fn network(&self) -> usize {
        self.bytes().len() - self.transport().len()
    }

    /// What the parser must say.
    fn expected(&self, egress: bool) -> Packet {
        let address = |bytes: &[u8]| {
            let mut whole = [0; 16];
            whole[16 - bytes.len()..].copy_from_slice(bytes);
            if bytes.len() == 4 {
                whole[10..12].fill(0xff);
            }
            let words: Vec<u32> =
                whole.chunks_exact(4).map(|word| u32::from_ne_bytes(word.try_into().unwrap())).collect();
            words.try_into().unwrap()
        };
        let later = self.fragment.is_some_and(|(offset, _)| offset != 0);
        let ports = if later || self.protocol == ICMP { [0, 0] } else { self.ports };
        let [source, destination] = [(&self.source, ports[0]), (&self.destination, ports[1])];
        let (local, remote) = if egress { (source, destination) } else { (destination, source) };
        Packet {
            remote: address(remote.0),
            local: address(local.0),
            remote_port: remote.1,
            local_port: local.1,
            protocol: self.protocol,
            tcp_flags: if later || self.protocol != TCP { 0 } else { self.flags },
            ipv6: self.is_ipv6().into(),
        }
    }
}

prop_compose! {
    fn made()(
        addresses in prop_oneof![collection::vec(any::<u8>(), 8), collection::vec(any::<u8>(), 32)],
        ports in any::<[u16; 2]>(),
        protocol in select(vec![TCP, UDP, UDPLITE, SCTP, ICMP]),
        flags in any::<u8>(),
        options in [0..=10u8, 0..=10u8],
        extensions in collection::vec((select(vec![HOP_BY_HOP, ROUTING, DESTINATION, AUTHENTICATION]), 0..4u8), 0..=3),
        fragment in proptest::option::of((prop_oneof![Just(0), 0..1u16 << 13], any::<bool>())),
        payload in collection::vec(any::<u8>(), 8..200),
    ) -> Made {
        let (source, destination) = addresses.split_at(addresses.len() / 2);
        let mut made = Made {
            source: source.to_vec(), destination: destination.to_vec(),
            ports, protocol, flags, options, extensions, fragment, payload,
        };
        // The parser walks over three headers in all.
        made.extensions.truncate(3 - usize::from(fragment.is_some()));
        made
    }
}

proptest! {
    /// However much of it can be read in place.
    #[test]
    fn packets_are_what_they_were_made_as(made in made(), egress in any::<bool>()) {
        let bytes = made.bytes();
        for linear in 0..=bytes.len() {
            prop_assert_eq!(parse(&bytes, linear, egress), Some(made.expected(egress)), "{} in place", linear);
        }
    }

    /// A packet that ends too early has no ports and no flags, or all of them.
    #[test]
    fn a_part_of_a_packet_has_less_of_it(made in made(), egress in any::<bool>()) {
        let (bytes, whole) = (made.bytes(), made.expected(egress));
        for length in 0..made.network() + 20 {
            let part = parse(&bytes[..length.min(bytes.len())], length, egress);
            let header = if made.is_ipv6() { 40 } else { 20 };
            prop_assert_eq!(part.is_some(), length >= header, "of {} bytes", length);
            let Some(part) = part else { continue };
            prop_assert_eq!((part.local, part.remote), (whole.local, whole.remote));
            let found = (part.local_port, part.remote_port, part.tcp_flags);
            let all = (whole.local_port, whole.remote_port, whole.tcp_flags);
            prop_assert!(found == all || found == (0, 0, 0), "{found:?} of {all:?} in {length} bytes");
        }
    }

    #[test]
    fn any_bytes_are_read_alike_in_place_and_by_copies(bytes in collection::vec(any::<u8>(), 0..100), first in 0x3f..0x70u8) {
        let mut bytes = bytes;
        if let Some(byte) = bytes.first_mut() {
            *byte = first;
        }
        for egress in [false, true] {
            let copied = parse(&bytes, 0, egress);
            for linear in 0..=bytes.len() {
                prop_assert_eq!(parse(&bytes, linear, egress), copied, "{} in place", linear);
            }
        }
    }

    /// Where a resolver's message begins, and what the agent needs to order the segments of a stream.
    #[test]
    fn payloads_begin_behind_the_headers(made in made()) {
        let bytes = made.bytes();
        let packet = parse(&bytes, 0, true).unwrap();
        let found = payload_of(&bytes, &packet);
        let plain = !made.is_ipv6() || (made.extensions.is_empty() && made.fragment.is_none());
        if !plain || !matches!(made.protocol, TCP | UDP | UDPLITE) {
            prop_assert_eq!(found, None);
        } else {
            let (offset, head) = found.unwrap();
            prop_assert_eq!(&bytes[offset as usize..], &made.payload[..]);
            let numbers = if made.protocol == TCP { (7, 9, made.flags & 0x07) } else { (0, 0, 0) };
            prop_assert_eq!((head.sequence, head.acknowledgment, head.flags), numbers);
        }
    }
}

fn packet(ipv6: bool, protocol: u8) -> Made {
    let address = |last| {
        if ipv6 { [&[0xfd, 0, 0, 0x88][..], &[0; 11], &[last]].concat() } else { vec![10, 88, 0, last] }
    };
    Made {
        source: address(2),
        destination: address(3),
        ports: [40_000, 53],
        protocol,
        flags: 0x18,
        options: [0, 3],
        extensions: Vec::new(),
        fragment: None,
        payload: (0..32).collect(),
    }
}

/// What the fuzzer begins with.
fn corpus() -> Vec<(&'static str, Vec<u8>)> {
    let v6 = |extensions: &[(u8, u8)], protocol| Made { extensions: extensions.to_vec(), ..packet(true, protocol) };
    let all = [
        ("tcp4", packet(false, TCP)),
        ("tcp6", packet(true, TCP)),
        ("tcp4_syn", Made { flags: 0x02, options: [0, 5], payload: Vec::new(), ..packet(false, TCP) }),
        ("tcp4_options", Made { options: [10, 10], ..packet(false, TCP) }),
        ("udp4", packet(false, UDP)),
        ("udp6", packet(true, UDP)),
        ("udplite4", packet(false, UDPLITE)),
        ("sctp6", packet(true, SCTP)),
        ("icmp4", packet(false, ICMP)),
        ("udp4_first_fragment", Made { fragment: Some((0, true)), ..packet(false, UDP) }),
        ("udp4_later_fragment", Made { fragment: Some((185, false)), ..packet(false, UDP) }),
        ("udp6_first_fragment", Made { fragment: Some((0, true)), ..packet(true, UDP) }),
        ("udp6_later_fragment", Made { fragment: Some((185, false)), ..packet(true, UDP) }),
        ("tcp6_hop_by_hop", v6(&[(HOP_BY_HOP, 0)], TCP)),
        ("tcp6_three_extensions", v6(&[(HOP_BY_HOP, 0), (ROUTING, 2), (DESTINATION, 1)], TCP)),
        ("udp6_authentication", v6(&[(AUTHENTICATION, 4)], UDP)),
        ("udp6_four_extensions", v6(&[(HOP_BY_HOP, 0), (DESTINATION, 0), (ROUTING, 0), (DESTINATION, 0)], UDP)),
    ];
    let truncated = |name, made: &Made, length| (name, made.bytes()[..length].to_vec());
    let short = [
        truncated("tcp4_no_flags", &packet(false, TCP), 32),
        truncated("udp4_no_ports", &packet(false, UDP), 22),
        truncated("udp6_no_ports", &packet(true, UDP), 42),
    ];
    all.iter().map(|(name, made)| (*name, made.bytes())).chain(short).collect()
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/packet")
}

#[test]
fn the_fuzzer_begins_with_these_packets() {
    for (name, bytes) in corpus() {
        let path = directory().join(name);
        let found = fs::read(&path).unwrap_or_default();
        assert!(found == bytes, "{} is another packet; write it anew with `-- --ignored write_corpus`", path.display());
    }
}

#[test]
#[ignore = "writes fuzz/corpus/packet"]
fn write_corpus() {
    fs::create_dir_all(directory()).unwrap();
    for (name, bytes) in corpus() {
        fs::write(directory().join(name), bytes).unwrap();
    }
}
