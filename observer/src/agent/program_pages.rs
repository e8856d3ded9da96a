//! Pages of the program itself: code and constants that only starting needed stay mapped, and count as resident, as long as
//! the process lives.

use procfs::{
    ProcResult,
    process::{MMPermissions, MMapPath, MemoryMap, Process},
};

/// Lets go of all pages of the program and of its libraries that are as they are in their files. What is needed again comes
/// back from the kernel's cache of the file. Gives the number of bytes of the mappings, 0 when they cannot be told.
///
/// Starting touches much (options, loading and checking kernel programs, first handshakes), and the kernel maps what is in its
/// cache around each page that is touched. With 110 pods 14.7 MiB of files are resident in place of 17.8.
pub(super) fn let_go() -> u64 {
    let mappings = || ProcResult::Ok(Process::myself()?.smaps()?.0);
    // Without procfs the pages stay.
    let mappings = mappings().unwrap_or_default();
    mappings.iter().filter(|mapping| is_as_in_file(mapping)).filter_map(drop_pages).sum()
}

/// Mapped from a file, never written to (`Anonymous` of proc_pid_smaps(5) are pages that are the process' own by now, as
/// those with relocations), and not to be written to.
fn is_as_in_file(mapping: &MemoryMap) -> bool {
    matches!(mapping.pathname, MMapPath::Path(_))
        && mapping.perms.contains(MMPermissions::READ | MMPermissions::PRIVATE)
        && !mapping.perms.contains(MMPermissions::WRITE)
        && mapping.extension.map.get("Anonymous") == Some(&0)
}

fn drop_pages(mapping: &MemoryMap) -> Option<u64> {
    let (start, end) = mapping.address;
    let length = usize::try_from(end.checked_sub(start)?).ok()?;
    // SAFETY: MADV_DONTNEED (madvise(2)) on a private mapping of a file: its pages are those of the file, because none of
    // them is the process' own, and reading them again finds the same. Nothing maps or unmaps a library meanwhile that was
    // there at the start; of a mapping that is gone the kernel says ENOMEM.
    let outcome = unsafe { libc::madvise(start as *mut libc::c_void, length, libc::MADV_DONTNEED) };
    (outcome == 0).then_some(length as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What of the program's code is resident, in bytes.
    fn code() -> u64 {
        let here = let_go as *const () as u64;
        let all = Process::myself().unwrap().smaps().unwrap();
        let own = all.0.iter().find(|mapping| (mapping.address.0..mapping.address.1).contains(&here)).unwrap();
        assert!(is_as_in_file(own), "{own:?}");
        own.extension.map["Rss"]
    }

    #[test]
    fn the_program_goes_on_with_less_of_it_resident() {
        // Most of it is touched by reading it.
        let all = Process::myself().unwrap().smaps().unwrap();
        let here = let_go as *const () as u64;
        let own = all.0.iter().find(|mapping| (mapping.address.0..mapping.address.1).contains(&here)).unwrap();
        let pages = (own.address.0..own.address.1).step_by(4096);
        // SAFETY: addresses within a mapping of this program's code, which may be read and stays.
        let sum = pages.map(|page| u64::from(unsafe { (page as *const u8).read_volatile() })).sum::<u64>();
        let before = code();
        assert!(before > (own.address.1 - own.address.0) / 2, "{before} bytes, {sum}");
        assert!(let_go() >= before);
        let after = code();
        assert!(after < before, "{after} of {before} bytes");
        let written = all.0.iter().filter(|mapping| mapping.perms.contains(MMPermissions::WRITE));
        assert!(written.clone().count() > 0 && !written.into_iter().any(is_as_in_file));
    }
}
