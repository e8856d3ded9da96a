//! Which packets the kernel dropped, whose they were, and why.
//!
//! One raw tracepoint, `kfree_skb`, which the kernel passes for every packet that it frees other than after use. Whose
//! packet it was is told by the socket, else by the network namespace of its device. In a namespace that is no pod's, such
//! as the node's own, a packet is on its way between others: there its addresses are looked up among those of pods, and
//! it may count twice, as sent by one pod and as not received by another. Nothing is guessed.

#![no_std]
#![no_main]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

#[path = "../add.rs"]
mod add;
#[path = "../program.rs"]
mod program;

use core::ffi::c_void;

use aya_ebpf::{
    EbpfContext, Global,
    bindings::BPF_NOEXIST,
    helpers::{bpf_ktime_get_boot_ns, bpf_probe_read_kernel},
    macros::{map, raw_tracepoint},
    maps::{Array, HashMap},
    programs::RawTracePointContext,
};
use observer_common::drops::{ADDRESSES, DropCount, DropKey, ENTRIES, LOSSES, Loss, NO_REASON, flags};

// Hash maps, because their keys are ids that the kernel gives, and addresses. Looked up once for each dropped packet.
#[map]
static DROPS: HashMap<DropKey, DropCount> = HashMap::with_max_entries(ENTRIES, 0);

#[map]
static DROPS_PODS: HashMap<[u8; 16], u64> = HashMap::with_max_entries(ADDRESSES, 0);

#[map]
static DROPS_NETNS: HashMap<u32, u8> = HashMap::with_max_entries(ADDRESSES, 0);

#[map]
static DROPS_LOSSES: Array<u64> = Array::with_max_entries(LOSSES, 0);

#[unsafe(no_mangle)]
static HAS_RX_SOCKET: Global<u8> = Global::new(0);
#[unsafe(no_mangle)]
static UNSPECIFIED: Global<[u32; 2]> = Global::new([NO_REASON; 2]);
#[unsafe(no_mangle)]
static NO_DROPS: Global<[u32; 2]> = Global::new([NO_REASON; 2]);
#[unsafe(no_mangle)]
static AT_THE_DOOR: Global<[u32; 2]> = Global::new([NO_REASON; 2]);
#[unsafe(no_mangle)]
static FALSE_SOURCE: Global<[u32; 3]> = Global::new([NO_REASON; 3]);

