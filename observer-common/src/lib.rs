//! What the kernel programs and the agent agree on.
//!
//! Every type here crosses the kernel boundary: `repr(C)`, no implicit padding, sizes asserted at compile
//! time. A change of any layout, map or meaning needs a new [`abi::VERSION`], because maps outlive the agent.

#![no_std]

pub mod abi;
pub mod cache;
pub mod counters;
pub mod edge;
pub mod record;
