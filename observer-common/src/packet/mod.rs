//! The headers of a packet, as far as an edge needs them: from bytes at offsets to addresses, ports and flags.
//!
//! The kernel programs read a packet in two ways: in place where its headers are the common ones ([`direct`]), by copies
//! otherwise ([`copied`]). Both are written for any reader of bytes, so that the same code reads slices in tests and under
//! the fuzzer.

mod copied;
mod direct;
pub mod frame;
mod payload;
#[cfg(any(test, feature = "user"))]
mod slice;
#[cfg(test)]
mod tests;

pub use copied::copied;
pub use direct::direct;
pub use payload::payload;
#[cfg(any(test, feature = "user"))]
pub use slice::{measure_frame, parse, payload_of};

/// Protocol number of TCP.
pub const TCP: u8 = 6;
/// Protocol number of UDP.
pub const UDP: u8 = 17;
/// Protocol number of UDP-Lite.
pub const UDPLITE: u8 = 136;
/// Protocol number of SCTP.
pub const SCTP: u8 = 132;

/// TCP flags (RFC 9293, section 3.1).
pub mod tcp {
    /// Synchronize: a connection begins.
    pub const SYN: u8 = 0x02;
    /// Reset.
    pub const RST: u8 = 0x04;
    /// The acknowledgment field counts.
    pub const ACK: u8 = 0x10;
}

/// Addresses and ports, seen from the socket in hand. Integers alone, a multiple of 8 bytes, so that the kernel programs
/// can make the verifier forget what it knows of them.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// The other side's address in network byte order, IPv4 as `::ffff:a.b.c.d`.
    pub remote: [u32; 4],
    /// This side's address.
    pub local: [u32; 4],
    /// The other side's port in host byte order, or 0.
    pub remote_port: u16,
    /// This side's port in host byte order, or 0.
    pub local_port: u16,
    /// The IP protocol number.
    pub protocol: u8,
    /// TCP flags, or 0.
    pub tcp_flags: u8,
    /// 1 for IPv6, 0 for IPv4.
    pub ipv6: u16,
}

const _: () = assert!(size_of::<Packet>() == 40);

impl Packet {
    /// The protocol, read anew: a branch on it teaches the verifier nothing about the next one.
    #[inline(always)]
    #[must_use]
    pub fn protocol(&self) -> u8 {
        // SAFETY: a reference can be read.
        unsafe { core::ptr::read_volatile(&raw const self.protocol) }
    }

    /// The other side's port, as [`Packet::protocol`].
    #[inline(always)]
    #[must_use]
    pub fn remote_port(&self) -> u16 {
        // SAFETY: as above.
        unsafe { core::ptr::read_volatile(&raw const self.remote_port) }
    }

    /// The TCP flags, as [`Packet::protocol`].
    #[inline(always)]
    #[must_use]
    pub fn tcp_flags(&self) -> u8 {
        // SAFETY: as above.
        unsafe { core::ptr::read_volatile(&raw const self.tcp_flags) }
    }

    /// Whether it is IPv6, as [`Packet::protocol`].
    #[inline(always)]
    #[must_use]
    pub fn is_ipv6(&self) -> bool {
        // SAFETY: as above.
        unsafe { core::ptr::read_volatile(&raw const self.ipv6) != 0 }
    }

    /// TCP.
    #[inline(always)]
    #[must_use]
    pub fn is_tcp(&self) -> bool {
        self.protocol() == TCP
    }

    /// UDP or UDP-Lite.
    #[inline(always)]
    #[must_use]
    pub fn is_udp(&self) -> bool {
        let protocol = self.protocol();
        protocol == UDP || protocol == UDPLITE
    }
}

/// What bytes can be copied into.
///
/// # Safety
///
/// The type is made of integers without padding: any bytes are a value of it.
pub unsafe trait Plain: Copy {}

// SAFETY: integers.
unsafe impl Plain for u8 {}
// SAFETY: integers.
unsafe impl Plain for [u8; 4] {}
// SAFETY: integers.
unsafe impl Plain for [u16; 2] {}

/// A packet, from its IP header on, whose bytes are copied out.
pub trait Bytes {
    /// Copies what is at an offset. False, and `into` is as it was, when the packet ends before.
    fn load<T: Plain>(&self, offset: u32, into: &mut T) -> bool;
}

/// The beginning of a packet, from its IP header on, that can be read where it is.
pub trait InPlace: Copy {
    /// Whether it has so many bytes.
    fn reaches(self, length: usize) -> bool;

    /// The byte at an offset.
    ///
    /// # Safety
    ///
    /// [`InPlace::reaches`] was asked, and it does.
    unsafe fn byte<const OFFSET: usize>(self) -> u8;

    /// The half word at an offset, in network byte order. It need not be aligned.
    ///
    /// # Safety
    ///
    /// As for [`InPlace::byte`].
    unsafe fn half<const OFFSET: usize>(self) -> u16;

    /// The word at an offset, in network byte order. It need not be aligned.
    ///
    /// # Safety
    ///
    /// As for [`InPlace::byte`].
    unsafe fn word<const OFFSET: usize>(self) -> u32;
}

/// Ports of TCP, UDP and SCTP, and the bytes of a TCP header up to its window.
#[repr(C)]
#[derive(Clone, Copy)]
struct TcpStart {
    source: u16,
    destination: u16,
    /// In network byte order.
    sequence: u32,
    /// In network byte order.
    acknowledgment: u32,
    /// The header's length in words, in the upper four bits.
    offset: u8,
    /// See [`tcp`].
    flags: u8,
    window: u16,
}

const _: () = assert!(size_of::<TcpStart>() == 16);

// SAFETY: integers; the size is the sum of the fields.
unsafe impl Plain for TcpStart {}

impl TcpStart {
    /// Nothing read yet.
    const EMPTY: Self =
        Self { source: 0, destination: 0, sequence: 0, acknowledgment: 0, offset: 0, flags: 0, window: 0 };
}
