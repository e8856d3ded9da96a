//! The names that the kubelet and cAdvisor use, for dashboards, rules and autoscalers that were written for them.
//!
//! A catalogue for each path, and [`MISSING`]: what the kubelet has and this has not, with the reason. A test holds both
//! together with what a real kubelet served.

pub mod cadvisor;
pub mod describe;
mod missing;
pub mod resource;

pub use missing::{MISSING, Missing};

/// The path that stands for the kubelet's of the same name.
pub const CADVISOR_PATH: &str = "/metrics/cadvisor";
/// The path that stands for the kubelet's of the same name.
pub const RESOURCE_PATH: &str = "/metrics/resource";
