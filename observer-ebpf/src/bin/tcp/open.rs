//! Sockets that processes have open: how connections are found that are older than the agent.

use core::{ffi::c_void, mem::MaybeUninit, ptr::read_volatile};

use aya_ebpf::{Global, helpers::generated::bpf_seq_write};
use observer_common::older::Open;

use crate::{
    maps::{SKC_FAMILY, SKC_NET, SKC_STATE},
    sock::{self, Peer, Sock, state},
};

/// Offsets of fields; what each is says `observer_common::older::globals`.
macro_rules! offsets {
    ($($name:ident)+) => {
        $(#[unsafe(no_mangle)] static $name: Global<u32> = Global::new(0);)+
    };
}

offsets! { FILE_PRIVATE FILE_INODE INODE_MODE SOCKET_SK }

/// `struct bpf_iter__task_file` (kernel/bpf/task_iter.c), and the first field of the `struct bpf_iter_meta` in it.
#[repr(C)]
struct Context {
    meta: *const *mut c_void,
    task: *const c_void,
    fd: u64,
    file: *const c_void,
}

/// Tells of every TCP connection that a process has open and that is an observed container's, or may be the other end of one of
/// those over loopback; and of all that listen, which says who called whom.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task_file")]
extern "C" fn tcp_open(ctx: *mut c_void) -> i32 {
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
    if sk == 0 || (family != FAMILIES[0] && family != FAMILIES[1]) || !sock::is_tcp(sk) {
        return 0;
    }
    let mut common = MaybeUninit::uninit();
    let common = Sock::read(sk, &mut common);
    let now: u8 = common.field(&SKC_STATE);
    // One that is not established yet will be seen to begin.
    let lives = state::was_established(now.into());
    if i32::from(now) != state::LISTEN && !(lives && (common.ends().is_loopback() || sock::is_observed(sk))) {
        return 0;
    }
    let open = Open {
        socket: sk,
        net: common.field(&SKC_NET),
        port: common.num(),
        peer_port: u16::from_be(common.dport()),
        state: now.into(),
    };
    // SAFETY: the kernel's `meta` begins with the file that is written to; the record is on the stack.
    unsafe { bpf_seq_write(read_volatile(meta).cast(), (&raw const open).cast(), size_of::<Open>() as u32) };
    0
}
