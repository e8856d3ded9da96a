// Adding to what others add to at the same time.

/// Adds to a counter that other contexts may add to at the same time.
///
/// # Safety
///
/// `counter` points to a live, aligned `u64` of a map value.
#[inline(always)]
pub unsafe fn add(counter: *mut u64, value: u64) {
    // Written out, because Rust's core has no read-modify-write for this target. This is BPF's plain atomic add, which
    // every kernel has; adds that return a value came with 5.12.
    #[cfg(target_arch = "bpf")]
    // SAFETY: the caller's promise.
    unsafe {
        core::arch::asm!("lock *(u64 *)({counter} + 0) += {value}", counter = in(reg) counter, value = in(reg) value);
    }
    // Not the kernel: an editor or a check on the host.
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: the caller's promise.
    unsafe {
        *counter += value;
    }
}
