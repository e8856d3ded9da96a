//! The ranges that nodes give addresses to their pods from. Pure.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::hash::FastSet;

/// Bits of an IPv6 address before an IPv4 one in it.
const MAPPED: u8 = 96;

/// Ranges of addresses that are pods' (`spec.podCIDRs` of the nodes): one that nobody is known to have may be that of a pod
/// of which the cluster has not told yet, since a kubelet says a pod's address a moment after its first packets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodRanges {
    /// Prefixes by their length in bits, of which a cluster has one or two. IPv4 as IPv6.
    by_length: Vec<(u8, FastSet<u128>)>,
}

impl PodRanges {
    /// All of these.
    pub fn of(ranges: impl IntoIterator<Item = IpNet>) -> Self {
        let mut all = Self::default();
        for range in ranges {
            let (length, prefix) = match range {
                IpNet::V4(range) => (MAPPED + range.prefix_len(), number(range.network().into())),
                IpNet::V6(range) => (range.prefix_len(), number(range.network().into())),
            };
            match all.by_length.iter_mut().find(|(known, _)| *known == length) {
                Some((_, prefixes)) => drop(prefixes.insert(prefix)),
                None => all.by_length.push((length, FastSet::from_iter([prefix]))),
            }
        }
        all
    }

    /// Whether an address is in one of them.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let number = number(address);
        let prefix = |length: u8| number & u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
        self.by_length.iter().any(|(length, prefixes)| prefixes.contains(&prefix(*length)))
    }
}

/// The address that a node keeps for itself of a range for its pods: the first one, which the plugins that assign addresses
/// never give to a pod, and which flannel's tunnel has (`backend/vxlan/vxlan.go` of flannel). `None` of a range of one or two.
#[must_use]
pub fn own_address(range: &IpNet) -> Option<IpAddr> {
    (range.max_prefix_len() - range.prefix_len() >= 2).then(|| range.network())
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ranges(all: &[&str]) -> PodRanges {
        PodRanges::of(all.iter().map(|range| range.parse().unwrap()))
    }

    #[test]
    fn an_address_is_in_a_range_or_not() {
        let ranges = ranges(&["10.244.1.0/24", "10.244.3.0/24", "fd00:1::/64", "192.168.7.9/32"]);
        for (address, inside) in [
            ("10.244.1.0", true),
            ("10.244.1.255", true),
            ("10.244.2.1", false),
            ("10.244.3.7", true),
            ("::ffff:10.244.3.7", true),
            ("fd00:1::7", true),
            ("fd00:1:0:1::7", false),
            ("192.168.7.9", true),
            ("192.168.7.8", false),
        ] {
            assert_eq!(ranges.contains(address.parse().unwrap()), inside, "{address}");
        }
        assert!(!PodRanges::default().contains([10, 0, 0, 1].into()));
        assert!(self::ranges(&["::/0"]).contains([10, 0, 0, 1].into()));
    }

    #[test]
    fn the_first_address_is_the_nodes() {
        let own = |range: &str| own_address(&range.parse().unwrap()).map(|address| address.to_string());
        assert_eq!(own("10.244.1.7/24").as_deref(), Some("10.244.1.0"));
        assert_eq!(own("fd00:1::/64").as_deref(), Some("fd00:1::"));
        assert_eq!([own("10.0.0.1/32"), own("10.0.0.0/31"), own("fd00::/128")], [None, None, None]);
    }

    proptest! {
        #[test]
        fn it_says_what_each_range_says(
            ranges in proptest::collection::vec((0..64u32, 24..=32u8), 0..6),
            address in 0..64u32,
        ) {
            let net = |(at, length): (u32, u8)| -> IpNet { format!("10.0.0.{at}/{length}").parse().unwrap() };
            let address = IpAddr::from((10u32 << 24 | address).to_be_bytes());
            let each: Vec<IpNet> = ranges.into_iter().map(net).collect();
            let any = each.iter().any(|range| range.contains(&address));
            prop_assert_eq!(PodRanges::of(each).contains(address), any);
        }
    }
}
