//! The load: one client process and one server process, lean enough that what is measured is the kernel.
//!
//! The measure is work per CPU-second of both, not per second of the clock: on a machine that does other things the
//! clock says little.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use rustix::thread::CpuSet;

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
    /// The server's port.
    #[arg(long)]
    pub port: u16,
    /// How long the client sends, in milliseconds.
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
            format!("--port={}", self.port),
            format!("--milliseconds={}", self.milliseconds),
            format!("--cpu={}", self.cpu),
        ]
    }
}

/// Bytes of a request, and of its response.
const MESSAGE: usize = 64;
/// Bytes that a stream writes at once.
const CHUNK: usize = 64 << 10;
/// Requests between two looks at the clock.
const BATCH: u64 = 16;

/// Runs one end. The server says `ready` when it listens; each end's last line is its work and its CPU time in
/// microseconds.
///
/// # Errors
/// What the sockets say.
pub fn run(load: &Load) -> Result<ExitCode> {
    let mut set = CpuSet::new();
    set.set(load.cpu);
    rustix::thread::sched_setaffinity(None, &set).with_context(|| format!("running on processor {}", load.cpu))?;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, load.port));
    match load.end {
        End::Server => serve(load.workload, address)?,
        End::Client => {
            let work = ask(load.workload, address, Duration::from_millis(load.milliseconds))?;
            println!("{work} {}", cpu_time().as_micros());
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn serve(workload: Workload, address: SocketAddr) -> Result<()> {
    let what = || format!("serving at {address}");
    // The end of the standard input ends the server, wherever it waits.
    std::thread::spawn(|| {
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        println!("0 {}", cpu_time().as_micros());
        std::process::exit(0);
    });
    let mut buffer = vec![0; CHUNK];
    if workload == Workload::UdpRr {
        let socket = UdpSocket::bind(address).with_context(what)?;
        println!("ready");
        loop {
            let (length, from) = socket.recv_from(&mut buffer).with_context(what)?;
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
    while stream.read(buffer)? > 0 {}
    Ok(())
}

fn answer(stream: &mut TcpStream, message: &mut [u8]) -> std::io::Result<()> {
    while stream.read_exact(message).is_ok() {
        stream.write_all(message)?;
    }
    Ok(())
}

/// Sends until the time is up; gives the number of requests, or of bytes of a stream.
fn ask(workload: Workload, server: SocketAddr, time: Duration) -> Result<u64> {
    let what = || format!("talking to {server}");
    let end = Instant::now() + time;
    let mut message = [b'x'; MESSAGE];
    let mut work = 0;
    match workload {
        Workload::Rr => {
            let mut stream = connect(server).with_context(what)?;
            while work % BATCH != 0 || Instant::now() < end {
                exchange(&mut stream, &mut message).with_context(what)?;
                work += 1;
            }
        }
        Workload::Crr => {
            while Instant::now() < end {
                let mut stream = connect(server).with_context(what)?;
                exchange(&mut stream, &mut message).with_context(what)?;
                work += 1;
            }
        }
        Workload::UdpRr => {
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).with_context(what)?;
            socket.connect(server).with_context(what)?;
            socket.set_read_timeout(Some(Duration::from_millis(200))).with_context(what)?;
            while work % BATCH != 0 || Instant::now() < end {
                socket.send(&message).with_context(what)?;
                socket.recv(&mut message).with_context(what)?;
                work += 1;
            }
        }
        Workload::Stream => {
            let mut stream = connect(server).with_context(what)?;
            let chunk = vec![b'x'; CHUNK];
            while Instant::now() < end {
                stream.write_all(&chunk).with_context(what)?;
                work += CHUNK as u64;
            }
            stream.shutdown(Shutdown::Write).with_context(what)?;
        }
    }
    Ok(work)
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
