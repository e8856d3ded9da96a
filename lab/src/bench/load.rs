//! The load: one client process and one server process, lean enough that what is measured is the kernel.
//!
//! The measure is work per CPU-second of both, not per second of the clock: on a machine that does other things the
//! clock says little. Both begin to measure when they are warm: what starts a process, and what has just loaded a program and
//! leaves the caches to others, is no part of it.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::ExitCode;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use rustix::thread::CpuSet;

/// How a load is measured, on the command line of a benchmark.
#[derive(Args, Clone, Debug)]
pub struct Measuring {
    /// How long the load runs before each measurement, in milliseconds.
    #[arg(long, default_value_t = 50)]
    pub warm_up: u64,
    /// How long one measurement takes, in milliseconds. With the time before it, from about half a second on connections take all
    /// ports that the kernel has for clients, and what is measured is how it looks for a free one.
    #[arg(long, default_value_t = 150)]
    pub milliseconds: u64,
    /// The processor that client and server share.
    #[arg(long, default_value_t = 1)]
    pub cpu: usize,
    /// Measure these alone.
    #[arg(long = "workload", value_name = "WORKLOAD", value_delimiter = ',', default_value = "rr,crr,udp-rr,stream")]
    pub workloads: Vec<Workload>,
}

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Workload {
    /// A request and its response on an open TCP connection.
    Rr,
    /// A connection for each request.
    Crr,
    /// A datagram and its answer.
    UdpRr,
    /// One TCP stream.
    Stream,
}

impl Workload {
    /// What a table calls it.
    pub const fn title(self) -> &'static str {
        match self {
            Self::Rr => "TCP request and response",
            Self::Crr => "a TCP connection for each request",
            Self::UdpRr => "UDP request and response",
            Self::Stream => "TCP stream",
        }
    }
}

/// Which end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum End {
    /// Sends first.
    Client,
    /// Answers until its standard input ends.
    Server,
}

/// A process of the load.
#[derive(Args, Clone, Debug, PartialEq)]
pub struct Load {
    /// Which end.
    #[arg(long, value_enum)]
    pub end: End,
    /// What is sent.
    #[arg(long, value_enum)]
    pub workload: Workload,
    /// Where the server listens.
    #[arg(long)]
    pub address: SocketAddr,
    /// How long the client sends before anything is measured, in milliseconds.
    #[arg(long)]
    pub warm_up: u64,
    /// How long it sends after that, in milliseconds.
    #[arg(long)]
    pub milliseconds: u64,
    /// The processor to run on.
    #[arg(long)]
    pub cpu: usize,
}

impl Load {
    /// What the command line of such a process says.
    #[must_use]
    pub fn arguments(&self) -> Vec<String> {
        let name = |value: Option<clap::builder::PossibleValue>| {
            value.map(|value| value.get_name().to_owned()).unwrap_or_default()
        };
        vec![
            "load".to_owned(),
            format!("--end={}", name(self.end.to_possible_value())),
            format!("--workload={}", name(self.workload.to_possible_value())),
            format!("--address={}", self.address),
            format!("--warm-up={}", self.warm_up),
            format!("--milliseconds={}", self.milliseconds),
            format!("--cpu={}", self.cpu),
        ]
    }
}

/// Bytes of a request, and of its response.
pub const MESSAGE: usize = 64;
/// Bytes that a stream writes at once.
const CHUNK: usize = 64 << 10;
/// Requests between two looks at the clock.
const BATCH: u64 = 16;

/// The first byte of what is sent before anything is measured.
const WARM_UP: u8 = b'w';
/// And of what is measured.
const MEASURED: u8 = b'x';

