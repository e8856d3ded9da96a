//! TCP that goes wrong, on purpose and a known number of times.

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::tcp::PATIENCE;
use super::{Actor, Answer, lock, tcp_server};

/// Something that goes wrong, or what is needed for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// Listen, and accept only when asked to. Answers with the listener as a connection.
    Listen {
        /// Where.
        address: SocketAddr,
        /// How many connections may wait to be accepted, less one.
        backlog: u32,
        /// For how many seconds a connection waits for its first data before it is established (`TCP_DEFER_ACCEPT`); 0: it
        /// does not wait.
        defer_s: u32,
    },
    /// Accept a connection, which stays.
    Accept {
        /// The listener's number.
        listener: u64,
    },
    /// Drop what comes in to a listener or a connection, after it was counted at every interface.
    Deafen {
        /// Its number.
        socket: u64,
        /// What is dropped.
        drop: Drop,
    },
    /// Make connections that cannot be: all at the same time. Answers with their errors.
    Dial {
        /// To where.
        to: SocketAddr,
        /// How many.
        times: u16,
        /// How often a SYN is sent again.
        again: u8,
        /// Give up after so many milliseconds; without, when the kernel does.
        give_up_ms: Option<u64>,
    },
    /// Make many sockets, one after another, each of which sends one byte: whatever was remembered of a socket before is
    /// pushed out by them.
    Crowd {
        /// How many.
        sockets: u32,
        /// The UDP socket they send to.
        to: SocketAddr,
    },
    /// Ask the kernel for the state of a connection.
    Info {
        /// Its number.
        connection: u64,
    },
    /// Wait until the other side has confirmed everything.
    Confirmed {
        /// Its number.
        connection: u64,
    },
    /// End a connection with a reset. Answers with its last state.
    Reset {
        /// Its number.
        connection: u64,
    },
}

/// Packets that a socket does not hear.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Drop {
    /// None any more.
    Nothing,
    /// All.
    Everything,
    /// All but those with SYN: handshakes begin and do not end.
    AllButSyn,
    /// None, but the kernel takes some microseconds to find that out for each.
    NothingSlowly,
}

/// The kernel's own words on a connection (`struct tcp_info`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TcpState {
    /// The smoothed round trip time, in microseconds.
    pub rtt_us: u32,
    /// Segments that were sent and not confirmed.
    pub unacked: u32,
    /// Segments that were sent again.
    pub retransmitted: u32,
}

impl Actor {
    pub(super) fn fault(&self, fault: &Fault) -> Result<Answer> {
        match fault {
            Fault::Listen { address, backlog, defer_s } => {
                let listener =
                    tcp_server::listener(*address, *backlog).with_context(|| format!("listening on {address}"))?;
                if *defer_s > 0 {
                    set_option(listener.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, defer_s)
                        .context("setting TCP_DEFER_ACCEPT")?;
                }
                let local = listener.local_addr().context("asking a listener for its address")?;
                let connection = self.number();
                lock(&self.listeners).insert(connection, listener);
                Ok(Answer::Opened { connection, local })
            }
            Fault::Accept { listener } => {
                let stream = self.listener(*listener)?.accept().context("accepting")?.0;
                stream.set_read_timeout(Some(PATIENCE)).context("setting up an accepted connection")?;
                let local = stream.local_addr().context("asking a connection for its address")?;
                let connection = self.number();
                lock(&self.connections).insert(connection, stream);
                Ok(Answer::Opened { connection, local })
            }
            Fault::Deafen { socket, drop } => {
                let listener = self.listener(*socket);
                let connection = self.connection(*socket);
                let fd = match (&listener, &connection) {
                    (Ok(listener), _) => listener.as_raw_fd(),
                    (_, Ok(connection)) => connection.as_raw_fd(),
                    (_, Err(error)) => return Err(anyhow!("{error:#}")),
                };
                deafen(fd, *drop).map(|()| Answer::Done)
            }
            Fault::Dial { to, times, again, give_up_ms } => {
                let give_up = give_up_ms.map(Duration::from_millis);
                std::thread::scope(|scope| {
                    let dials: Vec<_> = (0..*times).map(|_| scope.spawn(move || dial(*to, *again, give_up))).collect();
                    let errors: Result<Vec<i32>> = dials
                        .into_iter()
                        .map(|dial| dial.join().map_err(|_| anyhow!("a thread that dials panicked"))?)
                        .collect();
                    Ok(Answer::Dialed { errors: errors? })
                })
            }
            Fault::Crowd { sockets, to } => {
                let from = SocketAddr::new(to.ip(), 0);
                for _ in 0..*sockets {
                    let socket = UdpSocket::bind(from).context("making one socket of many")?;
                    socket.connect(to).and_then(|()| socket.send(&[0])).with_context(|| format!("sending to {to}"))?;
                }
                Ok(Answer::Done)
            }
            Fault::Info { connection } => info(&self.connection(*connection)?).map(Answer::Tcp),
            Fault::Confirmed { connection } => {
                let stream = self.connection(*connection)?;
                let deadline = Instant::now() + PATIENCE;
                loop {
                    let state = info(&stream)?;
                    if state.unacked == 0 {
                        return Ok(Answer::Tcp(state));
                    }
                    ensure!(Instant::now() < deadline, "{state:?} after {PATIENCE:?}");
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
            Fault::Reset { connection } => {
                let stream = self.connection(*connection)?;
                lock(&self.connections).remove(connection);
                let socket = Socket::from(stream);
                socket.set_linger(Some(Duration::ZERO)).context("asking for a reset at the end")?;
                info(&socket).map(Answer::Tcp)
            }
        }
    }

    fn listener(&self, number: u64) -> Result<TcpListener> {
        lock(&self.listeners)
            .get(&number)
            .with_context(|| format!("there is no listener {number}"))?
            .try_clone()
            .with_context(|| format!("duplicating listener {number}"))
    }
}

/// Connects and gives the error number; 0 when it worked.
fn dial(to: SocketAddr, again: u8, give_up: Option<Duration>) -> Result<i32> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP)).context("making a socket")?;
    set_option(socket.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_SYNCNT, &libc::c_int::from(again))
        .context("setting TCP_SYNCNT")?;
    let outcome = match give_up {
        None => socket.connect(&SockAddr::from(to)),
        Some(patience) => socket.connect_timeout(&SockAddr::from(to), patience),
    };
    Ok(outcome.err().map_or(0, |error| error.raw_os_error().unwrap_or(-1)))
}

