//! Pod sandboxes: where they are, what they consist of, when they come and go.

mod model;

pub use model::{AttachPoint, Container, ContainerKind, QosClass, Runtime, Sandbox, SandboxKey};
