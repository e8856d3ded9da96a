//! Edge counters: read from the maps, attributed, summed into series.

mod attribute;
mod budget;
mod decide;
mod decider;
mod drops;
mod heirs;
mod idle;
mod retire;
mod series;
mod tasks;

pub use attribute::{
    Knowledge, Peer, PeerDetail, PeerKind, UNIX, View, Who, external_peer, peer_address, peer_key, protocol_name,
    role_name,
};
pub use budget::{Budget, BudgetUse, Limits};
pub use decide::{Decision, Decisions, Plan};
pub use decider::Decider;
pub use drops::{
    DropMemory, DropSeries, Drops, NodeFacts, attribute as attribute_drops, pod_addresses, pod_namespaces,
};
pub use heirs::{go_on, lost_peers};
pub use idle::Idle;
pub use retire::{GoesOn, Refused, Retirement};
pub use series::{Labels, Samples, Series, SeriesKey, TimesKey, Totals, sum};
pub use tasks::{Task, Urgent, Waiting};
