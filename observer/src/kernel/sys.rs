//! The calls of bpf(2) that aya has no function for.

use std::{
    ffi::CString,
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

const BPF_OBJ_GET: libc::c_int = 7;
const BPF_PROG_TEST_RUN: libc::c_int = 10;
const BPF_PROG_QUERY: libc::c_int = 16;
const BPF_MAP_LOOKUP_AND_DELETE_ELEM: libc::c_int = 21;
const BPF_MAP_LOOKUP_BATCH: libc::c_int = 24;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_LINK_UPDATE: libc::c_int = 29;
const BPF_ITER_CREATE: libc::c_int = 33;

/// `attr.pathname`, `attr.bpf_fd`, `attr.file_flags` of `union bpf_attr` (include/uapi/linux/bpf.h).
#[repr(C)]
struct ObjGet {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// `attr.link_create` of `union bpf_attr`, up to the fields that an iterator over everything needs.
#[repr(C)]
struct LinkCreate {
    prog_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
}

/// `attr.iter_create` of `union bpf_attr`.
#[repr(C)]
struct IterCreate {
    link_fd: u32,
    flags: u32,
}

/// `attr.link_update` of `union bpf_attr`.
#[repr(C)]
struct LinkUpdate {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

/// `attr.query` of `union bpf_attr`, whole: the first kernels with a revision (6.17) write it whatever size they are told
/// (`__cgroup_bpf_query` in kernel/bpf/cgroup.c). Kernels that do not know the last fields take them when they are 0.
#[repr(C)]
struct ProgQuery {
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

/// `attr.test` of `union bpf_attr`, up to the fields that kernel 5.10 has.
#[repr(C)]
#[derive(Default)]
struct TestRun {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
}

/// The fields for one element of a map in `union bpf_attr`.
#[repr(C)]
struct Element {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// `attr.batch` of `union bpf_attr`.
#[repr(C)]
struct Batch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
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

/// Puts another program into a link that is pinned already. False when there is none, or what it was attached to is gone;
/// nothing is pinned there then.
pub fn take_over(path: &Path, program: BorrowedFd<'_>) -> bool {
    let Ok(link) = obj_get(path) else { return false };
    let replaced = link_update(link.as_fd(), program);
    if replaced.is_err() {
        let _ = std::fs::remove_file(path);
    }
    replaced.is_ok()
}

/// Runs an iterator: what is read from the file is what the program writes (`bpf_iter_link_attach` and `bpf_iter_new_fd` in
/// kernel/bpf/bpf_iter.c). It ends when the file is closed.
///
/// # Errors
///
/// What bpf(2) says for `BPF_LINK_CREATE` and `BPF_ITER_CREATE` (kernel 5.8).
pub fn iterate(program: BorrowedFd<'_>) -> io::Result<File> {
    /// `BPF_TRACE_ITER` of `enum bpf_attach_type`.
    const TRACE_ITER: u32 = 28;
    let prog_fd = program.as_raw_fd().cast_unsigned();
    let link = bpf(BPF_LINK_CREATE, &LinkCreate { prog_fd, target_fd: 0, attach_type: TRACE_ITER, flags: 0 })?;
    // SAFETY: the kernel just gave this descriptor to us, and nobody else knows it.
    let link = unsafe { OwnedFd::from_raw_fd(link) };
    let file = bpf(BPF_ITER_CREATE, &IterCreate { link_fd: link.as_raw_fd().cast_unsigned(), flags: 0 })?;
    // SAFETY: as above.
    Ok(unsafe { File::from_raw_fd(file) })
}

/// Runs a program of raw tracepoints with these arguments, on this CPU, and gives what it returned (`bpf_prog_test_run_raw_tp` in
/// net/bpf/test_run.c).
///
/// # Errors
///
/// What bpf(2) says for `BPF_PROG_TEST_RUN`: ENOTSUPP (524) before kernel 5.10.
pub fn run_raw_tracepoint(program: BorrowedFd<'_>, arguments: &[u64]) -> io::Result<u32> {
    let mut attr = TestRun {
        prog_fd: program.as_raw_fd().cast_unsigned(),
        ctx_size_in: size_of_val(arguments) as u32,
        ctx_in: arguments.as_ptr() as u64,
        ..TestRun::default()
    };
    // The kernel writes what the program returned, so the attribute is mutable here.
    // SAFETY: bpf(2) reads and writes as many bytes as it is told of a live struct of plain integers, and reads the
    // arguments, which live.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_TEST_RUN, &raw mut attr, size_of::<TestRun>() as libc::c_uint) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(attr.retval) }
}

/// All entries of a hash map. What comes or goes meanwhile may be in it or not; nothing else is left out, or twice
/// (`__htab_map_lookup_and_delete_batch` in kernel/bpf/hashtab.c goes on bucket by bucket).
///
/// # Errors
///
/// What bpf(2) says for `BPF_MAP_LOOKUP_BATCH` (kernel 5.6).
pub fn all_entries<K: aya::Pod + Default, V: aya::Pod + Default>(map: BorrowedFd<'_>) -> io::Result<Vec<(K, V)>> {
    // More than a bucket ever holds.
    const AT_ONCE: usize = 4096;
    let (mut keys, mut values) = (vec![K::default(); AT_ONCE], vec![V::default(); AT_ONCE]);
    let mut all = Vec::new();
    let mut position: Option<u64> = None;
    loop {
        let (from, mut to) = (position.unwrap_or_default(), 0u64);
        let mut attr = Batch {
            in_batch: if position.is_some() { &raw const from as u64 } else { 0 },
            out_batch: &raw mut to as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: AT_ONCE as u32,
            map_fd: map.as_raw_fd().cast_unsigned(),
            elem_flags: 0,
            flags: 0,
        };
        // SAFETY: bpf(2) reads and writes as many bytes as it is told of a live struct of plain integers, four bytes at
        // `out_batch`, and at most `count` keys and values, which the buffers hold.
        let result = unsafe {
            libc::syscall(libc::SYS_bpf, BPF_MAP_LOOKUP_BATCH, &raw mut attr, size_of::<Batch>() as libc::c_uint)
        };
        let error = (result < 0).then(io::Error::last_os_error);
        if let Some(error) = &error
            && error.raw_os_error() != Some(libc::ENOENT)
        {
            return Err(io::Error::from_raw_os_error(error.raw_os_error().unwrap_or(libc::EIO)));
        }
        let found = (attr.count as usize).min(AT_ONCE);
        all.extend(keys[..found].iter().copied().zip(values[..found].iter().copied()));
        if error.is_some() {
            return Ok(all);
        }
        position = Some(to);
    }
}

/// Takes an entry out of a hash map and gives what it held then: no program finds it in between
/// (`__htab_map_lookup_and_delete_elem` in kernel/bpf/hashtab.c copies and unlinks under the bucket's lock).
///
/// # Errors
///
/// What bpf(2) says for `BPF_MAP_LOOKUP_AND_DELETE_ELEM`: ENOENT when there is none, ENOTSUPP (524) before kernel 5.14.
pub fn take_entry<K: aya::Pod, V: aya::Pod + Default>(map: BorrowedFd<'_>, key: &K) -> io::Result<V> {
    let mut value = V::default();
    let attr = Element {
        map_fd: map.as_raw_fd().cast_unsigned(),
        padding: 0,
        key: std::ptr::from_ref(key) as u64,
        value: &raw mut value as u64,
        flags: 0,
    };
    bpf(BPF_MAP_LOOKUP_AND_DELETE_ELEM, &attr)?;
    Ok(value)
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
        prog_attach_flags: 0,
        link_ids: 0,
        link_attach_flags: 0,
        revision: 0,
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
