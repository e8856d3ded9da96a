//! What this kernel can do; loading, attaching and pinning of the kernel programs; the maps they write.

mod accounting;
pub mod attach;
pub mod btf;
pub mod check;
pub mod decisions;
pub mod dns;
mod dns_clients;
pub mod edge_table;
pub mod ended;
pub mod fdinfo;
pub mod interface;
pub mod links;
pub mod load;
pub mod log_reader;
mod mapping;
pub mod names;
pub mod pins;
pub mod probes;
pub mod program;
mod sys;
pub(crate) mod text;

pub use accounting::Accounting;
pub use attach::Attacher;
pub use decisions::DecisionMap;
pub use dns::{DnsLosses, DnsRecords, PeerNames};
pub use dns_clients::DnsClients;
pub use edge_table::{Closing, EdgeReading, EdgeTable, Found, Leaving, Losses, Slot, SlotUse};
pub use ended::EndedMap;
pub use interface::InterfaceHooks;
pub use load::{Kernel, LoadError, LoadOptions, ephemeral_min};
pub use names::Names;
pub use observer_common::{
    abi::{DEFAULT_EDGES, VERSION as ABI_VERSION},
    tcp::SAMPLE_EVERY as RTT_SAMPLE_EVERY,
};
pub use pins::{PinError, Pins};
pub use program::{Program, Programs};
