//! What a driver can ask of an actor, and what it answers: JSON, a line each.

use std::net::{IpAddr, SocketAddr};
use std::ops::AddAssign;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::fault::{Fault, TcpState};

/// Something to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// Serve TCP in the background until the actor ends. Port 0 takes a free one; `[::]` is IPv4, too.
    TcpServe {
        /// Where to listen.
        listen: SocketAddr,
        /// What to do with a connection.
        mode: ServeMode,
        /// How many connections may wait to be accepted.
        backlog: u32,
    },
    /// Send one stream on a connection of its own, end it, and read whatever comes back.
    TcpSend {
        /// The server.
        to: SocketAddr,
        /// How many bytes to send.
        bytes: u64,
        /// How many bytes to write at once.
        chunk: u32,
    },
    /// Make connections; on each send requests and read their responses, then end it.
    TcpRequests {
        /// The server.
        to: SocketAddr,
        /// How many connections.
        connections: u32,
        /// How many requests on each.
        requests: u32,
        /// The size of a request.
        request_bytes: u32,
        /// The size of a response.
        response_bytes: u32,
        /// How many connections at a time.
        parallel: u16,
    },
    /// Open a connection that stays.
    TcpOpen {
        /// The server.
        to: SocketAddr,
    },
    /// Write on an open connection, then read a reply.
    TcpWrite {
        /// Its number.
        connection: u64,
        /// How many bytes to write.
        bytes: u64,
        /// How many bytes to read afterwards.
        reply_bytes: u64,
    },
    /// End an open connection, and read what still comes until the other side ends it too.
    TcpClose {
        /// Its number.
        connection: u64,
    },
    /// Let TCP go wrong.
    Fault(Fault),
    /// Serve UDP in the background until the actor ends. Port 0 takes a free one.
    UdpServe {
        /// Where to listen.
        listen: SocketAddr,
        /// Whether to send each datagram back.
        echo: bool,
    },
    /// Hold a UDP socket and never read from it. Port 0 takes a free one.
    UdpHold {
        /// Where to listen.
        listen: SocketAddr,
        /// The size of its receive buffer; the kernel doubles it, and has a smallest one.
        buffer: usize,
    },
    /// Send datagrams from one socket.
    UdpSend {
        /// The server.
        to: SocketAddr,
        /// Their sizes.
        sizes: Sizes,
        /// Whether the socket is connected.
        connected: bool,
        /// How fast.
        pace: Pace,
    },
    /// Open a UDP socket that stays. Answers with it as a connection.
    UdpOpen {
        /// Where to listen. Port 0 takes a free one; `[::]` is IPv4, too.
        listen: SocketAddr,
        /// Whom to connect it to.
        to: Option<SocketAddr>,
    },
    /// Send datagrams on an open UDP socket, each after the echo of the one before.
    UdpTalk {
        /// The socket's number.
        socket: u64,
        /// To whom, and how many bytes; on a connected socket to its peer alone.
        datagrams: Vec<(SocketAddr, u32)>,
    },
    /// Serve a Unix socket in the background until the actor ends.
    UnixServe {
        /// Where.
        path: PathBuf,
        /// Its kind.
        kind: UnixKind,
    },
    /// Send messages over a Unix socket.
    UnixSend {
        /// The server.
        path: PathBuf,
        /// The kind of the socket.
        kind: UnixKind,
        /// How many.
        messages: u32,
        /// How long each is, in bytes.
        size: u32,
    },
    /// Send ICMP echo requests, each after the reply to the one before.
    Ping {
        /// The other side.
        to: IpAddr,
        /// How many.
        count: u32,
        /// Bytes in each after the ICMP header of 8 bytes.
        payload: u16,
        /// Use a raw socket, which on loopback also receives the requests, instead of a ping socket.
        raw: bool,
    },
    /// Hold a raw socket that nobody reads from.
    RawHold {
        /// Its address.
        address: IpAddr,
        /// The protocol's number.
        protocol: u8,
    },
    /// Send packets of a protocol that has no sockets of its own here.
    RawSend {
        /// The address that they come from.
        from: IpAddr,
        /// The other side. Its port is written where SCTP's packets have it.
        to: SocketAddr,
        /// The protocol's number.
        protocol: u8,
        /// How many.
        count: u32,
        /// Bytes in each after the IP header, the ports included.
        payload: u16,
    },
    /// Ask a resolver, each question after the answer to the one before.
    DnsAsk {
        /// The resolver.
        to: SocketAddr,
        /// How.
        way: DnsWay,
        /// What to ask in a round.
        questions: Vec<DnsQuestion>,
        /// How many rounds.
        rounds: u32,
        /// Wait for seconds for an answer that must come, not for milliseconds for one that will not.
        patient: bool,
    },
    /// Serve DNS over UDP and TCP, badly, in the background until the actor ends.
    DnsServe {
        /// Where to listen.
        listen: SocketAddr,
        /// What is wrong with the answers.
        fault: DnsFault,
    },
    /// Say what the servers have seen.
    Stats,
    /// Use this much CPU time.
    Burn {
        /// In milliseconds.
        cpu_ms: u64,
    },
    /// Hold this much memory, all of it written to; 0 lets go of it.
    Touch {
        /// In MiB.
        mib: u32,
    },
    /// Hold this many child processes that do nothing; 0 ends them.
    Fork {
        /// How many.
        count: u32,
    },
    /// Hold a System V segment of this size, all of it written to; 0 removes it.
    Segment {
        /// In MiB.
        mib: u32,
    },
    /// Write over the beginning of a file, past the page cache.
    DiskWrite {
        /// The file.
        path: PathBuf,
        /// How many blocks of 64 KiB.
        blocks: u32,
    },
    /// Read the beginning of a file, past the page cache.
    DiskRead {
        /// The file.
        path: PathBuf,
        /// How many blocks of 64 KiB.
        blocks: u32,
    },
    /// Do nothing for a while.
    Sleep {
        /// In milliseconds.
        ms: u64,
    },
    /// Repeat a script in the background.
    Start {
        /// What to do in a round.
        script: Vec<Command>,
        /// From the start of a round to the start of the next.
        every_ms: u64,
        /// How many rounds; without, until it is stopped.
        rounds: Option<u64>,
    },
    /// Stop a job after its current round.
    Stop {
        /// Its number.
        job: u64,
    },
    /// Wait for a job that ends by itself.
    Join {
        /// Its number.
        job: u64,
    },
    /// Answer, and nothing else.
    Ready,
    /// End.
    Exit,
}

