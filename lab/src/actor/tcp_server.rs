//! TCP servers.

use std::io::Read;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::tcp::{self, BUFFER};
use super::{ServeMode, Server, Traffic, Upstream};

/// The stack of a thread that serves a connection: it holds little, and there can be many.
const STACK: usize = 128 << 10;

/// Starts a server.
pub(super) fn serve(listen: SocketAddr, mode: &ServeMode, backlog: u32) -> Result<Arc<Server>> {
    let listener = listener(listen, backlog).with_context(|| format!("serving TCP on {listen}"))?;
    let address = listener.local_addr().context("asking a TCP server for its address")?;
    let server = Arc::new(Server::new(address, false));
    let (counts, mode) = (Arc::clone(&server), Arc::new(mode.clone()));
    std::thread::Builder::new()
        .name("tcp-server".to_owned())
        .spawn(move || accept(&listener, &mode, &counts))
        .context("starting a thread for a TCP server")?;
    Ok(server)
}

pub(super) fn listener(listen: SocketAddr, backlog: u32) -> Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(listen), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if listen.is_ipv6() {
        // As most servers do: all addresses are IPv4's, too.
        socket.set_only_v6(!listen.ip().is_unspecified())?;
    }
    socket.bind(&SockAddr::from(listen))?;
    socket.listen(i32::try_from(backlog)?)?;
    Ok(socket.into())
}

fn accept(listener: &TcpListener, mode: &Arc<ServeMode>, server: &Arc<Server>) {
    for stream in listener.incoming() {
        let stream = match stream {
            Ok(stream) => stream,
            Err(error) => {
                eprintln!("observer-lab: accepting on {}: {error}", server.address);
                continue;
            }
        };
        server.add(Traffic { connections: 1, ..Traffic::default() });
        server.open.fetch_add(1, Ordering::SeqCst);
        let (mode, counts) = (Arc::clone(mode), Arc::clone(server));
        let started = std::thread::Builder::new().stack_size(STACK).spawn(move || {
            let outcome = handle(&stream, &mode, &counts);
            counts.open.fetch_sub(1, Ordering::SeqCst);
            // The client learns of the end only now that everything is counted.
            let _ = stream.shutdown(Shutdown::Both);
            if let Err(error) = outcome {
                counts.add(Traffic { failures: 1, ..Traffic::default() });
                if is_reset(&error) {
                    return;
                }
                eprintln!("observer-lab: serving a connection on {}: {error:#}", counts.address);
            }
        });
        if let Err(error) = started {
            eprintln!("observer-lab: starting a thread for a connection: {error}");
        }
    }
}

/// Whether the client broke the connection off: counted as a failure, and nothing to tell a person.
fn is_reset(error: &anyhow::Error) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionReset};
    error.downcast_ref::<std::io::Error>().is_some_and(|error| matches!(error.kind(), ConnectionReset | BrokenPipe))
}

fn handle(stream: &TcpStream, mode: &ServeMode, server: &Server) -> Result<()> {
    stream.set_nodelay(true).context("setting up an accepted connection")?;
    match mode {
        ServeMode::Echo => copy(stream, server, true),
        ServeMode::Sink => copy(stream, server, false),
        ServeMode::RequestResponse { request_bytes, response_bytes, upstreams } => {
            let sizes = (u64::from(*request_bytes), u64::from(*response_bytes));
            respond(stream, server, sizes, upstreams)
        }
    }
}

fn copy(mut stream: &TcpStream, server: &Server, echo: bool) -> Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let length = stream.read(&mut buffer).context("reading")?;
        if length == 0 {
            return Ok(());
        }
        let received_bytes = length as u64;
        if echo {
            tcp::write_all(stream, received_bytes, length).context("echoing")?;
        }
        let sent_bytes = if echo { received_bytes } else { 0 };
        server.add(Traffic { received_bytes, sent_bytes, ..Traffic::default() });
    }
}

fn respond(
    mut stream: &TcpStream,
    server: &Server,
    (request_bytes, response_bytes): (u64, u64),
    upstreams: &[Upstream],
) -> Result<()> {
    let mut calls: Vec<Call> = upstreams.iter().map(Call::new).collect();
    loop {
        let mut first = [0; 1];
        if stream.read(&mut first).context("waiting for a request")? == 0 {
            return Ok(());
        }
        tcp::read_exactly(stream, request_bytes.saturating_sub(1)).context("reading a request")?;
        calls.iter_mut().try_for_each(Call::make)?;
        // Counted before it is sent: the client may end the test as soon as it has it.
        server.add(Traffic {
            requests: 1,
            received_bytes: request_bytes,
            sent_bytes: response_bytes,
            ..Traffic::default()
        });
        tcp::write_all(stream, response_bytes, BUFFER).context("responding")?;
    }
}

/// A client of another server, kept for as long as the connection it works for.
struct Call<'a> {
    upstream: &'a Upstream,
    stream: Option<TcpStream>,
    socket: Option<UdpSocket>,
}

impl<'a> Call<'a> {
    fn new(upstream: &'a Upstream) -> Self {
        Self { upstream, stream: None, socket: None }
    }

    fn make(&mut self) -> Result<()> {
        match self.upstream {
            Upstream::Tcp { to, request_bytes, response_bytes } => {
                let stream = match self.stream.take() {
                    Some(stream) => stream,
                    None => tcp::connect(*to)?,
                };
                tcp::write_and_read(&stream, (*request_bytes).into(), (*response_bytes).into())
                    .with_context(|| format!("calling {to}"))?;
                self.stream = Some(stream);
            }
            Upstream::Udp { to, bytes } => {
                let socket = match self.socket.take() {
                    Some(socket) => socket,
                    None => super::udp::client(*to, true)?,
                };
                let payload = vec![b'x'; usize::try_from(*bytes)?];
                socket.send(&payload).with_context(|| format!("sending a datagram to {to}"))?;
                self.socket = Some(socket);
            }
        }
        Ok(())
    }
}
