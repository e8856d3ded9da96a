//! Pod sandboxes: where they are, what they consist of, when they come and go.

pub mod addresses;
mod assemble;
mod attached;
mod attacher;
mod choice;
pub mod classify;
mod discovery;
pub(crate) mod hierarchy;
mod hook;
mod memory;
mod model;
pub mod process;
pub mod scan;
mod schedule;
mod table;
mod watch;

pub use attached::SandboxHooks;
pub use attacher::prefer_this_thread;
pub use discovery::{Discovery, DiscoveryOptions};
#[cfg(fuzzing)]
pub use hierarchy::fuzz as fuzz_mounts;
pub use hierarchy::{Hierarchies, HierarchyError, Mode};
pub use hook::{DEFAULT_HANDLERS, Handlers, Hook};
pub use memory::Remembered;
pub use model::{AttachPoint, Container, ContainerKind, QosClass, Runtime, Sandbox, SandboxKey};
pub use scan::Sighting;
#[cfg(fuzzing)]
pub use scan::fuzz as fuzz_processes;
pub use table::SandboxTable;
