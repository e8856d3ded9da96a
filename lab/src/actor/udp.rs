//! UDP servers and clients.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::net::sockopt::{set_socket_recv_buffer_size, set_socket_recv_buffer_size_force};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::tcp::PATIENCE;
use super::{Pace, Server, Sizes, Traffic};

/// The receive buffer: room for whatever arrives while the receiver waits for its turn.
const RECEIVE_BUFFER: usize = 128 << 20;
/// The largest datagram.
const LARGEST: usize = 65_535;

/// Starts a server.
pub(super) fn serve(listen: SocketAddr, echo: bool) -> Result<Arc<Server>> {
    let socket = bound(listen).with_context(|| format!("serving UDP on {listen}"))?;
    let address = socket.local_addr().context("asking a UDP server for its address")?;
    let server = Arc::new(Server::new(address, true));
    let counts = Arc::clone(&server);
    std::thread::Builder::new()
        .name("udp-server".to_owned())
        .spawn(move || receive(&socket, echo, &counts))
        .context("starting a thread for a UDP server")?;
    Ok(server)
}

/// A socket that nobody reads from.
pub(super) fn hold(listen: SocketAddr, buffer: usize) -> Result<(UdpSocket, SocketAddr)> {
    let socket = bound(listen).with_context(|| format!("holding UDP at {listen}"))?;
    set_socket_recv_buffer_size(&socket, buffer).context("setting the size of a receive buffer")?;
    let address = socket.local_addr().context("asking a UDP socket for its address")?;
    Ok((socket, address))
}

pub(super) fn bound(address: SocketAddr) -> Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        // As for TCP.
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    // Beyond net.core.rmem_max with CAP_NET_ADMIN, else as far as that allows.
    if set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER).is_err() {
        set_socket_recv_buffer_size(&socket, RECEIVE_BUFFER)?;
    }
    socket.bind(&SockAddr::from(address))?;
    Ok(socket.into())
}

fn receive(socket: &UdpSocket, echo: bool, server: &Server) {
    let mut buffer = vec![0; LARGEST];
    loop {
        let (length, from) = match socket.recv_from(&mut buffer) {
            Ok(received) => received,
            Err(error) => {
                // A client that has gone answers an echo with ICMP; the next datagram may come.
                eprintln!("observer-lab: receiving on {}: {error}", server.address);
                continue;
            }
        };
        let bytes = length as u64;
        // Counted before it is echoed: the client may end the test as soon as it has it.
        server.add(Traffic {
            received_datagrams: 1,
            received_bytes: bytes,
            sent_datagrams: u64::from(echo),
            sent_bytes: if echo { bytes } else { 0 },
            ..Traffic::default()
        });
        if echo && let Err(error) = socket.send_to(&buffer[..length], from) {
            eprintln!("observer-lab: echoing to {from}: {error}");
        }
    }
}

/// A socket to send from.
pub(super) fn client(to: SocketAddr, connected: bool) -> Result<UdpSocket> {
    let any: IpAddr = match to {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = bound(SocketAddr::new(any, 0)).context("making a UDP socket")?;
    if connected {
        socket.connect(to).with_context(|| format!("connecting a UDP socket to {to}"))?;
    }
    socket.set_read_timeout(Some(PATIENCE)).context("setting up a UDP socket")?;
    Ok(socket)
}

/// A socket that stays, and where it is.
pub(super) fn open(listen: SocketAddr, to: Option<SocketAddr>) -> Result<(UdpSocket, SocketAddr)> {
    let socket = bound(listen).with_context(|| format!("opening UDP at {listen}"))?;
    if let Some(to) = to {
        socket.connect(to).with_context(|| format!("connecting a UDP socket to {to}"))?;
    }
    socket.set_read_timeout(Some(PATIENCE)).context("setting up a UDP socket")?;
    let local = socket.local_addr().context("asking a UDP socket for its address")?;
    Ok((socket, local))
}

/// Sends datagrams to servers that echo, each after the echo of the one before.
pub(super) fn talk(socket: &UdpSocket, datagrams: &[(SocketAddr, u32)]) -> Result<Traffic> {
    let peer = socket.peer_addr().ok();
    let payload = vec![b'x'; LARGEST];
    let mut buffer = vec![0; LARGEST];
    let mut total = Traffic::default();
    for (to, size) in datagrams {
        let size = usize::try_from(*size)?;
        ensure!(size <= LARGEST, "a datagram of {size} bytes is too large");
        ensure!(peer.is_none_or(|peer| peer == *to), "the socket is connected to {peer:?}, not to {to}");
        let sent = if peer.is_some() { socket.send(&payload[..size]) } else { socket.send_to(&payload[..size], to) };
        let sent = sent.with_context(|| format!("sending datagram {} to {to}", total.sent_datagrams + 1))?;
        ensure!(sent == size, "only {sent} of {size} bytes of a datagram were sent");
        let (length, from) = socket.recv_from(&mut buffer).with_context(|| format!("waiting for the echo of {to}"))?;
        ensure!((length, from) == (size, *to), "{size} bytes to {to} were answered with {length} of {from}");
        total.sent_datagrams += 1;
        total.sent_bytes += size as u64;
        total.received_datagrams += 1;
        total.received_bytes += length as u64;
    }
    Ok(total)
}

/// Sends datagrams from one socket.
pub(super) fn send(to: SocketAddr, sizes: &Sizes, connected: bool, pace: &Pace) -> Result<Traffic> {
    let socket = client(to, connected)?;
    let payload = vec![b'x'; LARGEST];
    let mut buffer = vec![0; LARGEST];
    let mut total = Traffic::default();
    for size in sizes.iter() {
        let size = usize::try_from(size)?;
        ensure!(size <= LARGEST, "a datagram of {size} bytes is too large");
        let sent = if connected { socket.send(&payload[..size]) } else { socket.send_to(&payload[..size], to) };
        let sent = sent.with_context(|| format!("sending datagram {} to {to}", total.sent_datagrams + 1))?;
        ensure!(sent == size, "only {sent} of {size} bytes of a datagram were sent");
        total.sent_datagrams += 1;
        total.sent_bytes += size as u64;
        match pace {
            Pace::Free => {}
            Pace::Batches { datagrams, pause_us } => {
                if total.sent_datagrams.is_multiple_of(u64::from(*datagrams).max(1)) {
                    std::thread::sleep(Duration::from_micros(*pause_us));
                }
            }
            Pace::Echoed { window } => {
                if total.sent_datagrams - total.received_datagrams >= u64::from(*window).max(1) {
                    take_echo(&socket, &mut buffer, &mut total)?;
                }
            }
        }
    }
    if matches!(pace, Pace::Echoed { .. }) {
        while total.received_datagrams < total.sent_datagrams {
            take_echo(&socket, &mut buffer, &mut total)?;
        }
    }
    Ok(total)
}

fn take_echo(socket: &UdpSocket, buffer: &mut [u8], total: &mut Traffic) -> Result<()> {
    let length = socket.recv(buffer).with_context(|| {
        format!(
            "waiting for an echo ({} datagrams sent, {} came back; does the server echo?)",
            total.sent_datagrams, total.received_datagrams
        )
    })?;
    total.received_datagrams += 1;
    total.received_bytes += length as u64;
    Ok(())
}