/// Attaches a classic BPF program, which sees a packet from its TCP header on (`tcp_filter` in net/ipv4/tcp_ipv4.c).
fn deafen(fd: RawFd, drop: Drop) -> Result<()> {
    /// `BPF_RET | BPF_K`.
    const RETURN: u16 = 0x06;
    /// `BPF_LD | BPF_B | BPF_ABS`.
    const LOAD_BYTE: u16 = 0x30;
    /// `BPF_JMP | BPF_JSET | BPF_K`.
    const JUMP_IF_SET: u16 = 0x45;
    /// Where the flags are in the header, and the flag SYN.
    const FLAGS: u32 = 13;
    const SYN: u32 = 2;
    /// `BPF_ALU | BPF_DIV | BPF_K`.
    const DIVIDE: u16 = 0x34;
    /// A division takes some nanoseconds, each waits for the one before.
    const DIVISIONS: usize = 1_000;
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut program = match drop {
        Drop::Nothing => {
            return set_option(fd, libc::SOL_SOCKET, libc::SO_DETACH_FILTER, &0i32).context("detaching a filter");
        }
        Drop::Everything => vec![step(RETURN, 0, 0, 0)],
        Drop::AllButSyn => vec![
            step(LOAD_BYTE, 0, 0, FLAGS),
            step(JUMP_IF_SET, 0, 1, SYN),
            step(RETURN, 0, 0, u32::MAX),
            step(RETURN, 0, 0, 0),
        ],
        Drop::NothingSlowly => {
            let divisions = std::iter::repeat_n(step(DIVIDE, 0, 0, 1), DIVISIONS);
            divisions.chain([step(RETURN, 0, 0, u32::MAX)]).collect()
        }
    };
    let filter = libc::sock_fprog { len: u16::try_from(program.len())?, filter: program.as_mut_ptr() };
    set_option(fd, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &filter).context("attaching a filter")
}

fn set_option<T>(fd: RawFd, level: libc::c_int, name: libc::c_int, value: &T) -> std::io::Result<()> {
    let length = libc::socklen_t::try_from(size_of::<T>()).unwrap_or(0);
    // SAFETY: the value is `length` bytes long, and the kernel reads no more than that.
    let outcome = unsafe { libc::setsockopt(fd, level, name, std::ptr::from_ref(value).cast(), length) };
    if outcome == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

fn info(socket: &impl AsRawFd) -> Result<TcpState> {
    // SAFETY: plain integers, for which zeros are valid.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = libc::socklen_t::try_from(size_of::<libc::tcp_info>())?;
    // SAFETY: `info` is `length` bytes long, and the kernel writes no more than that.
    let outcome = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, (&raw mut info).cast(), &raw mut length)
    };
    ensure!(outcome == 0, "asking for TCP_INFO: {}", std::io::Error::last_os_error());
    Ok(TcpState { rtt_us: info.tcpi_rtt, unacked: info.tcpi_unacked, retransmitted: info.tcpi_total_retrans })
}

/// The type of the actor's table of listeners.
pub(super) type Listeners = std::collections::BTreeMap<u64, TcpListener>;
