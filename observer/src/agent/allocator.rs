//! What the C library's allocator keeps. Scrapes write megabytes and free them again; glibc's default is to keep them.

/// Blocks of this many bytes and more are mappings of their own, which freeing gives back (malloc(3), mallopt(3)).
const LARGE: libc::c_int = 256 << 10;
/// Free memory at the end of a heap that is kept for the next scrape: what is given back costs a page fault for each page
/// when it is needed again, a tenth of a scrape's CPU time in all.
const KEPT: libc::c_int = 2 << 20;
/// Heaps, over which threads are spread: each keeps its own free memory.
const HEAPS: libc::c_int = 2;

/// Sets it up, before other threads run. glibc otherwise raises its threshold to 32 MiB as large blocks are freed, and
/// makes eight heaps for each processor.
pub(super) fn set_up() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt takes two numbers and may be called at any time; a value that it refuses changes nothing.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT);
        libc::mallopt(libc::M_ARENA_MAX, HEAPS);
    }
}

/// Gives free pages back: what starting needed, running does not.
pub(super) fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim gives back pages in which nothing is allocated (malloc_trim(3)); it is safe with threads.
    unsafe {
        libc::malloc_trim(0);
    }
}
