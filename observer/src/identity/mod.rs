//! Who everyone is: an immutable snapshot that turns cgroup ids and addresses into names.

pub mod cluster;
pub mod cri;
mod document;
pub mod kube;
mod names;
pub mod pod;
pub mod podsfile;
mod requests;
mod selection;
mod selector;
mod snapshot;
mod source;
mod sources;
mod successors;
mod workload;

pub use cri::Endpoint;
pub use kube::{ApiServer, KubeOptions, KubeUrl};
pub use names::{Names, Sources, merge};
pub use pod::{ContainerIdentity, Pairs, PodIdentity, PodIndex, SandboxIdentity};
pub use podsfile::{PodsFile, PodsFileError};
pub use requests::{Limits, Requests, quantity};
pub use selection::{NameSet, PodFacts, Selection, Verdict};
pub use selector::{Selector, SelectorError};
pub use snapshot::{Owner, Snapshot};
pub use source::{Source, SourceNames};
pub use sources::Following;
pub use successors::{Successors, gone_inside};
