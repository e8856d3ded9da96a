//! What the kernel tells of a program by its descriptor: `/proc/self/fdinfo/<fd>` (`bpf_prog_show_fdinfo` in
//! kernel/bpf/syscall.c).

use std::{fs, io, os::fd::AsRawFd};

/// A number that the kernel tells of a descriptor; `None` when this kernel does not tell it.
///
/// # Errors
///
/// What the file cannot be read with.
pub(super) fn read(fd: &impl AsRawFd, name: &str) -> io::Result<Option<u64>> {
    Ok(number(&fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()))?, name))
}

/// The number on the line `name:`.
#[must_use]
pub fn number(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_that_does_not_count_is_no_zero() {
        let new = "pos:\t0\nflags:\t02000002\nprog_type:\t17\nrun_cnt:\t5\nrecursion_misses:\t42\nverified_insns:\t9\n";
        let old = "pos:\t0\nprog_type:\t17\nrun_cnt:\t5\n";
        assert_eq!(number(new, "recursion_misses"), Some(42));
        assert_eq!(number(new, "recursion"), None);
        assert_eq!(number(old, "recursion_misses"), None);
    }
}
