//! Values that the verifier forgets.
//!
//! The verifier walks every path, and it may stop at a point only when it has been there with the same knowledge. What
//! a branch taught it (this is TCP, that was null) stays in registers and on the stack and keeps paths apart long after
//! anybody cares: a handful of flags makes hundreds of thousands of steps. Mixing in a zero that it cannot know to be
//! zero makes it forget, and the paths meet again.

use core::ptr::{read_volatile, write_volatile};

/// Always 0. In a map that can be written, so that the verifier takes a load from it for anything.
#[unsafe(no_mangle)]
static mut OPAQUE_ZERO: u64 = 0;

/// The zero.
#[inline(always)]
pub fn zero() -> u64 {
    // SAFETY: nobody ever writes it.
    unsafe { read_volatile(&raw const OPAQUE_ZERO) }
}

/// Makes the verifier forget what it knows of a value.
///
/// # Safety
///
/// `T` is made of integers without padding, its size and alignment are multiples of 8, and the value is initialised.
#[inline(always)]
pub unsafe fn forget<T>(value: *mut T) {
    let zero = zero();
    let words = value.cast::<u64>();
    for at in 0..size_of::<T>() / 8 {
        // SAFETY: in bounds and aligned by the caller's promise.
        unsafe { write_volatile(words.add(at), read_volatile(words.add(at)) ^ zero) };
    }
}
