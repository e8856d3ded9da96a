//! CPU, memory and processes of every container, read from cgroup files when the scrape comes.
//!
//! [`Reader`] gathers facts from files that stay open, [`Facts`] is what the files said, [`Usage`] is what
//! follows from it: the first two know cgroup v1, v2 and hybrid hosts, the last is pure.

mod block;
mod cgroup;
mod endings;
mod extent;
mod extra;
mod facts;
mod files;
mod filesystems;
#[cfg(any(fuzzing, test))]
pub mod fuzzing;
#[cfg(test)]
mod hostile_tests;
mod io;
mod known_cpu;
mod ledger;
mod machine;
mod memory;
mod network;
mod node;
mod oom;
mod parse;
mod places;
mod pods;
mod reader;
mod requests;
mod roots;
mod runqueue;
mod segments;
mod settings;
mod sums;
mod targets;
#[cfg(test)]
pub(crate) mod testing;
mod usage;

pub use block::BlockNames;
pub use cgroup::{Bandwidth, CgroupUsage};
pub use endings::{Endings, EndingsWatch};
pub use extent::Extent;
pub use extra::Extra;
pub use facts::{CpuFacts, Facts, MemoryEvents, PressureFacts, Source};
pub use files::raise_file_limit;
pub use filesystems::{FileSystem, FileSystems, Mounted, Space, file_systems, space};
pub use io::DeviceIo;
pub use ledger::{Entry, Ledger, Name, REMEMBERED, Store};
pub use machine::{Machine, Processors, online};
pub use memory::{NodeMemory, node_pressure};
pub use network::{Direction, Interface, Interfaces, interfaces};
pub use node::{NodeFacts, kernel_stats};
pub use oom::OomKills;
pub use parse::Limit;
pub use pods::{PodReader, PodUsage};
pub use reader::{ContainerUsage, Reader, Reading, SharedReader, TreeReading};
pub use roots::CgroupRoots;
pub use runqueue::RunQueue;
pub use sums::COUNTERS;
pub use targets::{Target, targets};
pub use usage::{Pressure, Quota, Usage, Waited};
