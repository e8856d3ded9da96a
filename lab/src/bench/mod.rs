//! What the agent costs, measured.

mod churn;
mod edges;
mod interface;
pub mod load;
mod overhead;
mod pair;
mod probe;
mod ratios;
mod resolver;
mod runtime;
mod scrape;
mod usage;

pub use churn::{Options as ChurnOptions, churn};
pub use edges::{Options as EdgesOptions, edges};
pub use interface::{Options as InterfaceOptions, interface};
pub use overhead::{Options as OverheadOptions, overhead};
pub use resolver::{Options as ResolverOptions, resolver};
pub use runtime::{Options as RuntimeOptions, runtime};
pub use scrape::{Options as ScrapeOptions, scrape};
