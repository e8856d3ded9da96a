//! The ends of a connection over loopback meet.
//!
//! No packet is seen in this mode, so nobody can be asked whose socket the other end is. But both ends become established
//! on this machine, the client first: it leaves its address in a line, and the server finds it there. The line is chosen by
//! the namespace and the client's port. It says nothing by itself: the socket that it leads to is the other end when its
//! addresses and ports say so.

use observer_common::{cache::SPREAD, sockets::PAIR_LINES};

use crate::{
    ends,
    maps::SKC_NET,
    own::{INET_SPORT, SOCKET_PAIRS},
    sock::{self, Peer, Sock},
};

#[inline(always)]
fn line(sock: &Sock, client_port: u16) -> Option<*mut u64> {
    let namespace: u64 = sock.field(&SKC_NET);
    let spread = (namespace >> 6).wrapping_mul(SPREAD) >> 48;
    SOCKET_PAIRS.get_ptr_mut((u32::from(client_port) ^ spread as u32) & (PAIR_LINES - 1))
}

/// A client waits for its server.
#[inline(always)]
pub fn leave(sk: u64, sock: &Sock) {
    if let Some(line) = line(sock, sock.num()) {
        // SAFETY: the map gave a valid, aligned pointer; one word, so a reader sees old or new.
        unsafe { line.write_volatile(sk) };
    }
}

/// A client that no server has found: true once.
#[inline(always)]
pub fn take_back(sk: u64, sock: &Sock) -> bool {
    // The socket may have given its port back already.
    let client_port = u16::from_be(sock::read(sk, &INET_SPORT));
    let Some(line) = line(sock, client_port) else { return false };
    // SAFETY: as above.
    unsafe {
        if line.read_volatile() != sk {
            return false;
        }
        line.write_volatile(0);
    }
    true
}

/// The client of a server that is established now, or 0.
#[inline(never)]
pub fn meet(sock: &Sock) -> u64 {
    let port = u16::from_be(sock.dport());
    let Some(line) = line(sock, port) else { return 0 };
    // SAFETY: as above.
    let client = unsafe { line.read_volatile() };
    if client == 0 {
        return 0;
    }
    if !ends::are_ends(sock, client) {
        return 0;
    }
    // SAFETY: as above.
    unsafe { line.write_volatile(0) };
    client
}
