//! The catalogue of metric families and what turns readings into them.
//!
//! A family is declared once, in [`catalogue`]. A [`Collect`] reads its source when the scrape comes and
//! writes samples into an [`Exposition`]; the [`Registry`] runs all collectors against one snapshot.

mod agent;
pub mod catalogue;
pub mod collectors;
pub mod compat;
pub mod describe;
mod exposition;
mod family;
mod label;
mod registry;

pub use agent::{AgentMetrics, BuildInfo, Direction, Probe, ProbeState};
pub use exposition::{Bounds, Exposition, Samples, Value};
pub use family::{Counter, Family, Gauge, Histogram, Kind, Row, Scalar, Type, Unit};
pub use label::LabelText;
pub use registry::{CONTENT_TYPE, Collect, Registry};
