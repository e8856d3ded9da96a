//! The calls of bpf(2) that aya has no function for.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

const BPF_OBJ_GET: libc::c_int = 7;
const BPF_PROG_QUERY: libc::c_int = 16;
const BPF_LINK_UPDATE: libc::c_int = 29;

/// `attr.pathname`, `attr.bpf_fd`, `attr.file_flags` of `union bpf_attr` (include/uapi/linux/bpf.h).
#[repr(C)]
struct ObjGet {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// `attr.link_update` of `union bpf_attr`.
#[repr(C)]
struct LinkUpdate {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

/// `attr.query` of `union bpf_attr`, up to the fields that every kernel since 4.15 has.
#[repr(C)]
struct ProgQuery {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_count: u32,
    padding: u32,
}

/// `BPF_CGROUP_INET_INGRESS` of `enum bpf_attach_type`.
pub const CGROUP_INET_INGRESS: u32 = 0;
/// `BPF_CGROUP_INET_EGRESS` of `enum bpf_attach_type`.
pub const CGROUP_INET_EGRESS: u32 = 1;

/// Opens a pinned object.
///
/// # Errors
///
/// What bpf(2) says for `BPF_OBJ_GET`: ENOENT when nothing is pinned there.
pub fn obj_get(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let attr = ObjGet { pathname: path.as_ptr() as u64, bpf_fd: 0, file_flags: 0 };
    let fd = bpf(BPF_OBJ_GET, &attr)?;
    // SAFETY: the kernel just gave this descriptor to us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Puts another program into a link, with no moment in which neither or both run (`cgroup_bpf_replace` in
/// kernel/bpf/cgroup.c).
///
/// # Errors
///
/// What bpf(2) says for `BPF_LINK_UPDATE`: ENOLINK when the cgroup is gone.
pub fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let attr = LinkUpdate {
        link_fd: link.as_raw_fd().cast_unsigned(),
        new_prog_fd: program.as_raw_fd().cast_unsigned(),
        flags: 0,
        old_prog_fd: 0,
    };
    bpf(BPF_LINK_UPDATE, &attr).map(|_| ())
}

/// Ids of the programs attached to a cgroup itself, for one attach type.
///
/// # Errors
///
/// What bpf(2) says for `BPF_PROG_QUERY`: EPERM without CAP_NET_ADMIN.
pub fn attached_programs(cgroup: BorrowedFd<'_>, attach_type: u32) -> io::Result<Vec<u32>> {
    let mut ids = vec![0u32; 64];
    let mut attr = ProgQuery {
        target_fd: cgroup.as_raw_fd().cast_unsigned(),
        attach_type,
        query_flags: 0,
        attach_flags: 0,
        prog_ids: ids.as_mut_ptr() as u64,
        prog_count: 64,
        padding: 0,
    };
    // The kernel writes the count back, so the attribute is mutable here.
    // SAFETY: bpf(2) reads and writes as many bytes as it is told of a live, aligned struct of plain integers, and
    // at most `prog_count` words behind `prog_ids`.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_QUERY, &raw mut attr, size_of::<ProgQuery>() as libc::c_uint) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    ids.truncate(attr.prog_count as usize);
    Ok(ids)
}

fn bpf<T>(command: libc::c_int, attr: &T) -> io::Result<i32> {
    // SAFETY: bpf(2) reads as many bytes as it is told of a live struct of plain integers.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attr), size_of::<T>() as libc::c_uint) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}
