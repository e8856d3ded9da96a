//! The life of the agent: start order and shutdown.

use crate::config::RunOptions;

/// Runs the agent until SIGTERM or SIGINT.
///
/// # Errors
/// Whatever keeps it from starting.
#[expect(clippy::needless_pass_by_value, reason = "the agent owns its options")]
pub fn run(options: RunOptions) -> anyhow::Result<()> {
    anyhow::bail!("the agent is not built yet (would listen on {})", options.web.listen_address)
}
