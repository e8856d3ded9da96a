//! What the agent costs, measured.

pub mod load;
mod overhead;
mod ratios;

pub use overhead::{Options, overhead};
