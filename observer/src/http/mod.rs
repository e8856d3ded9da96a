//! The web side: the metrics, the landing page, health. Knows the registry alone, and that as a function.
//!
//! It runs on a thread and runtime of its own ([`Server::start`]), so that neither load in the rest of the agent
//! nor a slow scrape keeps `/healthz` from answering.

mod body;
mod connection;
mod landing;
mod readiness;
mod routes;
mod server;

pub use landing::{PodLine, ProbeLine, Status};
pub use readiness::{Latch, Readiness};
pub use routes::{ScrapeProvider, StatusProvider, WebState};
pub use server::{Server, bind, serve};
