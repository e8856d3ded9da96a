//! A program that the agent runs, and what the kernel tells of it.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::fs::FileExt,
    },
    sync::{Arc, OnceLock},
};

use super::fdinfo::Told;

/// The switch of the kernel's BPF statistics (Documentation/admin-guide/sysctl/kernel.rst).
const SWITCH: &str = "/proc/sys/kernel/bpf_stats_enabled";
/// Room for all that the kernel tells of a program: a dozen short lines.
const ROOM: usize = 1024;

/// Programs of one part of the agent.
pub type Programs = Vec<Arc<Program>>;

/// A program that the agent runs.
#[derive(Debug)]
pub struct Program {
    name: &'static str,
    fd: OwnedFd,
    /// Open from the first reading on: the next one takes 1.5 µs then, and with opening and closing 6.7.
    fdinfo: OnceLock<File>,
}

impl Program {
    /// The program of this descriptor, which stays the caller's. The program is there as long as either of both.
    pub(super) fn of(name: &'static str, fd: &impl AsFd) -> io::Result<Arc<Self>> {
        Ok(Self::from_fd(name, fd.as_fd().try_clone_to_owned()?))
    }

    /// The program of this descriptor.
    pub(super) fn from_fd(name: &'static str, fd: OwnedFd) -> Arc<Self> {
        Arc::new(Self { name, fd, fdinfo: OnceLock::new() })
    }

    /// Its name in the object file. The kernel keeps 15 characters of it (`BPF_OBJ_NAME_LEN` in
    /// include/uapi/linux/bpf.h).
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// What the kernel tells of it now.
    ///
    /// # Errors
    ///
    /// What its file in procfs cannot be read with.
    pub fn told(&self) -> io::Result<Told> {
        let file = match self.fdinfo.get() {
            Some(file) => file,
            None => {
                let file = File::open(format!("/proc/self/fdinfo/{}", self.fd.as_raw_fd()))?;
                self.fdinfo.get_or_init(|| file)
            }
        };
        // From the beginning each time: the kernel writes the text anew then (`seq_read_iter` in fs/seq_file.c).
        let mut text = [0; ROOM];
        let length = file.read_at(&mut text, 0)?;
        Ok(Told::parse(&String::from_utf8_lossy(&text[..length])))
    }
}

impl AsFd for Program {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Whether the kernel counts runs of programs because the sysctl `kernel.bpf_stats_enabled` says so. When it does not, it
/// counts all the same while a process holds a descriptor of `BPF_ENABLE_STATS`, which nothing tells of
/// (`bpf_stats_handler` and `bpf_enable_runtime_stats` in kernel/bpf/syscall.c).
#[must_use]
pub fn counts_runs() -> bool {
    // A kernel without the switch does not count.
    fs::read_to_string(SWITCH).is_ok_and(|text| text == "1\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_is_read_again_and_again() {
        // No program: procfs has lines for any descriptor, and none of a program's.
        let program = Program::of("none", &File::open("/dev/null").unwrap()).unwrap();
        for _ in 0..3 {
            assert_eq!(program.told().unwrap(), Told::default());
        }
        assert_eq!(program.name(), "none");
    }

    #[test]
    fn the_switch_is_one_number() {
        assert_eq!(counts_runs(), fs::read_to_string(SWITCH).unwrap_or_default().trim() == "1");
    }
}
