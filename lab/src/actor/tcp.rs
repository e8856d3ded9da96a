//! TCP clients.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};

use super::Traffic;

/// How long a peer may stay silent.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
/// How much is written or read at once.
pub(super) const BUFFER: usize = 64 << 10;

/// What goes over a connection.
#[derive(Clone, Copy)]
pub(super) struct Exchange {
    pub(super) requests: u32,
    pub(super) request_bytes: u32,
    pub(super) response_bytes: u32,
}

/// Connects.
pub(super) fn connect(to: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect(to).with_context(|| format!("connecting to {to}"))?;
    stream
        .set_nodelay(true)
        .and_then(|()| stream.set_read_timeout(Some(PATIENCE)))
        .and_then(|()| stream.set_write_timeout(Some(PATIENCE)))
        .with_context(|| format!("setting up the connection to {to}"))?;
    Ok(stream)
}

/// Sends one stream and reads what comes back until the server ends it.
pub(super) fn send(to: SocketAddr, bytes: u64, chunk: u32) -> Result<Traffic> {
    let stream = connect(to)?;
    let received_bytes = std::thread::scope(|scope| {
        let reader = scope.spawn(|| drain(&stream));
        write_all(&stream, bytes, usize::try_from(chunk)?.max(1))
            .with_context(|| format!("sending {bytes} bytes to {to}"))?;
        stream.shutdown(Shutdown::Write).with_context(|| format!("ending the stream to {to}"))?;
        reader.join().map_err(|_| anyhow!("reading from {to} panicked"))?
    })?;
    Ok(Traffic { connections: 1, sent_bytes: bytes, received_bytes, ..Traffic::default() })
}

/// Makes connections one after another, on `parallel` threads.
pub(super) fn requests(to: SocketAddr, connections: u32, exchange: Exchange, parallel: u16) -> Result<Traffic> {
    let threads = u32::from(parallel.max(1));
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|thread| {
                let share = connections / threads + u32::from(thread < connections % threads);
                scope.spawn(move || {
                    (0..share).try_fold(Traffic::default(), |mut total, _| {
                        total += one_connection(to, exchange)?;
                        Ok(total)
                    })
                })
            })
            .collect();
        workers.into_iter().try_fold(Traffic::default(), |mut total, worker| {
            let part: Result<Traffic> = worker.join().map_err(|_| anyhow!("a client panicked"))?;
            total += part?;
            Ok(total)
        })
    })
}

fn one_connection(to: SocketAddr, exchange: Exchange) -> Result<Traffic> {
    let stream = connect(to)?;
    let mut total = Traffic { connections: 1, ..Traffic::default() };
    for _ in 0..exchange.requests {
        total += write_and_read(&stream, exchange.request_bytes.into(), exchange.response_bytes.into())
            .with_context(|| format!("a request to {to}"))?;
        total.requests += 1;
    }
    total += finish(&stream)?;
    Ok(total)
}

/// Writes, then reads a reply of a known size.
pub(super) fn write_and_read(stream: &TcpStream, bytes: u64, reply_bytes: u64) -> Result<Traffic> {
    write_all(stream, bytes, BUFFER).with_context(|| format!("writing {bytes} bytes"))?;
    read_exactly(stream, reply_bytes).with_context(|| format!("reading {reply_bytes} bytes"))?;
    Ok(Traffic { sent_bytes: bytes, received_bytes: reply_bytes, ..Traffic::default() })
}

/// Ends our side, then waits until the server ends its own: afterwards it has counted everything.
pub(super) fn finish(stream: &TcpStream) -> Result<Traffic> {
    stream.shutdown(Shutdown::Write).context("ending a connection")?;
    Ok(Traffic { received_bytes: drain(stream)?, ..Traffic::default() })
}

/// Writes so many bytes.
pub(super) fn write_all(mut stream: &TcpStream, bytes: u64, chunk: usize) -> std::io::Result<()> {
    let buffer = vec![b'x'; chunk.min(usize::try_from(bytes).unwrap_or(chunk))];
    let mut left = bytes;
    while left > 0 {
        let next = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        stream.write_all(&buffer[..next])?;
        left -= next as u64;
    }
    Ok(())
}

/// Reads so many bytes.
pub(super) fn read_exactly(stream: &TcpStream, bytes: u64) -> Result<()> {
    let read = std::io::copy(&mut stream.take(bytes), &mut std::io::sink())?;
    ensure!(read == bytes, "the connection ended after {read} of {bytes} bytes");
    Ok(())
}

/// Reads until the other side ends.
fn drain(mut stream: &TcpStream) -> Result<u64> {
    let mut buffer = vec![0; BUFFER];
    let mut total = 0;
    loop {
        match stream.read(&mut buffer).context("reading until the other side ends")? {
            0 => return Ok(total),
            length => total += length as u64,
        }
    }
}
