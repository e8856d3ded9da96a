//! CPU, memory and processes of every container, read from cgroup files when the scrape comes.
//!
//! [`Reader`] gathers facts from files that stay open, [`Facts`] is what the files said, [`Usage`] is what
//! follows from it: the first two know cgroup v1, v2 and hybrid hosts, the last is pure.

mod facts;
mod files;
mod parse;
mod reader;
mod roots;
#[cfg(test)]
pub(crate) mod testing;
mod usage;

pub use facts::{Facts, Source};
pub use files::raise_file_limit;
pub use reader::{ContainerUsage, Reader, Reading};
pub use roots::CgroupRoots;
pub use usage::{Quota, Usage};
