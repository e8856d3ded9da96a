//! What turns facts into samples: one file for each source.

mod agent;
mod info;
mod process;
pub(in crate::metrics) mod resources;
mod traffic;

pub use agent::AgentCollector;
pub use info::InfoCollector;
pub use process::ProcessCollector;
pub use resources::ResourceCollector;
pub use traffic::TrafficCollector;

use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds since 1970; `None` before.
fn unix_seconds(time: SystemTime) -> Option<f64> {
    time.duration_since(UNIX_EPOCH).ok().map(|d| d.as_secs_f64())
}
