//! `observer resolver`: watches the cluster once, and tells agents who has the addresses that they see.
//!
//! `core` is the table and the subscriptions, `service` speaks to agents (`observer-resolver` has the protocol).

mod certificate;
mod core;
mod options;
mod run;
mod server;
mod service;
mod shared;
mod token;
mod watch;

pub use self::{
    certificate::CertificateFiles,
    core::{MAX_SUBSCRIPTIONS, Sizes},
    options::{DEFAULT_PORT, ResolverOptions},
    run::run,
    server::{Listener, Listening},
    shared::{Counts, MAX_AGENTS, Refusal, Shared},
    token::Token,
};
