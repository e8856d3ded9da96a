//! What runs in a container: it carries out the driver's commands and answers with exact facts.

mod disk;
mod dns;
mod fault;
mod icmp;
mod jobs;
mod protocol;
mod raw;
mod tcp;
mod tcp_server;
mod udp;
mod unix;
mod work;

use std::collections::BTreeMap;
use std::io::{BufRead, Write};
use std::net::{TcpStream, UdpSocket};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use serde::Serialize;

pub use fault::{Drop, Fault, TcpState};
pub use protocol::{
    Answer, Command, DnsAnswers, DnsFault, DnsQuestion, DnsWay, Hello, Pace, Reply, ServeMode, ServerStats, Sizes,
    Traffic, UnixKind, Upstream,
};

pub(crate) use unix::send as send_unix;

use jobs::Job;

/// What an actor holds on to.
#[derive(Default)]
pub(crate) struct Actor {
    servers: Mutex<Vec<Arc<Server>>>,
    connections: Mutex<BTreeMap<u64, TcpStream>>,
    listeners: Mutex<fault::Listeners>,
    jobs: Mutex<BTreeMap<u64, Job>>,
    memory: Mutex<Vec<u8>>,
    children: Mutex<work::Children>,
    segment: Mutex<Option<work::Segment>>,
    held: Mutex<Vec<UdpSocket>>,
    datagrams: Mutex<BTreeMap<u64, UdpSocket>>,
    next: AtomicU64,
}

/// The counters of a running server.
pub(crate) struct Server {
    pub(crate) address: std::net::SocketAddr,
    pub(crate) udp: bool,
    pub(crate) counts: Mutex<Traffic>,
    pub(crate) open: AtomicU64,
}

impl Server {
    pub(crate) fn new(address: std::net::SocketAddr, udp: bool) -> Self {
        Self { address, udp, counts: Mutex::default(), open: AtomicU64::new(0) }
    }

    pub(crate) fn add(&self, traffic: Traffic) {
        *lock(&self.counts) += traffic;
    }

    fn stats(&self) -> ServerStats {
        ServerStats {
            address: self.address,
            udp: self.udp,
            traffic: *lock(&self.counts),
            open: self.open.load(Ordering::SeqCst),
        }
    }
}

/// Locks; what a panicking thread has left is still what was counted.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Holds the pod's namespaces until the driver goes.
pub fn pause() -> Result<ExitCode> {
    say(&Reply::Done(Hello { pid: own_pid()?, answers: Vec::new() }))?;
    std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink()).context("waiting for the driver to go")?;
    Ok(ExitCode::SUCCESS)
}

/// Carries out `first`, says hello, then carries out what the driver asks for until it goes.
pub fn run(first: &[Command]) -> Result<ExitCode> {
    let actor = Arc::new(Actor::default());
    let answers: Result<Vec<Answer>> = first.iter().map(|command| actor.run(command)).collect();
    let hello = answers.and_then(|answers| Ok(Hello { pid: own_pid()?, answers }));
    say(&reply(hello))?;
    let (sender, commands) = std::sync::mpsc::channel();
    std::thread::Builder::new()
        .name("driver".to_owned())
        .spawn(move || {
            for line in std::io::stdin().lock().lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
            // The driver is gone, whatever the actor is just doing.
            std::process::exit(0);
        })
        .context("starting the thread that reads commands")?;
    for line in commands {
        let command = serde_json::from_str(&line).with_context(|| format!("reading the command {line}"));
        let done = matches!(command, Ok(Command::Exit));
        say(&reply(command.and_then(|command| actor.run(&command))))?;
        if done {
            break;
        }
    }
    Ok(ExitCode::SUCCESS)
}

