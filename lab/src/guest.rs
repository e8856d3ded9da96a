//! A sandbox that brings its own network stack: it drives the pod's interface with a packet socket, as gVisor does, and no
//! packet of it meets a socket of the host's IP stack.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use socket2::{Domain, Protocol, Socket, Type};

use crate::netlink::{Mac, with_netlink};
use crate::node::POD_INDEX;
use crate::pod::Pod;

const ETHERNET: usize = 14;
const UDP: u8 = 17;
const TCP: u8 = 6;
/// The flags of a TCP segment.
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Packets at IP level, without link header and padding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

impl Told {
    fn add(&mut self, bytes: usize) {
        self.packets += 1;
        self.bytes += bytes as u64;
    }
}

/// The stack. It has the pod's addresses; the kernel has none any more.
#[derive(Debug)]
pub struct Guest {
    socket: Socket,
    mac: Mac,
    v4: Ipv4Addr,
    v6: Ipv6Addr,
    ids: AtomicU16,
    /// What it sent.
    pub sent: Told,
    /// What was sent to it.
    pub received: Told,
}

/// A datagram or segment that came in.
struct Incoming {
    from: SocketAddr,
    mac: Mac,
    to_port: u16,
    protocol: u8,
    payload: Vec<u8>,
    /// TCP's flags and sequence number.
    tcp: (u8, u32),
}

impl Incoming {
    /// A segment to a port, and of these flags which are set.
    fn is_tcp(&self, port: u16, flags: u8) -> bool {
        self.protocol == TCP && self.to_port == port && self.tcp.0 & (SYN | RST | ACK) == flags
    }

    /// Who sent it.
    fn peer(&self) -> Peer {
        Peer { address: self.from, mac: self.mac }
    }
}

/// The other side of a conversation.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    /// Its address and port.
    pub address: SocketAddr,
    /// Its hardware address.
    pub mac: Mac,
}

impl Guest {
    /// Takes over a pod's interface.
    pub fn take_over(pod: &Pod) -> Result<Self> {
        let mac = pod.mac().context("a pod on the host network has no interface of its own")?;
        let socket = pod.netns().run(|| {
            with_netlink(async |netlink| netlink.remove_addresses(POD_INDEX).await)?;
            packet_socket(POD_INDEX)
        })?;
        let (v4, v6, ids) = (pod.ipv4(), pod.ipv6(), AtomicU16::new(1));
        Ok(Self { socket, mac, v4, v6, ids, sent: Told::default(), received: Told::default() })
    }

    /// Its addresses.
    pub fn addresses(&self) -> (Ipv4Addr, Ipv6Addr) {
        (self.v4, self.v6)
    }

    /// Sends datagrams from a port, each after the echo of the one before; the payloads have `sizes` bytes.
    pub fn ask(&mut self, port: u16, peer: Peer, sizes: impl IntoIterator<Item = usize>) -> Result<()> {
        for size in sizes {
            self.send_udp(port, peer, &vec![b'q'; size])?;
            let answer = self.wait_for(|incoming| incoming.protocol == UDP && incoming.from == peer.address)?;
            ensure!(answer.payload.len() == size, "{} bytes came back of {size}", answer.payload.len());
        }
        Ok(())
    }

    /// Sends so many datagrams back that come to a port.
    pub fn echo(&mut self, port: u16, count: u32) -> Result<()> {
        for _ in 0..count {
            let question = self.wait_for(|incoming| incoming.protocol == UDP && incoming.to_port == port)?;
            self.send_udp(port, question.peer(), &question.payload)?;
        }
        Ok(())
    }

    /// Begins a TCP connection and breaks it off: three segments, two of which it sends.
    pub fn knock(&mut self, port: u16, peer: Peer) -> Result<()> {
        self.send_tcp(port, peer, SYN, (1, 0))?;
        let answer = self.wait_for(|incoming| incoming.protocol == TCP && incoming.from == peer.address)?;
        ensure!(answer.tcp.0 == SYN | ACK, "the SYN was answered with flags {:#x}", answer.tcp.0);
        self.reset(port, peer, 0)
    }

