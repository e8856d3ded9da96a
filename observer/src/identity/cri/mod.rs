//! The container runtime as a source of names, over the Container Runtime Interface (CRI), version 1.

mod client;
mod endpoint;
mod events;
mod follow;
mod later;
mod listing;
mod pace;

pub use endpoint::Endpoint;
pub use follow::{SOURCE, start};
