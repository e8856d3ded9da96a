//! DNS as containers see it: answers by type and outcome, how long they took, and the names of addresses.
//!
//! The kernel programs hand over packets between containers and resolvers ([`crate::kernel::DnsRecords`]); here they are
//! read. Everything but [`Feed`] is pure.

mod codes;
mod feed;
#[cfg(any(fuzzing, test))]
pub mod fuzzing;
mod keep;
mod latency;
mod names;
mod parse;
mod show;
mod stream;
mod table;

pub use codes::{Qtype, Rcode};
pub use feed::{Feed, Seen};
pub use keep::Keep;
pub use latency::{BOUNDS, Durations};
pub use names::{Budget, Changes, NameUse, Names};
pub use show::{Container, Memory, Shown, show};
pub use table::{Client, Table, Unread};

/// The resolvers' ports when none are given, as the kernel programs take them.
#[must_use]
pub fn default_ports() -> u64 {
    observer_common::dns::pack_ports(&[53])
}
