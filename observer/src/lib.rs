//! The agent: from kernel maps and cgroup files to Prometheus series.
//!
//! Data flows one way: kernel maps and files are read (`kernel`, `sandbox`, `resources`), ids become
//! identities (`identity`), counters become series (`traffic`, `metrics`), series are served (`http`).

pub mod agent;
pub mod cli;
pub mod clock;
pub mod config;
pub mod dns;
mod hash;
pub mod http;
pub mod identity;
pub mod kernel;
pub mod metrics;
mod parallel;
pub mod resolver;
pub mod resources;
pub mod sandbox;
mod signals;
pub mod traffic;
