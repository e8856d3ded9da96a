//! Who everyone is: an immutable snapshot that turns cgroup ids and addresses into names.

mod snapshot;

pub use snapshot::{Owner, Snapshot};
