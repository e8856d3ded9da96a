//! What the programs of the socket mode and the agent agree on: TCP payload from the sockets' own counters.

use crate::cache::SPREAD;

/// Names of the maps of this object alone. [`crate::tcp::maps::SHARED`] are found pinned.
pub mod maps {
    /// Address of a kernel socket to [`super::Base`]: what sockets had counted that are older than the agent. Pinned.
    pub const BASES: &str = "SOCKET_BASES";
    /// One `u64`: how many sockets have had a place in [`BASES`]. Pinned.
    pub const OLDER: &str = "SOCKETS_OLDER";
    /// [`super::Waiting`]: clients over loopback whose other end is not established yet.
    pub const PAIRS: &str = "SOCKET_PAIRS";
    /// [`super::Asked`]: what the agent asks the snapshot for, and the answers.
    pub const ASKED: &str = "SOCKETS_ASKED";

    /// What is pinned of them.
    pub const PINNED: [&str; 3] = [BASES, OLDER, PAIRS];
}

/// Names of the programs.
pub mod programs {
    /// Connections begin, end, or fail; in the place of [`crate::tcp::programs::CHANGE`].
    pub const CHANGE: (&str, &str) = ("sockets_change", "inet_sock_set_state");
    /// The same in the place of [`crate::tcp::programs::STATE`].
    pub const STATE: (&str, &str) = ("sockets_state", "inet_sock_set_state");
    /// Reads what live sockets have counted. Attached nowhere, run by the agent.
    pub const READ: &str = "sockets_read";
    /// Begins to count for a socket that is older than the agent; in the place of [`crate::older::programs::ADOPT`].
    pub const ADOPT: &str = "sockets_adopt";
}

/// Names of the constants that the loader sets beside those of the TCP probe: offsets of fields (`u32`).
pub mod globals {
    /// `struct sock`: its flags.
    pub const FLAGS: &str = "SK_FLAGS";
    /// The spin lock.
    pub const LOCK: &str = "SK_LOCK";
    /// Whether a process owns the socket.
    pub const OWNED: &str = "SK_OWNED";
    /// `struct tcp_sock`: payload sent, again and again included.
    pub const BYTES_SENT: &str = "TP_BYTES_SENT";
    /// Payload sent again.
    pub const BYTES_RETRANS: &str = "TP_BYTES_RETRANS";
    /// Sequence numbers received in order: payload, and one for the end of the stream.
    pub const BYTES_RECEIVED: &str = "TP_BYTES_RECEIVED";
    /// `struct inet_sock`: its own port, which stays when the socket gives it back.
    pub const SPORT: &str = "INET_SPORT";
}

/// Lines of [`maps::PAIRS`].
pub const PAIR_LINES: u32 = NEAR_LINES + FAR_LINES;
/// Those that a client tries first; a power of two. So few that they stay in the processor's caches: most clients wait for
/// microseconds.
const NEAR_LINES: u32 = 64;
/// Those for when it is taken; a power of two. Clients wait long whose server has a full queue, or waits for a request before it
/// accepts (`TCP_DEFER_ACCEPT`).
const FAR_LINES: u32 = 32_768;
/// Sockets that fit [`maps::BASES`]. Those that find no place are not counted, and told.
pub const MAX_BASES: u32 = 16_384;
/// Sockets that one run of the snapshot reads.
pub const BATCH: u32 = 128;

/// What a socket had counted when the agent came.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Base {
    /// Payload sent.
    pub tx: u64,
    /// Payload received.
    pub rx: u64,
}

/// A client over loopback that waits for its server.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waiting {
    /// The address of its socket, with [`Waiting::MET`]; 0 when nobody waits.
    pub socket: u64,
    /// Its cgroup.
    pub cgroup: u64,
    /// What the kernel had measured when it was established: the smoothed round trip time in microseconds, and in the upper
    /// half segments that were sent again.
    pub measures: u64,
    /// Of [`Waiting::seal`]. Where programs have no atomic exchange two clients may write to a line at once, and what is left is
    /// then nobody's.
    pub sealed: u64,
}

impl Waiting {
    /// What binds the other fields together, and to the connection of this tag. Of the socket's address the lower half is enough.
    #[inline(always)]
    #[must_use]
    pub const fn seal(socket: u32, cgroup: u64, measures: u64, tag: u64) -> u64 {
        let mut hash = (socket as u64 ^ tag).wrapping_mul(SPREAD);
        hash ^= hash >> 29;
        hash = (hash ^ cgroup).wrapping_mul(SPREAD);
        hash ^= hash >> 29;
        (hash ^ measures).wrapping_mul(SPREAD)
    }

