//! What the TCP probe's programs and the agent agree on about connections whose end no program has seen: the kernel does not run a
//! program at a tracepoint inside of itself, and passes the event over.

/// Names of the programs. The one that looks at a connection stands in the way of counting, as in [`crate::older::programs`]. They
/// take the same arguments: the address of the socket, whether the agent has taken its line from it, and what was in it
/// ([`crate::tcp::Connection`], as a word).
pub mod programs {
    /// Ends a connection that is over. Attached nowhere, run by the agent.
    pub const MISSED: &str = "tcp_missed";
    /// The same where sockets are counted.
    pub const SOCKETS_MISSED: &str = "sockets_missed";
}

/// What came of the look at a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Missed {
    /// It is not over, or is followed no more.
    Lives = 0,
    /// It is over. Its line is for the agent to take, which then asks again.
    InLine = 1,
    /// It is over, and has counted.
    Counted = 2,
}
