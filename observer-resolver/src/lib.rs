//! What agents and the resolver say to each other. `proto/resolver.proto` says what each message means; here are its bounds,
//! which both sides keep.

use std::net::IpAddr;

/// Messages, client and server of `observer.resolver.v1`.
#[allow(missing_docs, clippy::all, unused_qualifications, reason = "generated; the definition has the comments")]
#[allow(
    clippy::cast_lossless,
    clippy::needless_pass_by_value,
    clippy::semicolon_if_nothing_returned,
    reason = "generated"
)]
pub mod v1 {
    tonic::include_proto!("observer.resolver.v1");
}

pub use prost;
pub use tonic;

/// The addresses that an agent may be subscribed to at one time. One that wants more is cut off.
pub const MAX_ADDRESSES: usize = 65_536;
/// The addresses in one request, and the answers in one response.
pub const MAX_BATCH: usize = 1_000;
/// The longest message. A thousand answers with four names of 253 bytes fit.
pub const MAX_MESSAGE: usize = 2 << 20;
/// The longest name in an answer, as for a label's value.
pub const MAX_NAME: usize = 253;

/// An address as it is in a message: 16 bytes, IPv4 mapped into IPv6 (RFC 4291, 2.5.5.2).
#[must_use]
pub fn packed(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// The address in these bytes; `None` when they are not 16.
#[must_use]
pub fn address(bytes: &[u8]) -> Option<IpAddr> {
    Some(IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?).to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_come_back() {
        for text in ["10.0.0.1", "fd00::1", "::"] {
            let there: IpAddr = text.parse().unwrap();
            let bytes = packed(there);
            assert_eq!((bytes.len(), address(&bytes)), (16, Some(there)));
        }
        let both = ["::ffff:10.0.0.1", "10.0.0.1"].map(|text| packed(text.parse().unwrap()));
        assert_eq!(both[0], both[1]);
        assert_eq!(address(&[10, 0, 0, 1]), None);
        assert_eq!(address(&[0; 17]), None);
    }
}