impl Actor {
    /// Carries out a command.
    pub(crate) fn run(self: &Arc<Self>, command: &Command) -> Result<Answer> {
        match command {
            Command::TcpServe { listen, mode, backlog } => self.serving(tcp_server::serve(*listen, mode, *backlog)?),
            Command::TcpSend { to, bytes, chunk } => tcp::send(*to, *bytes, *chunk).map(Answer::Traffic),
            Command::TcpRequests { to, connections, requests, request_bytes, response_bytes, parallel } => {
                let exchange = tcp::Exchange {
                    requests: *requests,
                    request_bytes: *request_bytes,
                    response_bytes: *response_bytes,
                };
                tcp::requests(*to, *connections, exchange, *parallel).map(Answer::Traffic)
            }
            Command::TcpOpen { to } => {
                let stream = tcp::connect(*to)?;
                let local = stream.local_addr().context("asking a connection for its address")?;
                let connection = self.number();
                lock(&self.connections).insert(connection, stream);
                Ok(Answer::Opened { connection, local })
            }
            Command::TcpWrite { connection, bytes, reply_bytes } => {
                tcp::write_and_read(&self.connection(*connection)?, *bytes, *reply_bytes).map(Answer::Traffic)
            }
            Command::TcpClose { connection } => {
                let stream = self.connection(*connection)?;
                lock(&self.connections).remove(connection);
                tcp::finish(&stream).map(Answer::Traffic)
            }
            Command::Fault(fault) => self.fault(fault),
            Command::UdpServe { listen, echo } => self.serving(udp::serve(*listen, *echo)?),
            Command::UdpHold { listen, buffer } => {
                let (socket, address) = udp::hold(*listen, *buffer)?;
                lock(&self.held).push(socket);
                Ok(Answer::Serving { address })
            }
            Command::UdpSend { to, sizes, connected, pace } => {
                udp::send(*to, sizes, *connected, pace).map(Answer::Traffic)
            }
            Command::UdpOpen { listen, to } => {
                let (socket, local) = udp::open(*listen, *to)?;
                let connection = self.number();
                lock(&self.datagrams).insert(connection, socket);
                Ok(Answer::Opened { connection, local })
            }
            Command::UdpTalk { socket, datagrams } => {
                let sockets = lock(&self.datagrams);
                let socket = sockets.get(socket).with_context(|| format!("there is no open UDP socket {socket}"))?;
                udp::talk(socket, datagrams).map(Answer::Traffic)
            }
            Command::UnixServe { path, kind } => unix::serve(path, *kind).map(|()| Answer::Done),
            Command::UnixSend { path, kind, messages, size } => {
                unix::send(path, *kind, *messages, *size).map(Answer::Traffic)
            }
            Command::Ping { to, count, payload, raw } => icmp::ping(*to, *count, *payload, *raw).map(Answer::Traffic),
            Command::RawHold { address, protocol } => {
                lock(&self.held).push(raw::hold(*address, *protocol)?);
                Ok(Answer::Done)
            }
            Command::RawSend { from, to, protocol, count, payload } => {
                raw::send(*from, *to, *protocol, *count, *payload).map(Answer::Traffic)
            }
            Command::DnsAsk { to, way, questions, rounds, patient } => {
                dns::ask(*to, *way, questions, *rounds, *patient).map(Answer::Dns)
            }
            Command::DnsServe { listen, fault } => self.serving(dns::serve(*listen, *fault)?),
            Command::Stats => {
                let servers = lock(&self.servers).iter().map(|server| server.stats()).collect();
                Ok(Answer::Stats { servers })
            }
            Command::Burn { cpu_ms } => work::burn(*cpu_ms).map(|()| Answer::Done),
            Command::Touch { mib } => {
                *lock(&self.memory) = work::touch(*mib)?;
                Ok(Answer::Done)
            }
            Command::Fork { count } => {
                *lock(&self.children) = work::Children::fork(*count)?;
                Ok(Answer::Done)
            }
            Command::Segment { mib } => {
                let mut segment = lock(&self.segment);
                *segment = None;
                if *mib > 0 {
                    *segment = Some(work::Segment::create(*mib)?);
                }
                Ok(Answer::Done)
            }
            Command::DiskWrite { path, blocks } => disk::write(path, *blocks).map(|()| Answer::Done),
            Command::DiskRead { path, blocks } => disk::read(path, *blocks).map(|()| Answer::Done),
            Command::Sleep { ms } => {
                std::thread::sleep(std::time::Duration::from_millis(*ms));
                Ok(Answer::Done)
            }
            Command::Start { script, every_ms, rounds } => {
                let job = self.number();
                let started = Job::start(self, script.clone(), *every_ms, *rounds)?;
                lock(&self.jobs).insert(job, started);
                Ok(Answer::Job { job })
            }
            Command::Stop { job } => self.job(*job)?.stop().map(Answer::Traffic),
            Command::Join { job } => self.job(*job)?.join().map(Answer::Traffic),
            Command::Ready | Command::Exit => Ok(Answer::Done),
        }
    }

    fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    fn serving(&self, server: Arc<Server>) -> Result<Answer> {
        let address = server.address;
        lock(&self.servers).push(server);
        Ok(Answer::Serving { address })
    }

    fn connection(&self, number: u64) -> Result<TcpStream> {
        lock(&self.connections)
            .get(&number)
            .with_context(|| format!("there is no open connection {number}"))?
            .try_clone()
            .with_context(|| format!("duplicating connection {number}"))
    }

    fn job(&self, number: u64) -> Result<Job> {
        lock(&self.jobs).remove(&number).with_context(|| format!("there is no job {number}"))
    }
}

fn reply<T>(outcome: Result<T>) -> Reply<T> {
    match outcome {
        Ok(answer) => Reply::Done(answer),
        Err(error) => Reply::Failed(format!("{error:#}")),
    }
}

fn say(message: &impl Serialize) -> Result<()> {
    let mut line = serde_json::to_string(message).context("writing an answer as JSON")?;
    line.push('\n');
    let mut output = std::io::stdout().lock();
    output.write_all(line.as_bytes()).and_then(|()| output.flush()).context("answering the driver")
}

/// The process id that `/proc` shows, which is the driver's view of it: `/proc` is mounted in the
/// driver's PID namespace.
fn own_pid() -> Result<u32> {
    let target = std::fs::read_link("/proc/self").context("reading /proc/self")?;
    target
        .to_str()
        .and_then(|pid| pid.parse().ok())
        .with_context(|| format!("reading a process id from {}", target.display()))
}
