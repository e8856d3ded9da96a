//! What the kernel programs and the agent agree on.
//!
//! Every type here crosses the kernel boundary: `repr(C)`, no implicit padding, sizes asserted at compile
//! time. A change of any layout, map or meaning needs a new [`abi::VERSION`], because maps outlive the agent. A further map
//! that the agent alone writes and reads needs none: an agent makes it where the one before had none.

#![no_std]

#[cfg(test)]
extern crate std;

pub mod abi;
pub mod cache;
pub mod counters;
pub mod decision;
pub mod dns;
pub mod drops;
pub mod edge;
pub mod interface;
pub mod missed;
pub mod older;
pub mod oom;
pub mod packet;
pub mod record;
pub mod runqueue;
pub mod sockets;
pub mod tcp;
pub mod unix;
