//! Array maps in this process's memory: the kernel writes, the agent reads, without a system call.

use std::{
    io,
    marker::PhantomData,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use memmap2::{MmapOptions, MmapRaw};

/// What is mapped at once. All pages of a mapping count as resident memory from its first moment
/// (`array_map_mmap` in kernel/bpf/arraymap.c), touched or not, so a table that is large and little used is mapped where
/// it is used. A multiple of every page size.
const WINDOW: usize = 256 << 10;

/// An array map, mapped where it is touched.
#[derive(Debug)]
pub(in crate::kernel) struct Mapping<T> {
    map: OwnedFd,
    windows: Box<[OnceLock<MmapRaw>]>,
    length: usize,
    of: PhantomData<T>,
}

impl<T: aya::Pod> Mapping<T> {
    /// The distance between two values (`array_map_alloc` in kernel/bpf/arraymap.c rounds up to 8).
    const STRIDE: usize = size_of::<T>().next_multiple_of(8);

    /// Maps an array made with `BPF_F_MMAPABLE` that has `length` entries.
    ///
    /// # Errors
    ///
    /// What mmap(2) says: EINVAL for a map that is smaller, or that cannot be mapped.
    pub(in crate::kernel) fn new(map: BorrowedFd<'_>, length: usize) -> io::Result<Self> {
        let windows = (length * Self::STRIDE).div_ceil(WINDOW);
        let windows = std::iter::repeat_with(OnceLock::new).take(windows).collect();
        let mapping = Self { map: map.try_clone_to_owned()?, windows, length, of: PhantomData };
        // Both ends, so that whatever the kernel has against it is said now.
        if let Some(last) = mapping.windows.len().checked_sub(1) {
            mapping.map(last)?;
            mapping.map(0)?;
        }
        Ok(mapping)
    }

    /// How many entries it has.
    pub(in crate::kernel) const fn len(&self) -> usize {
        self.length
    }

    fn map(&self, window: usize) -> io::Result<MmapRaw> {
        let begin = window * WINDOW;
        let length = (self.length * Self::STRIDE - begin).min(WINDOW);
        MmapOptions::new().offset(begin as u64).len(length).map_raw(self.map.as_raw_fd())
    }

    /// The word at `word` of the entry at `index`; the kernel may change it at any time.
    ///
    /// # Panics
    ///
    /// When the entry does not exist, and when the system has no memory left for page tables.
    pub(in crate::kernel) fn word(&self, index: usize, word: usize) -> &AtomicU64 {
        assert!(index < self.length && word < Self::STRIDE / 8, "entry {index}, word {word} of {}", self.length);
        let at = index * Self::STRIDE + word * 8;
        let window = at / WINDOW;
        let memory = self.windows[window].get_or_init(|| {
            self.map(window).unwrap_or_else(|error| panic!("cannot map a part of a kernel table into memory: {error}"))
        });
        // SAFETY: in bounds by the assertion; a window is page-aligned and it and the stride are multiples of 8, so the
        // word is aligned and in one window; it lives as long as `self`; both sides touch it in whole words only.
        unsafe { AtomicU64::from_ptr(memory.as_mut_ptr().add(at % WINDOW).cast()) }
    }

    /// What a word is now.
    pub(in crate::kernel) fn load(&self, index: usize, word: usize) -> u64 {
        self.word(index, word).load(Relaxed)
    }

    /// Sets an entry to zero, word by word.
    pub(in crate::kernel) fn zero(&self, index: usize) {
        for word in 0..Self::STRIDE / 8 {
            self.word(index, word).store(0, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        os::{fd::AsFd, unix::fs::FileExt},
    };

    use super::*;

    /// A file stands for the map: it is mapped the same way.
    fn file(length: u64) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(length).unwrap();
        file
    }

    #[test]
    fn words_are_found_in_every_window_and_only_those_that_are_touched_are_mapped() {
        const ENTRIES: usize = 40_000;
        // 24 bytes: windows end in the middle of an entry.
        let file = file(ENTRIES as u64 * 24);
        let mapping: Mapping<[u64; 3]> = Mapping::new(file.as_fd(), ENTRIES).unwrap();
        let mapped = || mapping.windows.iter().filter(|window| window.get().is_some()).count();
        assert_eq!((mapping.len(), mapping.windows.len(), mapped()), (ENTRIES, 4, 0));
        for index in [0, WINDOW / 24, WINDOW / 24 + 1, ENTRIES - 1] {
            for word in 0..3 {
                let at = (index * 24 + word * 8) as u64;
                file.write_all_at(&(at + 1).to_ne_bytes(), at).unwrap();
                assert_eq!(mapping.load(index, word), at + 1);
            }
        }
        assert_eq!(mapped(), 3);
        mapping.zero(WINDOW / 24);
        let mut entry = [1; 24];
        file.read_exact_at(&mut entry, (WINDOW / 24 * 24) as u64).unwrap();
        assert_eq!(entry, [0; 24]);
        assert_eq!(mapping.load(WINDOW / 24 + 1, 0), ((WINDOW / 24 + 1) * 24 + 1) as u64);
    }

    #[test]
    #[should_panic(expected = "entry 5, word 0 of 5")]
    fn nothing_is_beyond_the_end() {
        let mapping: Mapping<u64> = Mapping::new(file(40).as_fd(), 5).unwrap();
        mapping.load(5, 0);
    }

    #[test]
    fn what_cannot_be_mapped_is_said_at_once() {
        let (pipe, _) = io::pipe().unwrap();
        assert!(Mapping::<u64>::new(pipe.as_fd(), 1).is_err());
    }
}
