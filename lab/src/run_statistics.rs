//! The kernel's statistics of its BPF programs: switched on, and read without the agent.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use anyhow::{Context, Result, ensure};
use aya::programs::{ProgramFd, loaded_programs};

const BPF_ENABLE_STATS: libc::c_int = 32;
/// `BPF_STATS_RUN_TIME` of `enum bpf_stats_type`.
const BPF_STATS_RUN_TIME: u32 = 0;

/// `attr.enable_stats` of `union bpf_attr` (include/uapi/linux/bpf.h).
#[repr(C)]
struct EnableStats {
    kind: u32,
}

/// The kernel counts runs as long as this lives: no setting of the machine is changed. Since kernel 5.8.
#[derive(Debug)]
pub struct RunStatistics {
    _fd: OwnedFd,
}

impl RunStatistics {
    /// Switches them on.
    pub fn enable() -> Result<Self> {
        let attr = EnableStats { kind: BPF_STATS_RUN_TIME };
        // SAFETY: bpf(2) reads as many bytes as it is told of a live struct of plain integers.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                BPF_ENABLE_STATS,
                std::ptr::from_ref(&attr),
                size_of::<EnableStats>() as libc::c_uint,
            )
        };
        ensure!(fd >= 0, "switching on the statistics of BPF programs: {}", std::io::Error::last_os_error());
        // SAFETY: bpf(2) has just made this descriptor, which is nobody else's, and closes with the program that is run.
        let fd = unsafe { OwnedFd::from_raw_fd(i32::try_from(fd)?) };
        Ok(Self { _fd: fd })
    }

    /// Whether the machine's own setting has them on.
    pub fn are_on() -> bool {
        std::fs::read_to_string("/proc/sys/kernel/bpf_stats_enabled").is_ok_and(|text| text.trim() == "1")
    }
}

/// What the kernel has counted of a program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Runs {
    /// How often it ran.
    pub count: u64,
    /// How long, in nanoseconds.
    pub time_ns: u64,
}

/// One of the kernel's programs.
pub struct Program(ProgramFd);

impl Program {
    /// The only one among these ids whose name the kernel keeps the beginning of.
    pub fn named(name: &str, ids: &[u32]) -> Result<Self> {
        let found: Vec<_> = loaded_programs()
            .filter_map(std::result::Result::ok)
            .filter(|program| ids.contains(&program.id()))
            .filter(|program| program.name_as_str().is_some_and(|kept| !kept.is_empty() && name.starts_with(kept)))
            .collect();
        ensure!(found.len() == 1, "{} programs are called {name}", found.len());
        Ok(Self(found[0].fd()?))
    }

    /// What is counted of it now (`bpf_prog_show_fdinfo` in kernel/bpf/syscall.c).
    pub fn runs(&self) -> Result<Runs> {
        let path = format!("/proc/self/fdinfo/{}", self.0.as_fd().as_raw_fd());
        let text = std::fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
        let number = |name: &str| -> Result<u64> {
            let line = text.lines().find_map(|line| line.split_once(':').filter(|(key, _)| *key == name));
            let (_, value) = line.with_context(|| format!("{path} has no {name}"))?;
            value.trim().parse().with_context(|| format!("reading {name} of {path}"))
        };
        Ok(Runs { count: number("run_cnt")?, time_ns: number("run_time_ns")? })
    }
}
