//! Atomic exchange.

/// Puts `new` where `old` is, and tells what was there. Kernels from 5.12 on have it (`BPF_CMPXCHG`); it orders what comes
/// before and after it.
///
/// # Safety
///
/// `at` points to a live, aligned `u64` of a map value.
#[inline(always)]
pub unsafe fn compare_exchange(at: *mut u64, old: u64, new: u64) -> u64 {
    // Written out, because Rust's core has no read-modify-write for this target.
    #[cfg(target_arch = "bpf")]
    {
        let there: u64;
        // SAFETY: the caller's promise.
        unsafe {
            core::arch::asm!(
                "r0 = cmpxchg_64({at} + 0, r0, {new})",
                at = in(reg) at,
                new = in(reg) new,
                inout("r0") old => there,
            );
        }
        there
    }
    // Not the kernel: an editor or a check on the host.
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: the caller's promise.
    unsafe {
        let there = *at;
        if there == old {
            *at = new;
        }
        there
    }
}
