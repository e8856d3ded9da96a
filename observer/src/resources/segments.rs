//! System V shared memory of the IPC namespace that the calling thread is in (sysvipc(7)).

/// `SHM_INFO` of include/uapi/linux/shm.h.
const SHM_INFO: libc::c_int = 14;

/// `struct shm_info` of include/uapi/linux/shm.h, on machines of 64 bits. Sizes are in pages.
#[repr(C)]
#[derive(Debug, Default)]
struct ShmInfo {
    used_ids: libc::c_int,
    total: libc::c_ulong,
    resident: libc::c_ulong,
    swapped: libc::c_ulong,
    swap_attempts: libc::c_ulong,
    swap_successes: libc::c_ulong,
}

/// Bytes of all segments, in memory and swapped out; `None` where the kernel has none of this (`CONFIG_SYSVIPC`).
///
/// The sums are those of the columns `rss` and `swap` of `/proc/sysvipc/shm`: both come from `shm_add_rss_swap` (ipc/shm.c).
/// One call of shmctl(2), which needs no permission for it, in place of a file that is opened and read for each pod.
pub(super) fn bytes() -> Option<u64> {
    let mut info = ShmInfo::default();
    // SAFETY: SHM_INFO writes one `struct shm_info` to the buffer, which has its layout, and takes no notice of the id.
    let done = unsafe { libc::shmctl(0, SHM_INFO, (&raw mut info).cast()) };
    let page = u64::try_from(rustix::param::page_size()).ok()?;
    (done >= 0).then(|| info.resident.checked_add(info.swapped)?.checked_mul(page))?
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes of the same segments, as the kernel's own table of them has it.
    fn table() -> u64 {
        let text = std::fs::read_to_string("/proc/sysvipc/shm").unwrap();
        let mut lines = text.lines();
        let header: Vec<&str> = lines.next().unwrap().split_whitespace().collect();
        let columns = ["rss", "swap"].map(|name| header.iter().position(|found| *found == name).unwrap());
        lines
            .map(|line| {
                let fields: Vec<&str> = line.split_whitespace().collect();
                columns.map(|column| fields[column].parse::<u64>().unwrap()).iter().sum::<u64>()
            })
            .sum()
    }

    /// A segment that is gone when this is dropped.
    struct Segment(libc::c_int);

    impl Segment {
        fn touched(bytes: usize) -> Self {
            // SAFETY: it makes a segment and looks at no memory of this process.
            let id = unsafe { libc::shmget(libc::IPC_PRIVATE, bytes, 0o600) };
            assert!(id >= 0, "{}", std::io::Error::last_os_error());
            let segment = Self(id);
            // SAFETY: the kernel chooses a free range of addresses.
            let at = unsafe { libc::shmat(id, std::ptr::null(), 0) };
            assert_ne!(at.addr(), usize::MAX, "{}", std::io::Error::last_os_error());
            // SAFETY: the whole segment is mapped there for writing, and nobody else knows of it.
            unsafe { at.cast::<u8>().write_bytes(1, bytes) };
            // SAFETY: nothing refers to the mapping any more.
            assert_eq!(unsafe { libc::shmdt(at) }, 0);
            segment
        }
    }

    impl Drop for Segment {
        fn drop(&mut self) {
            // SAFETY: IPC_RMID takes no notice of the buffer.
            unsafe { libc::shmctl(self.0, libc::IPC_RMID, std::ptr::null_mut()) };
        }
    }

    #[test]
    fn it_says_what_the_table_of_segments_says() {
        // Others may have segments in this namespace that change meanwhile: then both are asked again.
        let agreed = |least: u64| {
            (0..1000).any(|_| {
                let (before, told, after) = (table(), bytes().unwrap(), table());
                before == after && told == before && told >= least
            })
        };
        assert!(agreed(0));
        let _segment = Segment::touched(3 << 20);
        assert!(agreed(3 << 20));
    }
}
