//! The ends of a connection over loopback meet.
//!
//! No packet is seen in this mode, so nobody can be asked whose socket the other end is. But both ends become established
//! on this machine, the client first: it leaves in a line who it is, and the server finds it there. The line is chosen by
//! the namespace and the client's port, and sealed with the addresses and ports of both, so that it is read by the server of
//! this connection alone.

use observer_common::sockets::Waiting;

use crate::{
    exchange::compare_exchange,
    full::{Measures, Pointer},
    maps::{SKC_NET, SKC_NUM},
    own::{INET_SPORT, SOCKET_PAIRS},
    sock::{self, Ends, Peer, Sock},
};

/// What an end of a connection says of itself.
pub trait End: Peer {
    /// The lower half of the address of its network namespace: hardly two have the same.
    fn net(&self) -> u32;
}

impl End for Sock {
    #[inline(always)]
    fn net(&self) -> u32 {
        self.field::<u64>(&SKC_NET) as u32
    }
}

impl End for Pointer {
    #[inline(always)]
    fn net(&self) -> u32 {
        sock::lower_half(self.load(&SKC_NET))
    }
}

/// A client that has waited.
pub struct Client {
    /// The address of its socket.
    pub socket: u64,
    /// Its cgroup.
    pub cgroup: u64,
    /// What the kernel had measured when it was established.
    pub measures: Measures,
}

/// A tag of a socket's connection, the same for both of its ends; 0 when its packets do not stay on this host.
#[inline(always)]
pub fn tag(sock: &impl End, dialed: bool) -> u64 {
    let net = sock.net();
    sock.with_ends(|Ends { is_ipv6, local, remote, ports }| {
        let ends = Ends { is_ipv6, local, remote, ports };
        if !ends.is_loopback() {
            return 0;
        }
        let tag = if dialed {
            Waiting::tag(net, &local, &remote, ports)
        } else {
            Waiting::tag(net, &remote, &local, (ports.1, ports.0))
        };
        tag | 1
    })
}

/// A client begins to wait for its server; false when it finds no line. `exchanges`: the program may use atomic exchanges, and
/// no two clients take the same line.
#[inline(always)]
pub fn leave(net: u32, port: u16, tag: u64, client: Client, exchanges: bool) -> bool {
    let Client { socket, cgroup, measures: Measures { round_trip, retransmitted } } = client;
    let [near, far, next] = Waiting::lines(net, port, exchanges);
    let taken = |index| line(index).filter(|line| take(*line, socket, tag, exchanges));
    let Some(line) = taken(near).or_else(|| taken(far)).or_else(|| taken(next)) else { return false };
    let measures = u64::from(retransmitted) << 32 | u64::from(round_trip);
    // SAFETY: the map gave a valid, aligned pointer; whoever reads half of it sees that the seal is broken.
    unsafe {
        (&raw mut (*line).cgroup).write_volatile(cgroup);
        (&raw mut (*line).measures).write_volatile(measures);
        let sealed = Waiting::seal(sock::lower_half(socket), cgroup, measures, tag);
        (&raw mut (*line).sealed).write_volatile(sealed);
    }
    true
}

/// Takes a line that is free; or one that was left behind (an end that was missed) by an earlier connection of this socket, or
/// by one with the same addresses and ports.
#[inline(always)]
fn take(line: *mut Waiting, socket: u64, tag: u64, exchanges: bool) -> bool {
    match exchange(line, 0, socket, exchanges) {
        0 => true,
        there if there == socket => true,
        there => is_sealed(line, there, tag).is_some() && exchange(line, there, socket, exchanges) == there,
    }
}

/// A client that no server has found: true once. `exchanges` as for [`leave`].
#[inline(always)]
pub fn take_back(sk: u64, sock: &impl End, exchanges: bool) -> bool {
    // The socket may have given its port back already.
    let port = u16::from_be(sock::read(sk, &INET_SPORT));
    let [near, far, next] = Waiting::lines(sock.net(), port, exchanges);
    let is_its = |index| line(index).is_some_and(|line| exchange(line, sk, 0, exchanges) == sk);
    is_its(near) || is_its(far) || is_its(next)
}

/// A client waits whose socket is at this address, or its server begins to count for it in this moment.
#[inline(always)]
pub fn is_waiting(sk: u64) -> bool {
    let (net, port) = (sock::read::<u64>(sk, &SKC_NET) as u32, sock::read(sk, &SKC_NUM));
    let [near, far, next] = Waiting::lines(net, port, true);
    let is_its = |index| line(index).is_some_and(|line| socket(line) & !Waiting::MET == sk);
    is_its(near) || is_its(far) || is_its(next)
}

/// Goes on with the client of a server that is established now. Its line is its own until then, so that it is always in one
/// place or in the other.
#[inline(always)]
pub fn meet(net: u32, client_port: u16, tag: u64, exchanges: bool, then: impl FnOnce(Client)) {
    let [near, far, next] = Waiting::lines(net, client_port, exchanges);
    let met = |index| line(index).and_then(|line| Some((line, waiting(line, tag, exchanges)?)));
    if let Some((line, client)) = met(near).or_else(|| met(far)).or_else(|| met(next)) {
        then(client);
        // SAFETY: a line of the map; one word, so a reader sees old or new.
        unsafe { (&raw mut (*line).socket).write_volatile(0) };
    }
}

/// The client in a line, if it waits for the server of this connection. It does not any more.
#[inline(always)]
fn waiting(line: *mut Waiting, tag: u64, exchanges: bool) -> Option<Client> {
    let socket = socket(line);
    if socket == 0 || socket & Waiting::MET != 0 {
        return None;
    }
    let client = is_sealed(line, socket, tag)?;
    (exchange(line, socket, socket | Waiting::MET, exchanges) == socket).then_some(client)
}

/// What a line says of a socket, if it is of the connection of this tag.
#[inline(always)]
fn is_sealed(line: *mut Waiting, socket: u64, tag: u64) -> Option<Client> {
    // SAFETY: a line of the map.
    let (cgroup, measures, sealed) = unsafe {
        (
            (&raw const (*line).cgroup).read_volatile(),
            (&raw const (*line).measures).read_volatile(),
            (&raw const (*line).sealed).read_volatile(),
        )
    };
    let is_its = sealed == Waiting::seal(socket as u32, cgroup, measures, tag);
    let measures = Measures { round_trip: measures as u32, retransmitted: (measures >> 32) as u32 };
    is_its.then_some(Client { socket, cgroup, measures })
}

/// Puts `new` in the place of the socket `old`, if that is there, and tells what was.
#[inline(always)]
fn exchange(line: *mut Waiting, old: u64, new: u64, exchanges: bool) -> u64 {
    // SAFETY: a line of the map.
    unsafe {
        let place = &raw mut (*line).socket;
        if exchanges {
            return compare_exchange(place, old, new);
        }
        let there = place.read_volatile();
        if there == old {
            place.write_volatile(new);
        }
        there
    }
}

#[inline(always)]
fn socket(line: *mut Waiting) -> u64 {
    // SAFETY: a line of the map.
    unsafe { (&raw const (*line).socket).read_volatile() }
}

#[inline(always)]
fn line(index: u32) -> Option<*mut Waiting> {
    SOCKET_PAIRS.get_ptr_mut(index)
}
