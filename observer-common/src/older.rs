//! What the TCP probe's programs and the agent agree on about connections that are older than the agent.

/// Names of the programs. The one that begins to follow a connection stands in the way of counting: of packets
/// [`ADOPT`](programs::ADOPT), of sockets [`crate::sockets::programs::ADOPT`]. They take the same arguments.
pub mod programs {
    /// Begins to follow a connection. Attached nowhere, run by the agent.
    pub const ADOPT: &str = "tcp_adopt";
    /// Tells of TCP sockets that processes have open. An iterator.
    pub const OPEN: &str = "tcp_open";
}

/// Names of the constants that the loader sets beside those of the TCP probe: offsets of fields (`u32`).
pub mod globals {
    /// `struct file`: the private data, of a socket its `struct socket`.
    pub const FILE_PRIVATE: &str = "FILE_PRIVATE";
    /// `struct file`: its inode.
    pub const FILE_INODE: &str = "FILE_INODE";
    /// `struct inode`: the mode.
    pub const INODE_MODE: &str = "INODE_MODE";
    /// `struct socket`: the `struct sock`.
    pub const SOCKET_SK: &str = "SOCKET_SK";
}

/// A TCP socket that a process has open.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Open {
    /// Its address.
    pub socket: u64,
    /// The address of its network namespace.
    pub net: u64,
    /// Its own port, in host byte order.
    pub port: u16,
    /// The peer's, in host byte order.
    pub peer_port: u16,
    /// Its state, of `include/net/tcp_states.h`.
    pub state: u32,
}

/// What came of the wish to follow a connection that is older than the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Adopted {
    /// It is over, or not observed.
    Gone = 0,
    /// Something happened to it in this moment: what it had counted is not sure.
    Busy = 1,
    /// It is followed already.
    Known = 2,
    /// No room.
    Full = 3,
    /// It is followed from now on.
    Now = 4,
}

/// States of a socket, of `include/net/tcp_states.h`: it waits for connections.
pub const LISTEN: u32 = 10;

const _: () = assert!(size_of::<Open>() == 24);
