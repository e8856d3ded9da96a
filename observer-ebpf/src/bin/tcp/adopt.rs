//! Connections that are older than the agent: they live from now on, in the slot that their packets count in.

use core::mem::MaybeUninit;

use observer_common::{edge::Role, older::Adopted, tcp::Connection};

use crate::{
    add::add,
    connection, ends, live,
    maps::{TCP_QUALITY, TP_TOTAL_RETRANS},
    slot::{self, Caller},
    sock::{self, Peer, Sock, state},
};

/// Follows the connection of the socket at this address, though nobody has seen it begin; `other` is the socket at the other
/// end of a connection over loopback, or 0. `note` keeps what has to be known of it before it lives, unless there is no room,
/// and `forget` drops that.
///
/// An end that runs in the same moment may have found nothing yet, and the kernel writes the new state after it has. So this
/// is asked once more for what it has adopted: one that is over by then is taken back.
#[inline(always)]
pub fn adopt(sk: u64, other: u64, is_server: bool, note: impl FnOnce() -> bool, forget: impl Fn()) -> Adopted {
    if !lives(sk) {
        take_back(sk, forget);
        return Adopted::Gone;
    }
    if live::get(sk).is_some() {
        return Adopted::Known;
    }
    let slot = slot_of(sk, other, is_server);
    let Some(counters) = TCP_QUALITY.get_ptr_mut(slot) else { return Adopted::Gone };
    if !note() {
        return Adopted::Full;
    }
    let connection = Connection { slot, retransmitted: sock::read(sk, &TP_TOTAL_RETRANS) };
    // Not into a line: this program runs on kernels without atomic exchanges, too.
    if live::insert(sk, connection, false, |_| ()).is_err() {
        forget();
        return Adopted::Full;
    }
    // SAFETY: the map gave a valid, aligned pointer.
    unsafe { add(&raw mut (*counters).established, 1) };
    // Another connection has begun there meanwhile, and has found nothing in the other place.
    if live::is_in_line(sk)
        && let Some(connection) = live::remove(sk, false)
    {
        forget();
        connection::uncounted(connection);
        return Adopted::Known;
    }
    if !lives(sk) {
        take_back(sk, forget);
        return Adopted::Gone;
    }
    Adopted::Now
}

/// The socket is TCP's, and its connection is established and not over.
#[inline(always)]
pub fn lives(sk: u64) -> bool {
    sock::is_tcp(sk) && state::was_established(sock::state_of(sk))
}

/// A connection whose end found nothing. One that begins in this moment, in a socket that was another's, is in its old state
/// still and is not taken.
#[inline(always)]
fn take_back(sk: u64, forget: impl Fn()) {
    if sock::state_of(sk) != state::CLOSE {
        return;
    }
    if let Some(connection) = live::remove(sk, false) {
        forget();
        connection::uncounted(connection);
    }
}

/// The slot of its edge, which is made if there is none; [`slot::NONE`] when it is not observed. Not inlined: see
/// [`slot::find`].
#[inline(never)]
fn slot_of(sk: u64, other: u64, is_server: bool) -> u32 {
    let mut sock = MaybeUninit::uninit();
    let sock = Sock::read(sk, &mut sock);
    // What has carried packets since the agent is attached counts where they do.
    let cached = slot::cached(sock);
    if cached != 0 {
        return cached;
    }
    if !sock.ends().is_loopback() {
        return slot::by_key(sk, sock, if is_server { Caller::Them } else { Caller::Us });
    }
    let peer = if other != 0 && ends::are_ends(sock, other) { sock::cgroup_id(other) } else { 0 };
    let (role, port) = if is_server { (Role::Server, sock.num()) } else { (Role::Client, u16::from_be(sock.dport())) };
    ends::slot(sk, sock::cgroup_id(sk), peer, ends::port_and_flags(port, role, sock.is_ipv6()))
}
