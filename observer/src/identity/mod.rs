//! Who everyone is: an immutable snapshot that turns cgroup ids and addresses into names.

pub mod podsfile;
mod snapshot;

pub use podsfile::{PodIdentity, PodIndex, PodsFile, PodsFileError};
pub use snapshot::{Owner, Snapshot};