/// Kinds of Unix sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnixKind {
    /// `SOCK_STREAM`; each message comes back before the next is sent.
    Stream,
    /// `SOCK_DGRAM`; the server takes what comes.
    Datagram,
}

/// What a TCP server does with a connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServeMode {
    /// Send everything back.
    Echo,
    /// Read everything.
    Sink,
    /// For each request of one size send a response of another.
    RequestResponse {
        /// The size of a request.
        request_bytes: u32,
        /// The size of a response.
        response_bytes: u32,
        /// What to ask of others before the response.
        upstreams: Vec<Upstream>,
    },
}

impl ServeMode {
    /// A server that asks nobody else.
    pub fn request_response(request_bytes: u32, response_bytes: u32) -> Self {
        Self::RequestResponse { request_bytes, response_bytes, upstreams: Vec::new() }
    }
}

/// Another server that a server calls for each request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Upstream {
    /// A request on a connection that stays open.
    Tcp {
        /// The server.
        to: SocketAddr,
        /// The size of a request.
        request_bytes: u32,
        /// The size of a response.
        response_bytes: u32,
    },
    /// A datagram, without an answer.
    Udp {
        /// The server.
        to: SocketAddr,
        /// Its size.
        bytes: u32,
    },
}

/// Sizes of datagrams.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sizes {
    /// These.
    List(Vec<u32>),
    /// Random ones, the same for the same seed.
    Random {
        /// How many.
        count: u32,
        /// The smallest.
        min: u32,
        /// The largest.
        max: u32,
        /// Where to start.
        seed: u64,
    },
}

impl Sizes {
    /// The sizes, one after another.
    pub fn iter(&self) -> Box<dyn Iterator<Item = u32> + '_> {
        match self {
            Self::List(sizes) => Box::new(sizes.iter().copied()),
            Self::Random { count, min, max, seed } => {
                let (min, span) = (*min, u64::from(max.saturating_sub(*min)) + 1);
                let mut state = seed | 1;
                Box::new((0..*count).map(move |_| {
                    // xorshift64
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    // The remainder is at most `max - min`, which fits.
                    min + u32::try_from((state >> 11) % span).unwrap_or(0)
                }))
            }
        }
    }

    /// How many datagrams and how many bytes these are.
    pub fn totals(&self) -> (u64, u64) {
        self.iter().fold((0, 0), |(count, bytes), size| (count + 1, bytes + u64::from(size)))
    }
}

/// How fast datagrams are sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pace {
    /// As fast as the socket takes them.
    Free,
    /// With a pause after every few.
    Batches {
        /// How many in a row.
        datagrams: u32,
        /// How long the pause is.
        pause_us: u64,
    },
    /// Never more than this many that were not echoed yet: nothing is lost. The server must echo.
    Echoed {
        /// How many.
        window: u32,
    },
}

