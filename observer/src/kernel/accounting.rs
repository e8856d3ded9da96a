//! The two ways of counting traffic.

/// What is counted, and by which programs. Both ways give the same numbers other meanings, so each has pins of its own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Accounting {
    /// Every packet of every protocol, at IP level.
    #[default]
    Packets,
    /// The payload of TCP connections, from the sockets' own counters. No program runs for a packet.
    Sockets,
}

impl Accounting {
    /// The other one.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Packets => Self::Sockets,
            Self::Sockets => Self::Packets,
        }
    }
}
