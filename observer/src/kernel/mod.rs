//! What this kernel can do; loading, attaching and pinning of the kernel programs; the maps they write.

pub mod attach;
pub mod check;

pub mod edge_table;
pub mod load;
pub mod log_reader;
pub mod names;
pub mod pins;
mod sys;

pub use attach::Attacher;
pub use edge_table::{EdgeReading, EdgeTable, Losses};
pub use load::{Kernel, LoadError, LoadOptions};
pub use names::Names;
pub use observer_common::abi::DEFAULT_EDGES;
pub use pins::{PinError, Pins};