/// Offsets that the loader sets.
macro_rules! offsets {
    ($($name:ident),+ $(,)?) => {
        $(#[unsafe(no_mangle)] static $name: Global<u32> = Global::new(0);)+
    };
}

offsets!(
    SKB_DEV,
    SKB_SK,
    SKB_IIF,
    SKB_DST,
    SKB_HEAD,
    SKB_NETWORK,
    SKB_PROTOCOL,
    SK_FAMILY,
    SK_STATE,
    SK_NET,
    SK_CGROUP,
    CGROUP_KN,
    KN_ID,
    DEV_NET,
    DST_DEV,
    NET_INUM,
    NET_COOKIE,
);

/// `TCP_TIME_WAIT` and `TCP_NEW_SYN_RECV` (include/net/tcp_states.h): what stands in for a socket and has no cgroup
/// (`sk_fullsock` in include/net/sock.h).
const HALF_SOCKETS: [u8; 2] = [6, 12];
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
const AF_PACKET: u16 = 17;
const ETH_P_IP: u16 = 0x0800u16.to_be();
const ETH_P_IPV6: u16 = 0x86ddu16.to_be();
/// `SKB_DST_PTRMASK` of include/linux/skbuff.h: the lowest bit is a flag.
const DST_POINTER: usize = !1;
/// Inodes of namespaces begin with `PROC_DYNAMIC_FIRST` (fs/proc/generic.c), those of the first ones stand just below.
/// What reads as less is no namespace: memory that was another thing meanwhile.
const FIRST_INODE: u32 = 0xefff_fff0;

type Address = *const u8;

/// A network namespace.
#[derive(Clone, Copy, Default)]
struct Net {
    inode: u32,
    cookie: u64,
}

/// What a socket says of itself.
struct Socket {
    family: u16,
    /// 0 when it has none.
    cgroup: u64,
    net: Net,
}

/// `kfree_skb(struct sk_buff *skb, void *location, enum skb_drop_reason reason[, struct sock *rx_sk])`
/// (include/trace/events/skb.h).
#[raw_tracepoint]
pub fn packet_dropped(ctx: RawTracePointContext) -> i32 {
    let reason: u32 = ctx.arg(2);
    if UNSPECIFIED.load().contains(&reason) {
        lose(Loss::Unspecified);
        return 0;
    }
    if !NO_DROPS.load().contains(&reason) {
        dropped_for(ctx.as_ptr());
    }
    0
}

/// Not inlined: nearly every connection frees a packet that is no drop, and the program that sees it ends where it began, in the
/// lines of the processor's cache that it has loaded already.
#[inline(never)]
fn dropped_for(ctx: *mut c_void) {
    let ctx = RawTracePointContext::new(ctx);
    let skb: Address = ctx.arg(0);
    let receiver: Address = if HAS_RX_SOCKET.load() == 1 { ctx.arg(3) } else { core::ptr::null() };
    let _ = dropped(skb, ctx.arg(2), receiver);
}

/// `None` for what is no packet of a network, such as a message between Unix sockets.
#[inline(always)]
fn dropped(skb: Address, reason: u32, receiver: Address) -> Option<()> {
    if !receiver.is_null() {
        let socket = socket(receiver)?;
        // Else the copy that a sniffer was to get.
        if matches!(socket.family, AF_INET | AF_INET6) {
            count(owned(&socket, reason, flags::RECEIVE));
        }
        return Some(());
    }
    let came_in = read::<i32>(skb, SKB_IIF.load())? != 0 || AT_THE_DOOR.load().contains(&reason);
    let sender: Address = read(skb, SKB_SK.load())?;
    if sender.is_null() {
        return without_socket(skb, reason, came_in);
    }
    let socket = socket(sender)?;
    if !matches!(socket.family, AF_INET | AF_INET6 | AF_PACKET) {
        return None;
    }
    if !came_in {
        // The device is not set yet at some of these places, or stands for another thing (`rbnode`).
        count(owned(&socket, reason, 0));
        if !is_pods(socket.net) {
            by_address(skb, reason, flags::RECEIVE);
        }
        return Some(());
    }
    match device_net(skb) {
        // The socket that will receive it, found early.
        None => count(owned(&socket, reason, flags::RECEIVE)),
        Some(net) if net.cookie == socket.net.cookie => count(owned(&socket, reason, flags::RECEIVE)),
        // It came over a pair of devices from another namespace and still belongs to the socket there.
        Some(net) if !is_pods(net) => {
            count(owned(&socket, reason, 0));
            by_address(skb, reason, flags::RECEIVE);
        }
        Some(net) => count(in_namespace(net, reason, flags::RECEIVE)),
    }
    Some(())
}

#[inline(always)]
fn without_socket(skb: Address, reason: u32, came_in: bool) -> Option<()> {
    let flags = if came_in { flags::RECEIVE } else { 0 };
    let protocol: u16 = read(skb, SKB_PROTOCOL.load())?;
    match device_net(skb).or_else(|| route_net(skb)) {
        Some(net) if !is_pods(net) => {
            let from_pod = !FALSE_SOURCE.load().contains(&reason) && by_address(skb, reason, 0);
            let to_pod = by_address(skb, reason, flags::RECEIVE);
            if !from_pod && !to_pod {
                count(in_namespace(net, reason, flags));
            }
        }
        Some(net) => count(in_namespace(net, reason, flags)),
        // Older kernels take the device away before a socket refuses the packet; its destination is a pod all the same.
        None if came_in && by_address(skb, reason, flags::RECEIVE) => {}
        None if matches!(protocol, ETH_P_IP | ETH_P_IPV6) => lose(Loss::NoOwner),
        None => {}
    }
    Some(())
}

#[inline(always)]
fn is_pods(net: Net) -> bool {
    // SAFETY: the value is not used.
    unsafe { DROPS_NETNS.get(net.inode) }.is_some()
}

#[inline(always)]
fn owned(socket: &Socket, reason: u32, flags: u32) -> DropKey {
    DropKey { cgroup: socket.cgroup, ..in_namespace(socket.net, reason, flags) }
}

#[inline(always)]
fn in_namespace(net: Net, reason: u32, flags: u32) -> DropKey {
    DropKey { cgroup: 0, cookie: net.cookie, netns: net.inode, reason, flags, zero: 0 }
}

/// Counts for the pod that has the packet's destination address, or its source address without `RECEIVE`.
#[inline(always)]
fn by_address(skb: Address, reason: u32, direction: u32) -> bool {
    let Some(address) = address(skb, direction == flags::RECEIVE) else { return false };
    // SAFETY: the value is copied; the agent replaces it as a whole.
    let Some(cgroup) = (unsafe { DROPS_PODS.get(address) }) else { return false };
    let flags = direction | flags::BY_ADDRESS;
    count(DropKey { cgroup: *cgroup, cookie: 0, netns: 0, reason, flags, zero: 0 });
    true
}

/// RFC 791: source at 12, destination at 16; RFC 8200: at 8 and at 24.
#[inline(always)]
fn address(skb: Address, destination: bool) -> Option<[u8; 16]> {
    let head: Address = read(skb, SKB_HEAD.load())?;
    let header = head.wrapping_add(read::<u16>(skb, SKB_NETWORK.load())? as usize);
    match read::<u16>(skb, SKB_PROTOCOL.load())? {
        ETH_P_IP => {
            let [a, b, c, d] = read::<[u8; 4]>(header, if destination { 16 } else { 12 })?;
            Some([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d])
        }
        ETH_P_IPV6 => read(header, if destination { 24 } else { 8 }),
        _ => None,
    }
}

#[inline(always)]
fn socket(sk: Address) -> Option<Socket> {
    let family = read(sk, SK_FAMILY.load())?;
    let state: u8 = read(sk, SK_STATE.load())?;
    let cgroup = if HALF_SOCKETS.contains(&state) { None } else { cgroup(sk) };
    Some(Socket { family, cgroup: cgroup.unwrap_or(0), net: net(read(sk, SK_NET.load())?)? })
}

#[inline(always)]
fn cgroup(sk: Address) -> Option<u64> {
    let cgroup = pointer(sk, SK_CGROUP.load())?;
    read(pointer(cgroup, CGROUP_KN.load())?, KN_ID.load())
}

#[inline(always)]
fn device_net(skb: Address) -> Option<Net> {
    net(pointer(pointer(skb, SKB_DEV.load())?, DEV_NET.load())?)
}

#[inline(always)]
fn route_net(skb: Address) -> Option<Net> {
    let route = read::<usize>(skb, SKB_DST.load())? & DST_POINTER;
    if route == 0 {
        return None;
    }
    net(pointer(pointer(route as Address, DST_DEV.load())?, DEV_NET.load())?)
}

#[inline(always)]
fn net(net: Address) -> Option<Net> {
    let inode = read(net, NET_INUM.load())?;
    (inode >= FIRST_INODE).then_some(Net { inode, cookie: read(net, NET_COOKIE.load())? })
}

#[inline(always)]
fn pointer(base: Address, offset: u32) -> Option<Address> {
    read::<Address>(base, offset).filter(|pointer| !pointer.is_null())
}

#[inline(always)]
fn read<T>(base: Address, offset: u32) -> Option<T> {
    // SAFETY: the helper checks the address and fails where nothing can be read; the offset is this kernel's own.
    unsafe { bpf_probe_read_kernel(base.wrapping_add(offset as usize).cast::<T>()) }.ok()
}

#[inline(always)]
fn count(key: DropKey) {
    if DROPS.get_ptr_mut(key).is_none() {
        let _ = DROPS.insert(key, DropCount::default(), BPF_NOEXIST.into());
    }
    match DROPS.get_ptr_mut(key) {
        // SAFETY: the map gave a valid, aligned pointer that lives as long as the program runs. Others may write `last`
        // at the same time: a whole word, and either is right.
        Some(count) => unsafe {
            add::add(&raw mut (*count).packets, 1);
            (&raw mut (*count).last).write_volatile(bpf_ktime_get_boot_ns());
        },
        None => lose(Loss::TableFull),
    }
}

#[inline(always)]
fn lose(loss: Loss) {
    if let Some(counter) = DROPS_LOSSES.get_ptr_mut(loss as u32) {
        // SAFETY: the map gave a valid, aligned pointer that lives as long as the program runs.
        unsafe { add::add(counter, 1) };
    }
}
