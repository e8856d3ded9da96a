//! Packets of protocols that have no sockets of their own here, with headers made by hand.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::Traffic;

/// A raw socket at an address that nobody reads from: the kernel does not answer that the protocol is unknown.
pub(super) fn hold(address: IpAddr, protocol: u8) -> Result<UdpSocket> {
    // The type is that of the table that keeps it open.
    bound(address, protocol).map(UdpSocket::from)
}

/// Sends packets that begin with two ports, as SCTP's do (RFC 9260, section 3.1).
pub(super) fn send(from: IpAddr, to: SocketAddr, protocol: u8, count: u32, payload: u16) -> Result<Traffic> {
    /// One that a kernel would choose for a client.
    const OWN_PORT: u16 = 40_000;
    let socket = bound(from, protocol)?;
    let mut packet = [OWN_PORT.to_be_bytes(), to.port().to_be_bytes()].concat();
    packet.resize(usize::from(payload), 0);
    // The port of a raw socket's address is no port.
    let at = SockAddr::from(SocketAddr::new(to.ip(), 0));
    let mut total = Traffic::default();
    for _ in 0..count {
        socket.send_to(&packet, &at).with_context(|| format!("sending protocol {protocol} to {at:?}"))?;
        total.sent_datagrams += 1;
        total.sent_bytes += u64::from(payload);
    }
    Ok(total)
}

fn bound(address: IpAddr, protocol: u8) -> Result<Socket> {
    let protocol = i32::from(protocol);
    let socket =
        Socket::new(Domain::for_address(SocketAddr::new(address, 0)), Type::RAW, Some(Protocol::from(protocol)))
            .with_context(|| format!("opening a raw socket of protocol {protocol} (needs CAP_NET_RAW)"))?;
    socket.bind(&SockAddr::from(SocketAddr::new(address, 0))).with_context(|| format!("binding to {address}"))?;
    Ok(socket)
}
