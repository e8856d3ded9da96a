//! What turns facts into samples: one file for each source.

mod agent;
mod cadvisor;
mod dns;
mod drops;
mod info;
mod node;
mod oom;
mod pods;
mod process;
mod programs;
mod resolver;
mod resource_endpoint;
pub(in crate::metrics) mod resources;
mod runqueue;
mod tcp;
mod traffic;

pub use agent::AgentCollector;
pub use cadvisor::CadvisorCollector;
pub use dns::DnsCollector;
pub use drops::DropCollector;
pub use info::{CountedWhere, InfoCollector};
pub use node::NodeCollector;
pub use oom::OomCollector;
pub use pods::PodCollector;
pub use process::ProcessCollector;
pub use programs::ProgramCollector;
pub use resolver::ResolverCollector;
pub use resource_endpoint::ResourceEndpointCollector;
pub use resources::ResourceCollector;
pub use runqueue::RunQueueCollector;
pub use tcp::TcpMissesCollector;
pub use traffic::TrafficCollector;

use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds since 1970; `None` before.
fn unix_seconds(time: SystemTime) -> Option<f64> {
    time.duration_since(UNIX_EPOCH).ok().map(|d| d.as_secs_f64())
}