/// How a resolver is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DnsWay {
    /// From one UDP socket.
    Udp {
        /// Whether it is connected.
        connected: bool,
    },
    /// On a TCP connection for each round.
    Tcp {
        /// Whether a question is sent in two pieces.
        split: bool,
    },
}

/// A question to a resolver.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsQuestion {
    /// The name.
    pub name: String,
    /// The number of the type.
    pub qtype: u16,
}

/// What is wrong with a server's answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DnsFault {
    /// There are none.
    Silent,
    /// They say this.
    Rcode(u8),
    /// They say this, and leave the question out.
    NoQuestion(u8),
    /// A name points at itself.
    Loop,
    /// They are too short for a header.
    Short,
    /// There is nothing in them.
    Empty,
    /// Over TCP the connection ends before they do; over UDP they are too short for a header.
    Cut,
    /// They are right, and come after so many milliseconds.
    Late(u16),
}

/// What a resolver answered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsAnswers {
    /// How many, by numbers of type and outcome.
    pub answers: Vec<(u16, u8, u64)>,
    /// Questions without an answer.
    pub unanswered: u64,
    /// What came and is no answer to the question.
    pub malformed: u64,
}

/// What was sent and received: payload, without any header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Connections made.
    pub connections: u64,
    /// Requests answered.
    pub requests: u64,
    /// Bytes sent.
    pub sent_bytes: u64,
    /// Bytes received.
    pub received_bytes: u64,
    /// Datagrams (or echo requests) sent.
    pub sent_datagrams: u64,
    /// Datagrams (or echo replies) received.
    pub received_datagrams: u64,
    /// Commands of a job, or connections of a server, that failed.
    pub failures: u64,
}

impl AddAssign for Traffic {
    fn add_assign(&mut self, other: Self) {
        self.connections += other.connections;
        self.requests += other.requests;
        self.sent_bytes += other.sent_bytes;
        self.received_bytes += other.received_bytes;
        self.sent_datagrams += other.sent_datagrams;
        self.received_datagrams += other.received_datagrams;
        self.failures += other.failures;
    }
}

/// What a server has seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerStats {
    /// Where it listens.
    pub address: SocketAddr,
    /// Whether it is a UDP server.
    pub udp: bool,
    /// What it sent and received; its connections are those it accepted.
    pub traffic: Traffic,
    /// Connections that have not ended.
    pub open: u64,
}

/// What an actor answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// It is done.
    Done,
    /// A server listens here.
    Serving {
        /// Its address, with its port.
        address: SocketAddr,
    },
    /// This was sent and received.
    Traffic(Traffic),
    /// This was answered by a resolver.
    Dns(DnsAnswers),
    /// A connection is open.
    Opened {
        /// Its number.
        connection: u64,
        /// The address of the actor's end.
        local: SocketAddr,
    },
    /// Connects ended with these error numbers; 0 is success.
    Dialed {
        /// In no order.
        errors: Vec<i32>,
    },
    /// The state of a connection.
    Tcp(TcpState),
    /// What the servers have seen.
    Stats {
        /// In the order in which they were started.
        servers: Vec<ServerStats>,
    },
    /// A job runs.
    Job {
        /// Its number.
        job: u64,
    },
}

/// The line that a process writes when it is in place and has done its first commands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// Its process id, as `/proc` shows it.
    pub pid: u32,
    /// The answers to its first commands.
    pub answers: Vec<Answer>,
}

/// A line from an actor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply<T> {
    /// It went well.
    Done(T),
    /// It did not, for this reason.
    Failed(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_sizes_are_the_same_again_and_within_bounds() {
        let sizes = Sizes::Random { count: 1000, min: 1, max: 1472, seed: 7 };
        assert!(sizes.iter().all(|size| (1..=1472).contains(&size)));
        assert_eq!(sizes.totals(), sizes.totals());
        assert_eq!(sizes.totals().0, 1000);
        let wanted = 1000 * 1473 / 2;
        assert!(sizes.totals().1.abs_diff(wanted) < wanted / 10);
    }

    #[test]
    fn commands_survive_the_pipe() {
        let command = Command::TcpServe {
            listen: "[::1]:80".parse().unwrap(),
            mode: ServeMode::request_response(10, 20),
            backlog: 5,
        };
        let line = serde_json::to_string(&command).unwrap();
        assert_eq!(serde_json::from_str::<Command>(&line).unwrap(), command);
    }
}