    /// A tag of a connection, the same for both ends. Addresses are in network byte order, the client's port comes first; `net`
    /// tells namespaces apart.
    #[inline(always)]
    #[must_use]
    pub const fn tag(net: u32, client: &[u32; 4], server: &[u32; 4], ports: (u16, u16)) -> u64 {
        // Products that do not wait for each other; any odd constants do.
        let client = word(client, 0).wrapping_mul(SPREAD) ^ word(client, 2).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let server =
            word(server, 0).wrapping_mul(0x94d0_49bb_1331_11eb) ^ word(server, 2).wrapping_mul(0xff51_afd7_ed55_8ccd);
        let rest = (net as u64) << 32 | (ports.0 as u64) << 16 | ports.1 as u64;
        (client ^ client >> 32).wrapping_add(server ^ server >> 31) ^ rest.wrapping_mul(0xc4ce_b9fe_1a85_ec53)
    }

    /// In the address of a socket: its server has met it. Sockets are aligned.
    pub const MET: u64 = 1;

    /// The lines that the client of this port may wait in: the first that is free. Where programs have no atomic exchange
    /// (`exchanges`) the one is first that hardly another client has.
    #[inline(always)]
    #[must_use]
    pub const fn lines(net: u32, client_port: u16, exchanges: bool) -> [u32; 3] {
        // Ports that the kernel gives go up by two.
        let spread = ((net >> 6) as u64).wrapping_mul(SPREAD) >> 48;
        let (near, far) = ((client_port >> 1) as u32 ^ spread as u32, client_port as u32 ^ spread as u32);
        let (near, far) = (near & (NEAR_LINES - 1), NEAR_LINES + (far & (FAR_LINES - 1)));
        if exchanges { [near, far, far ^ 1] } else { [far, far ^ 1, near] }
    }
}

/// Two words of an address.
const fn word(address: &[u32; 4], at: usize) -> u64 {
    (address[at] as u64) << 32 | address[at + 1] as u64
}

/// One socket of a snapshot.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// The address, from [`crate::tcp::maps::LIVE`]. Written by the agent.
    pub socket: u64,
    /// The slot that it counts in now.
    pub slot: u32,
    /// 1 when the rest is right: the connection lives. What is sent and received is then no more than the truth, and the
    /// truth when nothing happens to the socket in this moment.
    pub valid: u32,
    /// Payload sent since it is counted.
    pub tx: u64,
    /// Payload received since it is counted.
    pub rx: u64,
}

const _: () = assert!(size_of::<Base>() == 16);
const _: () = assert!(size_of::<Asked>() == 32);
const _: () = assert!(size_of::<Waiting>() == 32);
const _: () = assert!(NEAR_LINES.is_power_of_two() && FAR_LINES.is_power_of_two());

#[cfg(feature = "user")]
mod user {
    // SAFETY: integers only, no padding, every bit pattern is valid.
    unsafe impl aya::Pod for super::Base {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Asked {}
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: [u32; 4] = [0, 0, 0xffff_0000, 0x0100_007f];
    const SERVER: [u32; 4] = [0, 0, 0xffff_0000, 0x0200_007f];

    #[test]
    fn connections_have_tags_of_their_own() {
        let tag = Waiting::tag(1, &CLIENT, &SERVER, (40_000, 80));
        for other in [
            Waiting::tag(2, &CLIENT, &SERVER, (40_000, 80)),
            Waiting::tag(1, &SERVER, &CLIENT, (40_000, 80)),
            Waiting::tag(1, &CLIENT, &SERVER, (80, 40_000)),
            Waiting::tag(1, &CLIENT, &CLIENT, (40_000, 80)),
            Waiting::tag(1, &[1, 0, 0xffff_0000, 0x0100_007f], &SERVER, (40_000, 80)),
        ] {
            assert_ne!(tag, other);
        }
    }

    #[test]
    fn a_client_has_three_lines() {
        for port in 0..=u16::MAX {
            let [near, far, next] = Waiting::lines(0x8123_4f40, port, true);
            assert!(
                near < NEAR_LINES
                    && (NEAR_LINES..PAIR_LINES).contains(&far)
                    && (NEAR_LINES..PAIR_LINES).contains(&next)
            );
            assert_ne!(far, next);
            assert_eq!(Waiting::lines(0x8123_4f40, port, false), [far, next, near]);
        }
    }

    #[test]
    fn a_seal_is_broken_by_a_word_of_another() {
        let seal = Waiting::seal(0x1000, 77, 30, 5);
        for other in [
            Waiting::seal(0x1800, 77, 30, 5),
            Waiting::seal(0x1000, 78, 30, 5),
            Waiting::seal(0x1000, 77, 31, 5),
            Waiting::seal(0x1000, 77, 30, 6),
            Waiting::seal(0, 77, 30, 5),
        ] {
            assert_ne!(seal, other);
        }
    }
}