/// Runs one end. The server says `ready` when it listens; each end's last line is the work that was measured, its CPU time for that
/// in microseconds, and how many connections were made in all.
///
/// # Errors
/// What the sockets say.
pub fn run(load: &Load) -> Result<ExitCode> {
    let mut set = CpuSet::new();
    set.set(load.cpu);
    rustix::thread::sched_setaffinity(None, &set).with_context(|| format!("running on processor {}", load.cpu))?;
    match load.end {
        End::Server => serve(load.workload, load.address)?,
        End::Client => {
            let mut client = Client::new(load.workload, load.address)?;
            client.send(WARM_UP, Duration::from_millis(load.warm_up))?;
            let before = cpu_time();
            let work = client.send(MEASURED, Duration::from_millis(load.milliseconds))?;
            println!("{work} {} {}", (cpu_time() - before).as_micros(), client.connections);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The server's CPU time when the first request came that is measured.
static MEASURED_FROM: OnceLock<Duration> = OnceLock::new();

/// Something came in.
fn received(bytes: &[u8]) {
    if bytes.first() == Some(&MEASURED) {
        MEASURED_FROM.get_or_init(cpu_time);
    }
}

fn serve(workload: Workload, address: SocketAddr) -> Result<()> {
    let what = || format!("serving at {address}");
    // The end of the standard input ends the server, wherever it waits.
    std::thread::spawn(|| {
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        let now = cpu_time();
        println!("0 {} 0", (now - MEASURED_FROM.get().copied().unwrap_or(now)).as_micros());
        std::process::exit(0);
    });
    let mut buffer = vec![0; CHUNK];
    if workload == Workload::UdpRr {
        let socket = UdpSocket::bind(address).with_context(what)?;
        println!("ready");
        loop {
            let (length, from) = socket.recv_from(&mut buffer).with_context(what)?;
            received(&buffer[..length]);
            // A client that has ended meanwhile is no error.
            let _ = socket.send_to(&buffer[..length], from);
        }
    }
    let listener = TcpListener::bind(address).with_context(what)?;
    println!("ready");
    loop {
        let (mut stream, _) = listener.accept().with_context(what)?;
        stream.set_nodelay(true).with_context(what)?;
        // A client that goes ends the connection, nothing else.
        let _ = match workload {
            Workload::Stream => sink(&mut stream, &mut buffer),
            _ => answer(&mut stream, &mut buffer[..MESSAGE]),
        };
    }
}

fn sink(stream: &mut TcpStream, buffer: &mut [u8]) -> std::io::Result<()> {
    loop {
        match stream.read(buffer)? {
            0 => return Ok(()),
            length => received(&buffer[..length]),
        }
    }
}

fn answer(stream: &mut TcpStream, message: &mut [u8]) -> std::io::Result<()> {
    while stream.read_exact(message).is_ok() {
        received(message);
        stream.write_all(message)?;
    }
    Ok(())
}

/// Who sends.
struct Client {
    server: SocketAddr,
    way: Way,
    connections: u64,
}

enum Way {
    Rr(TcpStream),
    Crr,
    UdpRr(UdpSocket),
    Stream(TcpStream),
}

impl Client {
    fn new(workload: Workload, server: SocketAddr) -> Result<Self> {
        let what = || format!("talking to {server}");
        let way = match workload {
            Workload::Rr => Way::Rr(connect(server).with_context(what)?),
            Workload::Crr => Way::Crr,
            Workload::UdpRr => {
                let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).with_context(what)?;
                socket.connect(server).with_context(what)?;
                socket.set_read_timeout(Some(Duration::from_millis(200))).with_context(what)?;
                Way::UdpRr(socket)
            }
            Workload::Stream => Way::Stream(connect(server).with_context(what)?),
        };
        let connections = u64::from(matches!(way, Way::Rr(_) | Way::Stream(_)));
        Ok(Self { server, way, connections })
    }

    /// Sends until the time is up; gives the number of requests, or of bytes of a stream.
    fn send(&mut self, first: u8, time: Duration) -> Result<u64> {
        let Self { server, way, connections } = self;
        let what = || format!("talking to {server}");
        let end = Instant::now() + time;
        let mut message = [first; MESSAGE];
        let mut work = 0;
        match way {
            Way::Rr(stream) => {
                while work % BATCH != 0 || Instant::now() < end {
                    exchange(stream, &mut message).with_context(what)?;
                    work += 1;
                }
            }
            Way::Crr => {
                while Instant::now() < end {
                    let mut stream = connect(*server).with_context(what)?;
                    exchange(&mut stream, &mut message).with_context(what)?;
                    work += 1;
                }
                *connections += work;
            }
            Way::UdpRr(socket) => {
                while work % BATCH != 0 || Instant::now() < end {
                    socket.send(&message).with_context(what)?;
                    socket.recv(&mut message).with_context(what)?;
                    work += 1;
                }
            }
            Way::Stream(stream) => {
                let chunk = vec![first; CHUNK];
                while Instant::now() < end {
                    stream.write_all(&chunk).with_context(what)?;
                    work += CHUNK as u64;
                }
            }
        }
        Ok(work)
    }
}

fn connect(server: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect(server)?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn exchange(stream: &mut TcpStream, message: &mut [u8]) -> std::io::Result<()> {
    stream.write_all(message)?;
    stream.read_exact(message)
}

/// CPU time of this process, user and system.
fn cpu_time() -> Duration {
    // SAFETY: an `rusage` of zeros is valid (plain integers), and getrusage(2) fills one live struct.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &raw mut usage);
        usage
    };
    let time = |time: libc::timeval| {
        Duration::from_secs(time.tv_sec.unsigned_abs()) + Duration::from_micros(time.tv_usec.unsigned_abs())
    };
    time(usage.ru_utime) + time(usage.ru_stime)
}
