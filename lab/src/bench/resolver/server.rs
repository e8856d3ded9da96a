//! An API server for the generated cluster: lists and watches over plain HTTP/1.1, and how many bytes they took.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::cluster::{Cluster, Kind};

/// How much of a list is written at once.
const PIECE: usize = 256 << 10;

/// The server's state.
pub(super) struct Server {
    cluster: Mutex<Cluster>,
    /// Events since the start, and a number that grows with them.
    events: Mutex<Vec<(Kind, Arc<str>)>>,
    happened: watch::Sender<usize>,
    /// Bytes of lists and of watches.
    pub(super) listed: AtomicU64,
    pub(super) watched: AtomicU64,
}

impl Server {
    /// Listens on a free port of loopback, on the runtime that this is called in.
    pub(super) async fn start(cluster: Cluster) -> Result<(Arc<Self>, SocketAddr)> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("listening on 127.0.0.1")?;
        let address = listener.local_addr().context("asking for the port")?;
        let server = Arc::new(Self {
            cluster: Mutex::new(cluster),
            events: Mutex::default(),
            happened: watch::Sender::new(0),
            listed: AtomicU64::new(0),
            watched: AtomicU64::new(0),
        });
        let served = Arc::clone(&server);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let server = Arc::clone(&served);
                tokio::spawn(async move {
                    // A client that goes away is nothing to tell.
                    let _ = server.serve(stream).await;
                });
            }
        });
        Ok((server, address))
    }

    /// The cluster.
    pub(super) fn cluster(&self) -> MutexGuard<'_, Cluster> {
        self.cluster.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the watches.
    pub(super) fn tell(&self, events: Vec<(Kind, String)>) {
        let mut all = self.events();
        all.extend(events.into_iter().map(|(kind, event)| (kind, event.into())));
        self.happened.send_replace(all.len());
    }

    fn events(&self) -> MutexGuard<'_, Vec<(Kind, Arc<str>)>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn serve(&self, stream: TcpStream) -> Result<()> {
        stream.set_nodelay(true)?;
        let mut stream = BufReader::new(stream);
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).await?;
            let Some(path) = line.split(' ').nth(1).map(str::to_owned) else { return Ok(()) };
            while line.trim() != "" {
                line.clear();
                stream.read_line(&mut line).await?;
            }
            let Some(kind) = Kind::ALL.into_iter().find(|kind| path.split('?').next() == Some(kind.path())) else {
                stream.write_all(b"HTTP/1.1 404 x\r\nContent-Length: 0\r\n\r\n").await?;
                continue;
            };
            stream
                .write_all(b"HTTP/1.1 200 x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
                .await?;
            if path.contains("watch=true") {
                self.watch(&mut stream, kind).await?;
            } else {
                self.list(&mut stream, kind).await?;
            }
        }
    }

    /// All of them at once, as a server's cache gives them (resourceVersion=0). Lists are asked for before anything
    /// happens, so that none is older at its end than at its beginning.
    async fn list(&self, stream: &mut BufReader<TcpStream>, kind: Kind) -> Result<()> {
        let count = self.cluster().count(kind);
        let mut text = r#"{"kind":"List","metadata":{"resourceVersion":"1"},"items":["#.to_owned();
        let mut first = true;
        for at in 0..count {
            if let Some(object) = self.cluster().object(kind, at) {
                if !std::mem::replace(&mut first, false) {
                    text.push(',');
                }
                text.push_str(&object);
            }
            if text.len() >= PIECE {
                self.listed.fetch_add(chunk(stream, &text).await?, Relaxed);
                text.clear();
            }
        }
        text.push_str("]}");
        self.listed.fetch_add(chunk(stream, &text).await?, Relaxed);
        stream.write_all(b"0\r\n\r\n").await?;
        Ok(())
    }

    /// Everything since the start, for as long as the client listens.
    async fn watch(&self, stream: &mut BufReader<TcpStream>, kind: Kind) -> Result<()> {
        let mut happened = self.happened.subscribe();
        let mut said = 0;
        loop {
            let (next, all) = {
                let events = self.events();
                let new = events[said..].iter().filter(|(of, _)| *of == kind).map(|(_, event)| Arc::clone(event));
                (new.collect::<Vec<_>>(), events.len())
            };
            said = all;
            for event in next {
                self.watched.fetch_add(chunk(stream, &event).await?, Relaxed);
            }
            happened.wait_for(|happened| *happened > said).await?;
        }
    }
}

/// Writes a chunk, and tells its length.
async fn chunk(stream: &mut BufReader<TcpStream>, text: &str) -> Result<u64> {
    let head = format!("{:x}\r\n", text.len());
    let framed = [head.as_bytes(), text.as_bytes(), b"\r\n"].concat();
    stream.write_all(&framed).await?;
    Ok(framed.len() as u64)
}
