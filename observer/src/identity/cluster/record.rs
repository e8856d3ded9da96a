//! Who an address is.

use serde::{Deserialize, Serialize};

/// Who has an address. Only what the `peer_*` labels say, so that a cluster's addresses need little memory.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PeerRecord {
    /// A pod with an address of its own (never one on the host network).
    Pod {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// The top owner's kind; `Pod` for one that nobody owns.
        workload_kind: String,
        /// The top owner's name; the pod's own for one that nobody owns.
        workload: String,
    },
    /// A Service: an address before translation, or an endpoint of it that is no pod.
    Service {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// A node.
    Node {
        /// Its name.
        name: String,
    },
}