    /// Begins TCP connections, one after another. The ACK that ends each handshake and a first byte leave at the same time, on two
    /// CPUs. Where they are received there, too, both find the request, of which only one can make the connection.
    pub fn rush(&mut self, ports: impl IntoIterator<Item = u16>, peer: Peer) -> Result<()> {
        let allowed = sched_getaffinity(None).context("asking which CPUs there are")?;
        let mut cpus = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu));
        let (Some(first), Some(second)) = (cpus.next(), cpus.next()) else {
            bail!("there are not two CPUs that can send at the same time");
        };
        for port in ports {
            let numbers = (2, self.begin(port, peer)?);
            let packets = [&b""[..], b"r"].map(|payload| self.segment(port, peer, ACK, numbers, payload));
            let waiting = AtomicUsize::new(packets.len());
            let sent = std::thread::scope(|scope| {
                let threads = packets.into_iter().zip([first, second]).map(|(packet, cpu)| {
                    let (guest, waiting) = (&*self, &waiting);
                    scope.spawn(move || {
                        let packet = packet.and_then(|packet| stay(cpu).map(|()| packet));
                        waiting.fetch_sub(1, Ordering::SeqCst);
                        while waiting.load(Ordering::SeqCst) > 0 {
                            std::hint::spin_loop();
                        }
                        let packet = packet?;
                        guest.put(&guest.frame(peer, &packet, &[]))?;
                        Ok(packet.len())
                    })
                });
                let threads: Vec<_> = threads.collect();
                threads
                    .into_iter()
                    .map(|thread| thread.join().map_err(|_| anyhow!("a thread that sends panicked"))?)
                    .collect::<Result<Vec<usize>>>()
            })?;
            sent.into_iter().for_each(|packet| self.sent.add(packet));
        }
        Ok(())
    }

    /// Begins a TCP connection, whose answer it does not confirm yet. Returns the number to confirm.
    pub fn begin(&mut self, port: u16, peer: Peer) -> Result<u32> {
        self.send_tcp(port, peer, SYN, (1, 0))?;
        let answer = self.wait_for(|incoming| incoming.from == peer.address && incoming.is_tcp(port, SYN | ACK))?;
        Ok(answer.tcp.1.wrapping_add(1))
    }

    /// Confirms the answer to a SYN, so many times by the same segment.
    pub fn confirm(&mut self, port: u16, peer: Peer, number: u32, times: u32) -> Result<()> {
        (0..times).try_for_each(|_| self.send_tcp(port, peer, ACK, (2, number)))
    }

    /// Breaks a connection off by a segment that is as the one that has confirmed the answer to its SYN, but for the flag.
    pub fn break_off(&mut self, port: u16, peer: Peer, number: u32) -> Result<()> {
        self.send_tcp(port, peer, RST | ACK, (2, number))
    }

    /// Begins a TCP connection with a byte in its SYN (RFC 7413), and waits until that is answered.
    pub fn knock_with_data(&mut self, port: u16, peer: Peer) -> Result<()> {
        self.send_segment(port, peer, SYN, (1, 0), b"f")?;
        self.wait_for(|incoming| incoming.from == peer.address && incoming.is_tcp(port, SYN | ACK)).map(drop)
    }

    /// Lets a TCP connection to a port be established, whose SYN it answers late. The connection stays until it is broken off.
    pub fn accept_late(&mut self, port: u16, delay: Duration) -> Result<Peer> {
        let first = self.wait_for(|incoming| incoming.is_tcp(port, SYN))?;
        let peer = first.peer();
        std::thread::sleep(delay);
        self.send_tcp(port, peer, SYN | ACK, (1, first.tcp.1.wrapping_add(1)))?;
        self.wait_for(|incoming| incoming.from == peer.address && incoming.is_tcp(port, ACK))?;
        Ok(peer)
    }

    /// Answers SYNs to a port with SYNs, as one does who dials at the same time (RFC 9293, section 3.5), and breaks so many
    /// connections off when each is half open: the other side has confirmed this stack's SYN and waits for its own to be. The
    /// first `unheard` SYNs of each are as if they were lost, and so are as many of what confirms.
    pub fn cross(&mut self, port: u16, connections: usize, unheard: u32) -> Result<()> {
        let mut heard: HashMap<(SocketAddr, u8), u32> = HashMap::new();
        let mut broken = 0;
        while broken < connections {
            let incoming =
                self.wait_for(|incoming| [SYN, SYN | ACK].iter().any(|flags| incoming.is_tcp(port, *flags)))?;
            let confirms = incoming.is_tcp(port, SYN | ACK);
            let times = heard.entry((incoming.from, incoming.tcp.0 & ACK)).or_default();
            *times += 1;
            // What is sent again after that is not another connection.
            if *times != unheard + 1 {
                continue;
            }
            if confirms {
                self.reset(port, incoming.peer(), 0)?;
                broken += 1;
            } else {
                self.send_tcp(port, incoming.peer(), SYN, (1, 0))?;
            }
        }
        Ok(())
    }

    /// Lets a connection be established that both ends have dialed. It stays until it is broken off.
    pub fn meet(&mut self, port: u16) -> Result<Peer> {
        let peer = self.wait_for(|incoming| incoming.is_tcp(port, SYN))?.peer();
        self.send_tcp(port, peer, SYN, (1, 0))?;
        let confirmed = self.wait_for(|incoming| incoming.from == peer.address && incoming.is_tcp(port, SYN | ACK))?;
        self.send_tcp(port, peer, ACK, (2, confirmed.tcp.1.wrapping_add(1)))?;
        Ok(peer)
    }

    /// Breaks a connection off on which it has sent so many bytes.
    pub fn reset(&mut self, port: u16, peer: Peer, sent: u32) -> Result<()> {
        self.send_tcp(port, peer, RST, (2 + sent, 0))
    }

    /// Sends a datagram in a frame of 60 bytes, most of which are filling.
    pub fn send_padded(&mut self, port: u16, peer: Peer) -> Result<()> {
        let packet = self.udp(port, peer.address, b"p")?;
        let mut frame = self.frame(peer, &packet, &[]);
        frame.resize(60, 0);
        self.send(&frame, packet.len())
    }

    /// Sends a datagram in a frame with a VLAN tag, which nobody at the other side takes.
    pub fn send_tagged(&mut self, port: u16, peer: Peer) -> Result<()> {
        let packet = self.udp(port, peer.address, &[b't'; 200])?;
        let frame = self.frame(peer, &packet, &[0x81, 0, 0, 7]);
        self.send(&frame, packet.len())
    }

    /// Sends a later fragment, which has no ports, and which nobody can put together.
    pub fn send_fragment(&mut self, peer: Peer) -> Result<()> {
        let mut packet = self.ip(peer.address, UDP, &[b'f'; 104])?;
        ensure!(peer.address.is_ipv4(), "fragments of IPv4 alone are sent here");
        // 1,000 bytes of the datagram stand before it, and it is the last.
        packet[6..8].copy_from_slice(&125u16.to_be_bytes());
        packet[10..12].fill(0);
        let sum = checksum(&packet[..20]);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        let frame = self.frame(peer, &packet, &[]);
        self.send(&frame, packet.len())
    }

    /// Sends what is no IP packet.
    pub fn send_other(&mut self, peer: Peer) -> Result<()> {
        let mut frame = self.frame(peer, &[0; 100], &[]);
        // For experiments (IEEE 802, local).
        frame[12..14].copy_from_slice(&0x88b5u16.to_be_bytes());
        self.socket.send(&frame).map(drop).context("sending a frame that is no IP packet")
    }

    fn send_udp(&mut self, port: u16, peer: Peer, payload: &[u8]) -> Result<()> {
        let packet = self.udp(port, peer.address, payload)?;
        let frame = self.frame(peer, &packet, &[]);
        self.send(&frame, packet.len())
    }

    fn send(&mut self, frame: &[u8], packet: usize) -> Result<()> {
        self.put(frame)?;
        self.sent.add(packet);
        Ok(())
    }

    fn put(&self, frame: &[u8]) -> Result<()> {
        let sent = self.socket.send(frame).context("sending a frame")?;
        ensure!(sent == frame.len(), "{sent} bytes of a frame of {} were sent", frame.len());
        Ok(())
    }

    fn frame(&self, peer: Peer, packet: &[u8], tag: &[u8]) -> Vec<u8> {
        let kind: [u8; 2] = if peer.address.is_ipv4() { [0x08, 0x00] } else { [0x86, 0xdd] };
        [&peer.mac[..], &self.mac, tag, &kind, packet].concat()
    }

    fn udp(&self, port: u16, to: SocketAddr, payload: &[u8]) -> Result<Vec<u8>> {
        let length = u16::try_from(8 + payload.len()).context("a datagram that long")?;
        let mut datagram = [port.to_be_bytes(), to.port().to_be_bytes(), length.to_be_bytes(), [0, 0]].concat();
        datagram.extend_from_slice(payload);
        let sum = self.pseudo_checksum(to.ip(), UDP, &datagram);
        datagram[6..8].copy_from_slice(&sum.to_be_bytes());
        self.ip(to, UDP, &datagram)
    }

    /// Sends a segment without data, with a sequence number and one that is acknowledged.
    fn send_tcp(&mut self, port: u16, peer: Peer, flags: u8, numbers: (u32, u32)) -> Result<()> {
        self.send_segment(port, peer, flags, numbers, &[])
    }

    /// The same, with data.
    fn send_segment(&mut self, port: u16, peer: Peer, flags: u8, numbers: (u32, u32), payload: &[u8]) -> Result<()> {
        let packet = self.segment(port, peer, flags, numbers, payload)?;
        let frame = self.frame(peer, &packet, &[]);
        self.send(&frame, packet.len())
    }

    /// A packet of TCP.
    fn segment(
        &self,
        port: u16,
        peer: Peer,
        flags: u8,
        (sequence, acknowledged): (u32, u32),
        payload: &[u8],
    ) -> Result<Vec<u8>> {
        let mut segment = [port.to_be_bytes(), peer.address.port().to_be_bytes()].concat();
        segment.extend_from_slice(&sequence.to_be_bytes());
        segment.extend_from_slice(&acknowledged.to_be_bytes());
        segment.extend_from_slice(&[5 << 4, flags, 0x20, 0, 0, 0, 0, 0]);
        segment.extend_from_slice(payload);
        let sum = self.pseudo_checksum(peer.address.ip(), TCP, &segment);
        segment[16..18].copy_from_slice(&sum.to_be_bytes());
        self.ip(peer.address, TCP, &segment)
    }

    fn ip(&self, to: SocketAddr, protocol: u8, payload: &[u8]) -> Result<Vec<u8>> {
        let packet = match to.ip() {
            IpAddr::V4(to) => {
                let length = u16::try_from(20 + payload.len()).context("a packet that long")?;
                let mut header = vec![0x45, 0];
                header.extend_from_slice(&length.to_be_bytes());
                header.extend_from_slice(&self.next_id().to_be_bytes());
                header.extend_from_slice(&[0, 0, 64, protocol, 0, 0]);
                header.extend_from_slice(&self.v4.octets());
                header.extend_from_slice(&to.octets());
                let sum = checksum(&header);
                header[10..12].copy_from_slice(&sum.to_be_bytes());
                [&header, payload].concat()
            }
            IpAddr::V6(to) => {
                let length = u16::try_from(payload.len()).context("a packet that long")?;
                let mut header = vec![0x60, 0, 0, 0];
                header.extend_from_slice(&length.to_be_bytes());
                header.extend_from_slice(&[protocol, 64]);
                header.extend_from_slice(&self.v6.octets());
                header.extend_from_slice(&to.octets());
                [&header, payload].concat()
            }
        };
        Ok(packet)
    }

    /// A number for a packet of IPv4, as a host gives one to each.
    fn next_id(&self) -> u16 {
        self.ids.fetch_add(1, Ordering::Relaxed)
    }

    /// The checksum of UDP and TCP, over the pseudo header too (RFC 768, RFC 8200 section 8.1).
    fn pseudo_checksum(&self, to: IpAddr, protocol: u8, payload: &[u8]) -> u16 {
        let addresses = match to {
            IpAddr::V4(to) => [&self.v4.octets()[..], &to.octets()].concat(),
            IpAddr::V6(to) => [&self.v6.octets()[..], &to.octets()].concat(),
        };
        let length = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes();
        let sum = checksum(&[&addresses, &length[..], &[0, 0, 0, protocol], payload].concat());
        // Zero would say that there is none.
        if sum == 0 { 0xffff } else { sum }
    }

    /// Reads until something comes that is wanted; everything else that is for this stack is counted too.
    fn wait_for(&mut self, wanted: impl Fn(&Incoming) -> bool) -> Result<Incoming> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut buffer = [0u8; 65_600];
            let length = match io::Read::read(&mut &self.socket, &mut buffer) {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
                Err(error) => return Err(error).context("reading a frame"),
            };
            if let Some((incoming, packet)) = self.parse(&buffer[..length]) {
                self.received.add(packet);
                if wanted(&incoming) {
                    return Ok(incoming);
                }
            }
            if Instant::now() > deadline {
                bail!("nothing came within {PATIENCE:?}");
            }
        }
    }

    /// What a frame brings to this stack, and how long its packet is.
    fn parse(&self, frame: &[u8]) -> Option<(Incoming, usize)> {
        let (link, packet) = frame.split_at_checked(ETHERNET)?;
        let mac: Mac = link[6..12].try_into().ok()?;
        // A packet socket sees its own frames, too.
        if link[..6] != self.mac || mac == self.mac {
            return None;
        }
        let (from, to, protocol, header, length): (IpAddr, IpAddr, u8, usize, usize) = match packet.first()? >> 4 {
            4 => {
                let octets = |at: usize| <[u8; 4]>::try_from(packet.get(at..at + 4)?).ok();
                let length = u16::from_be_bytes(packet.get(2..4)?.try_into().ok()?);
                (octets(12)?.into(), octets(16)?.into(), *packet.get(9)?, 20, length.into())
            }
            6 => {
                let octets = |at: usize| <[u8; 16]>::try_from(packet.get(at..at + 16)?).ok();
                let length = u16::from_be_bytes(packet.get(4..6)?.try_into().ok()?);
                (octets(8)?.into(), octets(24)?.into(), *packet.get(6)?, 40, 40 + usize::from(length))
            }
            _ => return None,
        };
        if to != self.v4 && to != self.v6 {
            return None;
        }
        let transport = packet.get(header..length)?;
        let port = |at: usize| Some(u16::from_be_bytes(transport.get(at..at + 2)?.try_into().ok()?));
        let tcp = if protocol == TCP {
            (*transport.get(13)?, u32::from_be_bytes(transport.get(4..8)?.try_into().ok()?))
        } else {
            (0, 0)
        };
        let payload = transport.get(8..).unwrap_or_default().to_vec();
        let from = SocketAddr::new(from, port(0)?);
        Some((Incoming { from, mac, to_port: port(2)?, protocol, payload, tcp }, length))
    }
}

