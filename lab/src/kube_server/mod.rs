//! A kubelet and an API server that say what was recorded of real ones: HTTPS, a token, lists, watches, and all that
//! may go wrong with them.

mod http;
mod state;

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::Value;
use tempfile::TempDir;

pub use state::Request;
use state::State;

/// The server. It ends when this is dropped.
pub struct KubeServer {
    address: SocketAddr,
    directory: TempDir,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// What all connections know.
pub(crate) struct Shared {
    state: Mutex<State>,
    changed: std::sync::Condvar,
}

impl Shared {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl KubeServer {
    /// Starts it on loopback, with a certificate of its own for that address, and a token that it accepts.
    pub fn start() -> Result<Self> {
        let directory = tempfile::tempdir().context("making a directory for the certificate and the token")?;
        let made = rcgen::generate_simple_self_signed(vec![Ipv4Addr::LOCALHOST.to_string()])
            .context("making a certificate for 127.0.0.1")?;
        fs::write(directory.path().join("ca.crt"), made.cert.pem()).context("writing the certificate")?;
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).map_err(anyhow::Error::msg)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .context("choosing versions of TLS")?
            .with_no_client_auth()
            .with_single_cert(vec![CertificateDer::from(made.cert.der().to_vec())], key)
            .context("taking the certificate")?;
        let config = Arc::new(config);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listening on 127.0.0.1")?;
        let address = listener.local_addr().context("asking for the port")?;
        let shared = Arc::new(Shared { state: Mutex::new(State::default()), changed: std::sync::Condvar::new() });
        let told = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("kube-server".into())
            .spawn(move || {
                for stream in listener.incoming().flatten() {
                    if told.state().is_over() {
                        break;
                    }
                    if told.state().away {
                        continue;
                    }
                    let (shared, config) = (Arc::clone(&told), Arc::clone(&config));
                    std::thread::spawn(move || http::serve(stream, config, &shared));
                }
            })
            .context("starting the server's thread")?;
        let server = Self { address, directory, shared, thread: Some(thread) };
        server.accept_token("first")?;
        server.write_token("first")?;
        Ok(server)
    }

    /// Where it listens.
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// The file with its certificate.
    pub fn ca_file(&self) -> PathBuf {
        self.directory.path().join("ca.crt")
    }

    /// The file with the agent's token.
    pub fn token_file(&self) -> PathBuf {
        self.directory.path().join("token")
    }

    /// Puts another token in the place of the agent's, in one step, as the kubelet does.
    pub fn write_token(&self, token: &str) -> Result<()> {
        let next = self.directory.path().join("token.next");
        fs::write(&next, token).context("writing the token")?;
        fs::rename(&next, self.token_file()).context("replacing the token")
    }

    /// Accepts this token alone, from the next request on.
    pub fn accept_token(&self, token: &str) -> Result<()> {
        self.change(|state| state.token = token.to_owned());
        Ok(())
    }

    /// Answers with this at a path.
    pub fn answer(&self, path: &str, body: impl Into<Vec<u8>>) {
        self.change(|state| state.answer(path, body.into()));
    }

    /// Answers with 403 at paths that begin so.
    pub fn forbid(&self, path: &str) {
        self.change(|state| state.forbidden.push(path.to_owned()));
    }

    /// Forbids nothing any more.
    pub fn allow_all(&self) {
        self.change(|state| state.forbidden.clear());
    }

    /// The pods of the node are those of this list.
    pub fn list(&self, node: &str, list: &Value) -> Result<()> {
        self.try_change(|state| state.list(node, list))
    }

    /// Something happened: an event as a watch has it.
    pub fn event(&self, event: &Value) -> Result<()> {
        self.try_change(|state| state.event(event))
    }

    /// The objects at a path (with the beginning of its query, up to what lists and watches add with `&`) are those of
    /// this list.
    pub fn list_at(&self, path: &str, list: &Value) -> Result<()> {
        self.try_change(|state| state.list_at(path, list))
    }

    /// An object at a path is so now.
    pub fn put(&self, path: &str, object: &Value) -> Result<()> {
        self.try_change(|state| state.put(path, object))
    }

    /// An object at a path is gone.
    pub fn delete(&self, path: &str, object: &Value) -> Result<()> {
        self.try_change(|state| state.delete(path, object))
    }

    /// Whoever comes is not answered, and who was is cut off; or that is over.
    pub fn away(&self, away: bool) {
        self.change(|state| {
            state.away = away;
            state.break_watches();
        });
    }

    /// Tells the watches that nothing happened up to a version.
    pub fn bookmark(&self, version: u64) {
        self.change(|state| state.bookmark(version));
    }

    /// All watches break off, in the middle of an event, and the connections with them.
    pub fn break_watches(&self) {
        self.change(State::break_watches);
    }

    /// All watches end as they do when their time is over.
    pub fn end_watches(&self) {
        self.change(State::end_watches);
    }

    /// What happened up to now is forgotten: running watches are told, and those from an earlier version are refused.
    pub fn forget(&self) {
        self.change(State::forget);
    }

    /// How many watches run.
    pub fn watches(&self) -> usize {
        self.shared.state().watches
    }

    /// What was asked, in order.
    pub fn requests(&self) -> Vec<Request> {
        self.shared.state().requests.clone()
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.shared.state());
        self.shared.changed.notify_all();
    }

    fn try_change(&self, change: impl FnOnce(&mut State) -> Result<()>) -> Result<()> {
        let changed = change(&mut self.shared.state());
        self.shared.changed.notify_all();
        changed
    }
}

impl Drop for KubeServer {
    fn drop(&mut self) {
        self.change(State::end);
        // Wakes the one who accepts.
        drop(TcpStream::connect(self.address));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
