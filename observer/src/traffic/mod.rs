//! Edge counters: read from the maps, attributed, summed into series.

mod attribute;
mod retire;
mod series;

pub use attribute::{Peer, PeerDetail, PeerKind, protocol_name, role_name};
pub use retire::Retirement;
pub use series::{Series, SeriesKey, Totals, sum};
