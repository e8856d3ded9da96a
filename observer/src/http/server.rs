//! Listening, serving, draining.

use std::{
    future::Future,
    io::{self, ErrorKind},
    net::{SocketAddr, TcpListener},
    thread,
    time::Duration,
};

use anyhow::{Context, bail};
use tokio::sync::oneshot;

use super::{
    connection::Limited,
    routes::{WebState, router},
};

/// Requests that still run after this time are cut off at shutdown.
const DRAIN_TIME: Duration = Duration::from_secs(5);

/// Listens on `address`.
///
/// # Errors
/// Names the address and the flag: a port in use, an address that is not this host's, a port that needs root.
pub fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).with_context(|| format!("cannot listen on {address} (--web.listen-address)")).or_else(
        |error| match error.downcast_ref::<io::Error>().map(io::Error::kind) {
            Some(ErrorKind::AddrInUse) => bail!(
                "cannot listen on {address}: the port is in use, perhaps by another observer; stop it \
                 (`ss -ltnp 'sport = :{port}'` names it) or choose another with --web.listen-address",
                port = address.port()
            ),
            _ => Err(error),
        },
    )
}

/// Serves until `shutdown` is ready, then lets running requests end, for at most five seconds.
///
/// # Errors
/// When the listener cannot be used by this runtime.
pub async fn serve(
    listener: TcpListener,
    state: WebState,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> anyhow::Result<()> {
    listener.set_nonblocking(true).context("cannot use the listening socket")?;
    let listener = tokio::net::TcpListener::from_std(listener).context("cannot use the listening socket")?;
    let (draining, drained) = oneshot::channel();
    let shutdown = async move {
        shutdown.await;
        // The receiver may be gone already.
        let _ = draining.send(());
    };
    let serving = axum::serve(Limited::new(listener), router(state)).with_graceful_shutdown(shutdown);
    let overdue = async {
        match drained.await {
            Ok(()) => tokio::time::sleep(DRAIN_TIME).await,
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        served = serving => served.context("the web server stopped"),
        () = overdue => {
            tracing::warn!("requests were cut off after {} s of shutdown", DRAIN_TIME.as_secs());
            Ok(())
        }
    }
}

/// The web side on its own thread.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    thread: thread::JoinHandle<anyhow::Result<()>>,
}

impl Server {
    /// Listens on `address` and serves on a thread with a runtime of its own.
    ///
    /// # Errors
    /// Those of [`bind`]; when the thread or its runtime cannot be made.
    pub fn start(address: SocketAddr, state: WebState) -> anyhow::Result<Self> {
        let listener = bind(address)?;
        let address = listener.local_addr().context("cannot tell the listening address")?;
        let (stop, stopped) = oneshot::channel::<()>();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .thread_name("web-scrape")
            // Scrapes alone run on it, one at a time. The next one may begin while the thread of the last one is not idle yet:
            // with room for another thread it would depend on the scheduler how many the agent has.
            .max_blocking_threads(1)
            .build()
            .context("cannot make the runtime of the web side")?;
        let run = move || {
            let shutdown = async {
                // A dropped handle stops the server too.
                let _ = stopped.await;
            };
            let served = runtime.block_on(serve(listener, state, shutdown));
            runtime.shutdown_timeout(DRAIN_TIME);
            served
        };
        let thread = thread::Builder::new().name("web".into()).spawn(run).context("cannot start the web thread")?;
        Ok(Self { address, stop, thread })
    }

    /// The address that it listens on: the real port where port 0 was asked for.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops listening, lets running requests end, and waits for that. Blocks for at most ten seconds.
    ///
    /// # Errors
    /// When the server had failed before.
    pub fn stop(self) -> anyhow::Result<()> {
        // The receiver is gone when the server failed; then the thread says why.
        let _ = self.stop.send(());
        match self.thread.join() {
            Ok(served) => served,
            Err(_) => bail!("the web thread panicked"),
        }
    }
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
