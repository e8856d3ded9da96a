//! The log: to standard error, as text or JSON, records of the `log` crate included.

use std::io::{self, IsTerminal};

use anyhow::Context;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::{filter::Targets, fmt, layer::SubscriberExt, util::SubscriberInitExt};

use crate::config::{LogFormat, LogLevel, LogOptions};

/// Sets up the log of this process; call it once.
///
/// # Errors
/// When a log was set up before.
pub fn init(options: LogOptions) -> anyhow::Result<()> {
    let registry = tracing_subscriber::registry().with(filter(options.level));
    match options.format {
        LogFormat::Text => {
            let colours = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
            registry.with(fmt::layer().with_writer(io::stderr).with_ansi(colours)).try_init()
        }
        LogFormat::Json => registry.with(fmt::layer().json().flatten_event(true).with_writer(io::stderr)).try_init(),
    }
    .context("cannot set up the log: this process has one already")
}

/// Own messages (the kernel programs' too) at the chosen level, those of other libraries at most at info; what the
/// loader does, instruction by instruction, only at trace.
fn filter(level: LogLevel) -> Targets {
    let own = match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    let loader = if level == LogLevel::Trace { own } else { own.min(LevelFilter::INFO) };
    Targets::new()
        .with_default(own.min(LevelFilter::INFO))
        .with_target("observer", own)
        .with_target("observer_ebpf", own)
        .with_target("aya", loader)
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    #[test]
    fn other_libraries_are_never_louder_than_info() {
        let debug = filter(LogLevel::Debug);
        assert!(debug.would_enable("observer::sandbox", &Level::DEBUG));
        assert!(debug.would_enable("observer_ebpf", &Level::DEBUG));
        assert!(!debug.would_enable("hyper::proto", &Level::DEBUG));
        assert!(debug.would_enable("hyper::proto", &Level::INFO));
        assert!(!filter(LogLevel::Error).would_enable("hyper::proto", &Level::INFO));
    }
}
