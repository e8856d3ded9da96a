//! Listening for agents.

use std::{future::Future, io, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context;
use observer_resolver::{
    MAX_MESSAGE,
    tonic::transport::{Server, server::TcpIncoming},
    v1::resolver_server::ResolverServer,
};
use tokio::{net::TcpStream, sync::mpsc, time::timeout};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tracing::debug;

use super::{
    certificate::{CertificateFiles, acceptor},
    service::Service,
    shared::Shared,
    token::Token,
};

/// Silence after which an agent is asked whether it is there, and how long it may take to say so.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(20));
/// Streams of one connection. An agent has one.
const STREAMS: u32 = 4;
/// What an agent may send before it is read.
const WINDOW: u32 = 64 << 10;
/// Streams that have not ended after this time are cut off at shutdown.
const DRAIN_TIME: Duration = Duration::from_secs(3);
/// How long the handshake of a connection may take.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Where and how agents are listened to.
#[derive(Debug, Clone)]
pub struct Listening {
    /// Address and port.
    pub address: SocketAddr,
    /// Certificate and key; without them anybody on the way can read and change answers.
    pub tls: Option<CertificateFiles>,
    /// What agents must show.
    pub token: Option<Token>,
}

/// A listener that agents can connect to.
pub struct Listener {
    incoming: TcpIncoming,
    tls: Option<TlsAcceptor>,
    token: Option<Token>,
    address: SocketAddr,
}

impl Listener {
    /// Listens. Must be called within a runtime.
    ///
    /// # Errors
    /// When the port cannot be had, or certificate and key are none.
    pub fn bind(listening: Listening) -> anyhow::Result<Self> {
        let Listening { address, tls, token } = listening;
        let incoming = TcpIncoming::bind(address)
            .with_context(|| format!("cannot listen for agents on {address} (--resolver.listen-address)"))?;
        let address = incoming.local_addr().context("cannot tell the listening address")?;
        let tls = tls.map(acceptor).transpose()?;
        Ok(Self { incoming: incoming.with_nodelay(Some(true)), tls, token, address })
    }

    /// Where it listens: the real port where port 0 was asked for.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `shutdown` is ready, then ends the agents' streams.
    ///
    /// # Errors
    /// When it cannot go on.
    pub async fn serve(self, shared: Arc<Shared>, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
        let service = ResolverServer::new(Service::new(Arc::clone(&shared), self.token))
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE);
        let mut stopping = shared.stopping();
        let shutdown = async {
            shutdown.await;
            shared.stop();
        };
        let overdue = async {
            let _ = stopping.wait_for(|stopping| *stopping).await;
            tokio::time::sleep(DRAIN_TIME).await;
        };
        let server = Server::builder()
            .http2_keepalive_interval(Some(KEEPALIVE.0))
            .http2_keepalive_timeout(Some(KEEPALIVE.1))
            .max_concurrent_streams(STREAMS)
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW);
        let served = async {
            match self.tls {
                None => server.serve_with_incoming_shutdown(service, self.incoming, shutdown).await,
                Some(tls) => {
                    server.serve_with_incoming_shutdown(service, handshakes(self.incoming, tls), shutdown).await
                }
            }
        };
        tokio::select! {
            served = served => served.context("serving agents"),
            () = overdue => Ok(()),
        }
    }
}

/// The connections whose handshake succeeds, side by side: one that takes its time keeps nobody waiting.
fn handshakes(mut incoming: TcpIncoming, tls: TlsAcceptor) -> ReceiverStream<io::Result<TlsStream<TcpStream>>> {
    let (done, connections) = mpsc::channel(1);
    tokio::spawn(async move {
        loop {
            let connection = tokio::select! {
                () = done.closed() => return,
                connection = incoming.next() => connection,
            };
            let (tls, done) = (tls.clone(), done.clone());
            match connection {
                None => return,
                // What cannot be accepted is for the server to judge. If it is gone, so is this.
                Some(Err(error)) => drop(done.send(Err(error)).await),
                Some(Ok(stream)) => drop(tokio::spawn(async move {
                    match timeout(HANDSHAKE, tls.accept(stream)).await {
                        Ok(Ok(stream)) => drop(done.send(Ok(stream)).await),
                        Ok(Err(error)) => debug!("a connection did not get through its TLS handshake: {error}"),
                        Err(_) => debug!("a connection did not end its TLS handshake within {HANDSHAKE:?}"),
                    }
                })),
            }
        }
    });
    ReceiverStream::new(connections)
}
