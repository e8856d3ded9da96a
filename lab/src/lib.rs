//! Real pod sandboxes without an orchestrator, known traffic and independent truth.
//!
//! A [`node::Node`] is a network namespace with a bridge. A [`pod::Pod`] on it has what a real one has: a
//! cgroup for each container in every mounted hierarchy, a pause process that the namespaces belong to,
//! and containers that run an [`actor`], which makes exactly the traffic that the driver asks for and
//! answers with exact facts. [`truth`] reads what the kernel itself counted, [`agent`] runs the agent and
//! reads its metrics. Everything is removed when its guard is dropped; [`sweep()`] removes what a killed
//! run has left.
//!
//! A container's processes are started through a launcher, the `observer-lab` binary (see
//! [`launch::Launcher`]), so that they are in their cgroups before they open any socket.

pub mod actor;
pub mod agent;
pub mod bench;
pub mod bpffs;
pub mod cases;
pub mod cgroup;
pub mod demo;
pub mod ids;
pub mod launch;
mod netlink;
pub mod netns;
pub mod node;
pub mod owner;
pub mod pod;
pub mod podsfile;
pub mod process;
pub mod samples;
pub mod sweep;
pub mod truth;
pub mod vm_init;

pub use sweep::sweep;
