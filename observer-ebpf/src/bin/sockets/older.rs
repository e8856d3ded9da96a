//! Sockets that are older than the agent: found among the open files of all processes, and counted from then on.

use core::{ffi::c_void, mem::MaybeUninit, ptr::read_volatile};

use aya_ebpf::helpers::generated::bpf_seq_write;
use observer_common::{
    edge::Role,
    sockets::{Adopted, Open},
    tcp::Connection,
};

use crate::{
    add::add,
    live,
    maps::{SKC_FAMILY, SKC_STATE, TCP_QUALITY, TP_TOTAL_RETRANS},
    own::{FILE_INODE, FILE_PRIVATE, INODE_MODE, SKC_NET, SOCKET_BASES, SOCKET_SK, SOCKETS_OLDER},
    pairs, payload,
    slot::{self, Caller},
    sock::{self, Peer, Sock, state},
};

/// `struct bpf_iter__task_file` (kernel/bpf/task_iter.c), and the first field of the `struct bpf_iter_meta` in it.
#[repr(C)]
struct Context {
    meta: *const *mut c_void,
    task: *const c_void,
    fd: u64,
    file: *const c_void,
}

/// Tells of every TCP socket of an observed container that a process has open.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task_file")]
extern "C" fn sockets_open(ctx: *mut c_void) -> i32 {
    /// `S_IFMT` and `S_IFSOCK` of include/uapi/linux/stat.h.
    const KIND: u16 = 0o170_000;
    const SOCKET: u16 = 0o140_000;
    /// `AF_INET` and `AF_INET6`.
    const FAMILIES: [u16; 2] = [2, 10];
    let context = ctx.cast::<Context>();
    // SAFETY: the kernel calls with this context, and the verifier knows its fields.
    let (meta, file) =
        unsafe { (read_volatile(&raw const (*context).meta), read_volatile(&raw const (*context).file)) };
    if file.is_null() {
        return 0;
    }
    let file = file as u64;
    let inode: u64 = sock::read(file, &FILE_INODE);
    if sock::read::<u16>(inode, &INODE_MODE) & KIND != SOCKET {
        return 0;
    }
    let socket: u64 = sock::read(file, &FILE_PRIVATE);
    let sk: u64 = sock::read(socket, &SOCKET_SK);
    let family: u16 = sock::read(sk, &SKC_FAMILY);
    if sk == 0 || (family != FAMILIES[0] && family != FAMILIES[1]) || !payload::is_tcp(sk) || !sock::is_observed(sk) {
        return 0;
    }
    let mut common = MaybeUninit::uninit();
    let common = Sock::read(sk, &mut common);
    let open = Open {
        socket: sk,
        net: common.field(&SKC_NET),
        port: common.num(),
        peer_port: u16::from_be(common.dport()),
        state: common.field::<u8>(&SKC_STATE).into(),
    };
    // SAFETY: the kernel's `meta` begins with the file that is written to; the record is on the stack.
    unsafe { bpf_seq_write(read_volatile(meta).cast(), (&raw const open).cast(), size_of::<Open>() as u32) };
    0
}

/// Counts for a socket from now on; `other` is the socket at the other end of a connection over loopback, or 0. With
/// `whatever` a socket that something happens to is not left for another try.
#[inline(always)]
pub fn adopt(sk: u64, other: u64, is_server: bool, whatever: bool) -> Adopted {
    let mut sock = MaybeUninit::uninit();
    let sock = Sock::read(sk, &mut sock);
    if !payload::is_tcp(sk) || !lives(sk) {
        return Adopted::Gone;
    }
    let (now, is_sure) = payload::while_busy(sk);
    if !is_sure && !whatever {
        return Adopted::Busy;
    }
    let role = if is_server { Role::Server } else { Role::Client };
    let slot = if sock.is_loopback() {
        let peer = if other != 0 && pairs::are_ends(sock, other) { sock::cgroup_id(other) } else { 0 };
        let port = if is_server { sock.num() } else { u16::from_be(sock.dport()) };
        pairs::slot(sk, sock::cgroup_id(sk), peer, pairs::port_and_flags(port, role, sock))
    } else {
        slot::by_key(sk, sock, if is_server { Caller::Them } else { Caller::Us })
    };
    let Some(counters) = TCP_QUALITY.get_ptr_mut(slot) else { return Adopted::Gone };
    if live::get(sk).is_some() {
        return Adopted::Known;
    }
    if let Some(older) = SOCKETS_OLDER.get_ptr_mut(0) {
        // SAFETY: the map gave a valid, aligned pointer.
        unsafe { add(older, 1) };
    }
    if SOCKET_BASES.insert(sk, now, 0).is_err() {
        return Adopted::Full;
    }
    let connection = Connection { slot, retransmitted: sock::read(sk, &TP_TOTAL_RETRANS) };
    // Not into a line: this program runs on kernels without atomic exchanges, too.
    if live::insert(sk, connection, false).is_err() {
        let _ = SOCKET_BASES.remove(sk);
        return Adopted::Full;
    }
    if !lives(sk) && live::remove(sk, false).is_some() {
        // It ended meanwhile, and its end found nothing.
        let _ = SOCKET_BASES.remove(sk);
        return Adopted::Gone;
    }
    // SAFETY: the map gave a valid, aligned pointer.
    unsafe { add(&raw mut (*counters).events.established, 1) };
    Adopted::Now
}

fn lives(sk: u64) -> bool {
    state::was_established(sock::read::<u8>(sk, &SKC_STATE).into())
}
