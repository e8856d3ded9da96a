//! Pod sandboxes: where they are, what they consist of, when they come and go.

pub mod addresses;
mod assemble;
mod attached;
mod attacher;
pub mod classify;
mod discovery;
mod hierarchy;
mod memory;
mod model;
pub mod process;
pub mod scan;
mod schedule;
mod table;
mod watch;

pub use attached::SandboxHooks;
pub use discovery::{Discovery, DiscoveryOptions};
pub use hierarchy::{Hierarchies, HierarchyError, Mode};
pub use memory::Remembered;
pub use model::{AttachPoint, Container, ContainerKind, QosClass, Runtime, Sandbox, SandboxKey};
pub use table::SandboxTable;
