//! Any bytes as a packet and as a frame, read as the kernel programs read them, and by another parser.
#![no_main]

use etherparse::{
    EtherType, Ethernet2HeaderSlice, IpAuthHeaderSlice, IpNumber, Ipv4HeaderSlice, Ipv6FragmentHeaderSlice,
    Ipv6HeaderSlice, Ipv6RawExtHeaderSlice, SingleVlanHeaderSlice, TcpHeaderSlice, UdpHeaderSlice,
};
use libfuzzer_sys::fuzz_target;
use observer_common::packet::{Packet, SCTP, TCP, UDP, UDPLITE, measure_frame, parse, payload_of};

const IPV6_HEADER: usize = 40;
/// How many the kernel programs walk over.
const EXTENSION_HEADERS: usize = 3;

fuzz_target!(|bytes: &[u8]| {
    as_a_frame(bytes);
    let sent = same_however_it_is_read(bytes, true);
    let received = same_however_it_is_read(bytes, false);
    assert_eq!(sent, received.map(mirrored));
    if let Some(packet) = sent {
        // It must not panic.
        let offset = payload_of(bytes, &packet).map(|(offset, _)| offset);
        if let Some(other) = Other::read(bytes) {
            other.compare(&packet, offset);
        }
    } else {
        let version = bytes.first().map(|first| first >> 4);
        let whole = match version {
            Some(4) => bytes.len() >= 20,
            Some(6) => bytes.len() >= 40,
            _ => false,
        };
        assert!(!whole, "an IP header is there");
    }
});

/// The link header ends where the other parser says, and the packet behind it is not longer than what is there.
fn as_a_frame(bytes: &[u8]) {
    let found = measure_frame(bytes);
    assert_eq!(found.map(|(link, _)| link as usize), end_of_link_header(bytes));
    if let Some((link, length)) = found {
        let there = (bytes.len() - link as usize) as u64;
        assert!(length <= there, "{length} bytes of {there}");
        // Only a short frame can have been filled up.
        assert!(length == there || bytes.len() <= 64, "{length} bytes of {there} in a long frame");
    }
}

/// `None` for a frame that has no IP packet, or more tags than a service's and a customer's.
fn end_of_link_header(bytes: &[u8]) -> Option<usize> {
    let ethernet = Ethernet2HeaderSlice::from_slice(bytes).ok()?;
    let (mut kind, mut end) = (ethernet.ether_type(), ethernet.slice().len());
    for tags in [&[EtherType::VLAN_TAGGED_FRAME, EtherType::PROVIDER_BRIDGING][..], &[EtherType::VLAN_TAGGED_FRAME]] {
        if tags.contains(&kind) {
            let tag = SingleVlanHeaderSlice::from_slice(&bytes[end..]).ok()?;
            (kind, end) = (tag.ether_type(), end + tag.slice().len());
        }
    }
    [EtherType::IPV4, EtherType::IPV6].contains(&kind).then_some(end)
}

/// In place where that can be done, and by copies.
fn same_however_it_is_read(bytes: &[u8], egress: bool) -> Option<Packet> {
    let copied = parse(bytes, 0, egress);
    for linear in (20..64).chain([bytes.len()]) {
        assert_eq!(parse(bytes, linear, egress), copied, "{linear} bytes in place");
    }
    copied
}

fn mirrored(packet: Packet) -> Packet {
    Packet {
        remote: packet.local,
        local: packet.remote,
        remote_port: packet.local_port,
        local_port: packet.remote_port,
        ..packet
    }
}

/// What the other parser says of a packet that is sent.
struct Other {
    source: [u8; 16],
    destination: [u8; 16],
    ipv6: bool,
    /// What comes behind the IP header and its extensions; `None` when they cannot be read, or are more than we walk over.
    upper: Option<Upper>,
}

struct Upper {
    protocol: u8,
    later_fragment: bool,
    ports: Option<(u16, u16)>,
    flags: u8,
    /// Where the payload begins, of UDP and TCP behind a plain IP header.
    payload: Option<usize>,
}

