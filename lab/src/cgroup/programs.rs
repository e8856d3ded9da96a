//! The programs of a cgroup, as the kernel tells them.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use observer::sandbox::AttachPoint;

/// `BPF_CGROUP_INET_INGRESS` and `BPF_CGROUP_INET_EGRESS` of `enum bpf_attach_type`.
pub const INGRESS: u32 = 0;
/// See [`INGRESS`].
pub const EGRESS: u32 = 1;
const BPF_PROG_QUERY: libc::c_int = 16;
const BPF_F_QUERY_EFFECTIVE: u32 = 1;
/// More than the 64 that fit into a cgroup (`BPF_CGROUP_MAX_PROGS`), because those above it are told, too.
const MOST: usize = 256;

/// `attr.query` of `union bpf_attr`, whole: the first kernels with a revision (6.17) write it whatever size they are told
/// (`__cgroup_bpf_query` in kernel/bpf/cgroup.c). Kernels that do not know the last fields take them when they are 0.
#[repr(C)]
struct Query {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_count: u32,
    padding: u32,
    prog_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

/// Where the agent's programs are attached to a cgroup: for who uses them without an agent.
pub fn attach_point(directory: &Path) -> Result<AttachPoint> {
    let metadata = std::fs::metadata(directory).with_context(|| format!("looking at {}", directory.display()))?;
    Ok(AttachPoint { cgroup_id: metadata.ino(), path: directory.to_owned() })
}

/// Ids of all programs that run for the packets of a cgroup, those that are attached above it included.
pub fn effective_programs(directory: &Path, attach_type: u32) -> Result<Vec<u32>> {
    let cgroup = File::open(directory).with_context(|| format!("opening {}", directory.display()))?;
    let mut ids = vec![0u32; MOST];
    let mut attr = Query {
        target_fd: cgroup.as_raw_fd().cast_unsigned(),
        attach_type,
        query_flags: BPF_F_QUERY_EFFECTIVE,
        attach_flags: 0,
        prog_ids: ids.as_mut_ptr() as u64,
        prog_count: u32::try_from(MOST)?,
        padding: 0,
        prog_attach_flags: 0,
        link_ids: 0,
        link_attach_flags: 0,
        revision: 0,
    };
    // SAFETY: bpf(2) reads and writes as many bytes as it is told of a live struct of plain integers, and at most
    // `prog_count` words behind `prog_ids`, which lives, too.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_QUERY, &raw mut attr, size_of::<Query>() as libc::c_uint) };
    ensure!(result == 0, "asking for the programs of {}: {}", directory.display(), std::io::Error::last_os_error());
    ids.truncate(usize::try_from(attr.prog_count)?);
    Ok(ids)
}
