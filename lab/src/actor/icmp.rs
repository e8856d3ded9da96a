//! Echo requests.

use std::io::{ErrorKind, Read};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::Traffic;

/// How long a reply may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Type, code, checksum, identifier, sequence number.
const HEADER: usize = 8;

/// Sends echo requests, each after the reply to the one before. Bytes are those after the ICMP header.
pub(super) fn ping(to: IpAddr, count: u32, payload: u16, raw: bool) -> Result<Traffic> {
    let socket = open(to, raw).with_context(|| {
        let kind = if raw { "raw" } else { "ping" };
        format!("opening a {kind} socket (a ping socket needs net.ipv4.ping_group_range, a raw one CAP_NET_RAW)")
    })?;
    let mut total = Traffic::default();
    for sequence in 0..count {
        // The sequence number of ICMP has 16 bits and starts again.
        let sequence = u16::try_from(sequence & 0xffff)?;
        let request = Echo { sequence, payload }.request(to);
        socket
            .send_to(&request, &SockAddr::from(SocketAddr::new(to, 0)))
            .with_context(|| format!("sending an echo request to {to}"))?;
        total.sent_datagrams += 1;
        total.sent_bytes += u64::from(payload);
        let received = wait_for_reply(&socket, to, sequence, raw)?;
        total.received_datagrams += 1;
        total.received_bytes += (received - HEADER) as u64;
    }
    Ok(total)
}

fn open(to: IpAddr, raw: bool) -> Result<Socket> {
    let (domain, protocol) = match to {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
    };
    let kind = if raw { Type::RAW } else { Type::DGRAM };
    let socket = Socket::new(domain, kind, Some(protocol))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// Waits for the reply with this sequence number; returns the length of its ICMP message.
fn wait_for_reply(mut socket: &Socket, to: IpAddr, sequence: u16, raw: bool) -> Result<usize> {
    let mut buffer = vec![0; 66_000];
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        let length = match socket.read(&mut buffer) {
            Ok(length) => length,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => break,
            Err(error) => return Err(error).context("waiting for an echo reply"),
        };
        let packet = &buffer[..length];
        // A raw IPv4 socket hands out the IP header as well.
        let message = if raw && to.is_ipv4() { behind_ip_header(packet) } else { packet };
        if is_reply(message, to, sequence) {
            return Ok(message.len());
        }
    }
    bail!("{to} did not reply to an echo request within {PATIENCE:?}")
}

fn behind_ip_header(packet: &[u8]) -> &[u8] {
    let length = packet.first().map_or(0, |first| usize::from(first & 0x0f) * 4);
    packet.get(length..).unwrap_or_default()
}

fn is_reply(message: &[u8], to: IpAddr, sequence: u16) -> bool {
    let kind = if to.is_ipv4() { 0 } else { 129 };
    message.len() >= HEADER && message[0] == kind && message[6..8] == sequence.to_be_bytes()
}

/// An echo request.
struct Echo {
    sequence: u16,
    payload: u16,
}

impl Echo {
    fn request(&self, to: IpAddr) -> Vec<u8> {
        let mut message = vec![0; HEADER];
        message[0] = if to.is_ipv4() { 8 } else { 128 };
        message[4..6].copy_from_slice(&0x0b5e_u16.to_be_bytes());
        message[6..8].copy_from_slice(&self.sequence.to_be_bytes());
        message.resize(HEADER + usize::from(self.payload), b'x');
        if to.is_ipv4() {
            // For IPv6 the kernel does it: its checksum covers addresses too.
            let sum = checksum(&message);
            message[2..4].copy_from_slice(&sum.to_be_bytes());
        }
        message
    }
}

/// The Internet checksum.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 =
        bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |&low| u32::from(low))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    // At most 0xffff by now.
    !u16::try_from(sum).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_with_its_checksum_sums_to_zero() {
        let to = "127.0.0.1".parse().unwrap();
        let message = Echo { sequence: 300, payload: 57 }.request(to);
        assert_eq!(message.len(), 65);
        assert_eq!(checksum(&message), 0);
    }

    #[test]
    fn a_raw_socket_s_own_request_is_no_reply() {
        let to = "127.0.0.1".parse().unwrap();
        let mut packet = vec![0x45; 20];
        packet.extend(Echo { sequence: 1, payload: 8 }.request(to));
        assert!(!is_reply(behind_ip_header(&packet), to, 1));
        packet[20] = 0;
        assert!(is_reply(behind_ip_header(&packet), to, 1));
        assert!(!is_reply(behind_ip_header(&packet), to, 2));
    }
}