/// A socket that sends and receives whole frames at an interface of the calling thread's namespace (packet(7)).
fn packet_socket(index: u32) -> Result<Socket> {
    let all = i32::from((libc::ETH_P_ALL as u16).to_be());
    let socket =
        Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(all))).context("opening a packet socket")?;
    // SAFETY: all zeroes are a valid address of this kind.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = index.cast_signed();
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: bind(2) reads as many bytes as it is told of a live address.
    let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
    if bound != 0 {
        return Err(io::Error::last_os_error()).with_context(|| format!("binding to the interface {index}"));
    }
    socket.set_read_timeout(Some(Duration::from_millis(100))).context("setting how long to wait for a frame")?;
    Ok(socket)
}

/// Keeps this thread on a CPU.
fn stay(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).with_context(|| format!("staying on CPU {cpu}"))
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 =
        bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_of_a_known_header() {
        // The example that is in every textbook; the right sum makes the whole come out as zero.
        let mut header = [0x45, 0, 0, 0x73, 0, 0, 0x40, 0, 0x40, 0x11, 0, 0, 0xc0, 0xa8, 0, 1, 0xc0, 0xa8, 0, 0xc7];
        assert_eq!(checksum(&header), 0xb861);
        header[10..12].copy_from_slice(&0xb861u16.to_be_bytes());
        assert_eq!(checksum(&header), 0);
    }
}
