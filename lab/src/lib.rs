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
pub mod api_server;
pub mod bench;
pub mod bpffs;
pub mod cases;
pub mod cgroup;
pub mod cri_node;
pub mod demo;
pub mod guest;
pub mod holdings;
pub mod ids;
pub mod kube_server;
pub mod kubelet;
pub mod launch;
pub mod loopdev;
pub mod metrics_server;
mod netlink;
pub mod netns;
pub mod node;
pub mod owner;
pub mod pod;
pub mod podman;
pub mod podsfile;
pub mod process;
pub mod relay;
mod run_statistics;
pub mod samples;
mod stuck;
pub mod sweep;
pub mod truth;
pub mod vm_init;

pub use sweep::sweep;
