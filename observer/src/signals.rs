//! The signals that end a run.

use std::{future::Future, pin::Pin};

use anyhow::Context;
use tokio::{
    runtime::{Builder, Runtime},
    signal::unix::{SignalKind, signal},
};

/// Is ready at SIGTERM or SIGINT. To be called within a runtime; from then on the signals do not end the process.
///
/// # Errors
/// When they cannot be waited for.
pub(crate) fn terminated() -> anyhow::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate()).context("waiting for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("waiting for SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// The end of a run that has no runtime of its own: signals that come while it starts end it once it has started, in order.
pub(crate) struct Ending {
    runtime: Runtime,
    terminated: Pin<Box<dyn Future<Output = ()>>>,
}

impl Ending {
    /// From now on the signals do not end the process.
    ///
    /// # Errors
    /// When they cannot be waited for.
    pub(crate) fn expect() -> anyhow::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build().context("waiting for signals")?;
        let terminated = {
            let _within = runtime.enter();
            Box::pin(terminated()?)
        };
        Ok(Self { runtime, terminated })
    }

    /// Waits for one of them, if none has come yet.
    pub(crate) fn wait(self) {
        self.runtime.block_on(self.terminated);
    }
}