impl Other {
    /// `None` for what it does not take for IP.
    fn read(bytes: &[u8]) -> Option<Self> {
        match bytes.first()? >> 4 {
            4 => {
                let header = Ipv4HeaderSlice::from_slice(bytes).ok()?;
                let mapped = |address: std::net::Ipv4Addr| address.to_ipv6_mapped().octets();
                // Behind its header, whatever it says of its own length: the kernel has cut the packet to that before.
                let rest = &bytes[header.slice().len()..];
                let later = header.fragments_offset().value() != 0;
                let upper = Upper::read(header.protocol(), rest, later, Some(header.slice().len()));
                Some(Self {
                    source: mapped(header.source_addr()),
                    destination: mapped(header.destination_addr()),
                    ipv6: false,
                    upper: Some(upper),
                })
            }
            6 => {
                let header = Ipv6HeaderSlice::from_slice(bytes).ok()?;
                Some(Self {
                    source: header.source(),
                    destination: header.destination(),
                    ipv6: true,
                    upper: Upper::behind_extensions(header.next_header(), &bytes[IPV6_HEADER..]),
                })
            }
            _ => None,
        }
    }

    fn compare(&self, packet: &Packet, payload: Option<u32>) {
        let octets = |address: [u32; 4]| -> Vec<u8> { address.iter().flat_map(|word| word.to_ne_bytes()).collect() };
        assert_eq!(octets(packet.local), self.source);
        assert_eq!(octets(packet.remote), self.destination);
        assert_eq!(packet.is_ipv6(), self.ipv6);
        let Some(upper) = &self.upper else { return };
        assert_eq!(packet.protocol, upper.protocol);
        if upper.later_fragment {
            assert_eq!((packet.local_port, packet.remote_port, packet.tcp_flags), (0, 0, 0));
            return;
        }
        if let Some(ports) = upper.ports {
            assert_eq!((packet.local_port, packet.remote_port), ports);
            assert_eq!(packet.tcp_flags, upper.flags);
        }
        if let Some(offset) = upper.payload {
            assert_eq!(payload.map(|offset| offset as usize), Some(offset));
        }
    }
}

impl Upper {
    /// Walks over IPv6 extension headers, as many as the kernel programs do, each read by the other parser.
    ///
    /// Not by its own iterator, which reads beyond the end where a hop-by-hop header is not the first.
    fn behind_extensions(first: IpNumber, mut rest: &[u8]) -> Option<Self> {
        let mut next = first;
        for walked in 0..=EXTENSION_HEADERS {
            let (following, length) = match next {
                _ if walked == EXTENSION_HEADERS => break,
                IpNumber::IPV6_HEADER_HOP_BY_HOP | IpNumber::IPV6_ROUTE_HEADER | IpNumber::IPV6_DESTINATION_OPTIONS => {
                    let header = Ipv6RawExtHeaderSlice::from_slice(rest).ok()?;
                    (header.next_header(), header.slice().len())
                }
                IpNumber::AUTHENTICATION_HEADER => {
                    let header = IpAuthHeaderSlice::from_slice(rest).ok()?;
                    (header.next_header(), header.slice().len())
                }
                IpNumber::IPV6_FRAGMENTATION_HEADER => {
                    let header = Ipv6FragmentHeaderSlice::from_slice(rest).ok()?;
                    if header.fragment_offset().value() != 0 {
                        return Some(Self::read(header.next_header(), &[], true, None));
                    }
                    (header.next_header(), header.slice().len())
                }
                _ => return Some(Self::read(next, rest, false, (walked == 0).then_some(IPV6_HEADER))),
            };
            (next, rest) = (following, &rest[length..]);
        }
        // Behind the last of them there must be something else.
        (!next.is_ipv6_ext_header_value()).then(|| Self::read(next, rest, false, None))
    }

    fn read(protocol: IpNumber, rest: &[u8], later_fragment: bool, plain: Option<usize>) -> Self {
        let mut upper = Self { protocol: protocol.0, later_fragment, ports: None, flags: 0, payload: None };
        match protocol.0 {
            TCP => {
                if let Ok(header) = TcpHeaderSlice::from_slice(rest) {
                    upper.ports = Some((header.source_port(), header.destination_port()));
                    upper.flags = header.slice()[13];
                    upper.payload = plain.map(|at| at + header.slice().len());
                }
            }
            UDP | UDPLITE => {
                if let Ok(header) = UdpHeaderSlice::from_slice(rest) {
                    upper.ports = Some((header.source_port(), header.destination_port()));
                    upper.payload = plain.map(|at| at + 8);
                }
            }
            SCTP => {
                // It has no parser for this one: the ports stand where those of UDP do (RFC 9260, section 3).
                if let Ok(header) = UdpHeaderSlice::from_slice(rest) {
                    upper.ports = Some((header.source_port(), header.destination_port()));
                }
            }
            _ => upper.ports = Some((0, 0)),
        }
        upper
    }
}
