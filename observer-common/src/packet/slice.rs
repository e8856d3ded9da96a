//! The same code over a slice of bytes: for tests and for the fuzzer.

use core::mem::MaybeUninit;

use super::{Bytes, InPlace, Packet, Plain, copied, direct, frame, payload};
use crate::dns::Head;

#[derive(Clone, Copy)]
struct Slice<'a>(&'a [u8]);

impl<'a> Slice<'a> {
    /// So many bytes at an offset, if they are there.
    fn at(self, offset: usize, length: usize) -> Option<&'a [u8]> {
        self.0.get(offset..)?.get(..length)
    }

    /// Panics where the kernel's verifier would refuse the program: what was not asked for is read.
    fn array<const OFFSET: usize, const N: usize>(self) -> [u8; N] {
        let bytes = self.at(OFFSET, N).and_then(|bytes| bytes.try_into().ok());
        bytes.unwrap_or_else(|| panic!("{N} bytes at {OFFSET} of {}", self.0.len()))
    }
}

impl Bytes for Slice<'_> {
    fn load<T: Plain>(&self, offset: u32, into: &mut T) -> bool {
        let Some(bytes) = self.at(offset as usize, size_of::<T>()) else { return false };
        // SAFETY: any bytes are a `Plain`, there are as many as it has, and they need not be aligned.
        *into = unsafe { bytes.as_ptr().cast::<T>().read_unaligned() };
        true
    }
}

impl InPlace for Slice<'_> {
    fn reaches(self, length: usize) -> bool {
        length <= self.0.len()
    }

    unsafe fn byte<const OFFSET: usize>(self) -> u8 {
        u8::from_ne_bytes(self.array::<OFFSET, 1>())
    }

    unsafe fn half<const OFFSET: usize>(self) -> u16 {
        u16::from_ne_bytes(self.array::<OFFSET, 2>())
    }

    unsafe fn word<const OFFSET: usize>(self) -> u32 {
        u32::from_ne_bytes(self.array::<OFFSET, 4>())
    }
}

/// Reads the link header of a frame as the kernel programs do ([`frame::measure`]).
#[must_use]
pub fn measure_frame(bytes: &[u8]) -> Option<(u32, u64)> {
    frame::measure(&Slice(bytes), u32::try_from(bytes.len()).ok()?)
}

/// Reads the headers of a packet as the kernel programs do: in place when they are common and among the first `linear`
/// bytes, by copies otherwise. `None` when there is no IP header.
#[must_use]
pub fn parse(bytes: &[u8], linear: usize, egress: bool) -> Option<Packet> {
    let in_place = Slice(bytes.get(..linear).unwrap_or(bytes));
    let read = |fill: u8| {
        let mut packet = MaybeUninit::<Packet>::uninit();
        let pointer = packet.as_mut_ptr();
        // SAFETY: there is room for one packet, and any bytes are one: it is made of integers.
        unsafe {
            pointer.write_bytes(fill, 1);
            let complete = direct(in_place, egress, pointer) || copied(&Slice(bytes), egress, pointer);
            complete.then(|| packet.assume_init())
        }
    };
    let packet = read(0);
    assert_eq!(packet, read(0xff), "a part of the packet was not written");
    packet
}

/// Where the payload begins of a packet that [`parse`] has read, and what its TCP header says.
#[must_use]
pub fn payload_of(bytes: &[u8], packet: &Packet) -> Option<(u32, Head)> {
    let mut head = Head::default();
    payload(&Slice(bytes), packet, &mut head).map(|offset| (offset, head))
}
