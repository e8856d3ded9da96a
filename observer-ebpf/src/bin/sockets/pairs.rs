//! The ends of a connection over loopback meet.
//!
//! No packet is seen in this mode, so nobody can be asked whose socket the other end is. But both ends become established
//! on this machine, the client first: it leaves in a line who it is, and the server finds it there. The line is chosen by
//! the namespace and the client's port, and sealed with the addresses and ports of both, so that it is read by the server of
//! this connection alone.

use observer_common::{counters::Loss, sockets::Waiting};

use crate::{
    full::{Measures, Pointer},
    maps::{SKC_NET, lose},
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

/// A client begins to wait for its server.
#[inline(always)]
pub fn leave(net: u32, port: u16, tag: u64, client: Client) {
    let [near, far, next] = Waiting::lines(net, port);
    let is_free = |line: &*mut Waiting| is_of(*line, 0);
    let found = line(near).filter(is_free).or_else(|| line(far).filter(is_free)).or_else(|| {
        let last = line(next)?;
        if !is_free(&last) {
            // The one that waited there counts when it ends: see `life::never_seen`.
            lose(Loss::ConnectionsFull);
        }
        Some(last)
    });
    let Some(line) = found else { return };
    let Client { socket, cgroup, measures: Measures { round_trip, retransmitted } } = client;
    let measures = u64::from(retransmitted) << 32 | u64::from(round_trip);
    // SAFETY: the map gave a valid, aligned pointer; whoever reads half of it sees that the seal is broken.
    unsafe {
        (&raw mut (*line).socket).write_volatile(socket);
        (&raw mut (*line).cgroup).write_volatile(cgroup);
        (&raw mut (*line).measures).write_volatile(measures);
        let sealed = Waiting::seal(sock::lower_half(socket), cgroup, measures, tag);
        (&raw mut (*line).sealed).write_volatile(sealed);
    }
}

/// A client that no server has found: true once.
#[inline(always)]
pub fn take_back(sk: u64, sock: &impl End) -> bool {
    // The socket may have given its port back already.
    let [near, far, next] = Waiting::lines(sock.net(), u16::from_be(sock::read(sk, &INET_SPORT)));
    let is_its = |line: &*mut Waiting| is_of(*line, sk);
    let found = line(near).filter(is_its).or_else(|| line(far).filter(is_its)).or_else(|| line(next).filter(is_its));
    found.is_some_and(|line| {
        free(line);
        true
    })
}

/// The client of a server that is established now.
#[inline(always)]
pub fn meet(net: u32, client_port: u16, tag: u64) -> Option<Client> {
    let [near, far, next] = Waiting::lines(net, client_port);
    waiting(near, tag).or_else(|| waiting(far, tag)).or_else(|| waiting(next, tag))
}

/// The client in a line, which is another's from now on.
#[inline(always)]
fn waiting(index: u32, tag: u64) -> Option<Client> {
    let line = line(index)?;
    // SAFETY: the map gave a valid, aligned pointer.
    let (socket, cgroup, measures, sealed) = unsafe {
        (
            (&raw const (*line).socket).read_volatile(),
            (&raw const (*line).cgroup).read_volatile(),
            (&raw const (*line).measures).read_volatile(),
            (&raw const (*line).sealed).read_volatile(),
        )
    };
    if socket == 0 || sealed != Waiting::seal(socket as u32, cgroup, measures, tag) {
        return None;
    }
    free(line);
    let measures = Measures { round_trip: measures as u32, retransmitted: (measures >> 32) as u32 };
    Some(Client { socket, cgroup, measures })
}

/// This socket waits in a line, or nobody (0).
#[inline(always)]
fn is_of(line: *mut Waiting, socket: u64) -> bool {
    // SAFETY: a line of the map.
    unsafe { (&raw const (*line).socket).read_volatile() == socket }
}

#[inline(always)]
fn free(line: *mut Waiting) {
    // SAFETY: a line of the map; one word, so a reader sees old or new.
    unsafe { (&raw mut (*line).socket).write_volatile(0) };
}

#[inline(always)]
fn line(index: u32) -> Option<*mut Waiting> {
    SOCKET_PAIRS.get_ptr_mut(index)
}
