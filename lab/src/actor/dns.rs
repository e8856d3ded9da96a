//! DNS (RFC 1035) by hand, so that what is counted does not come from the library that the agent reads with: a client
//! that asks and says what it was answered, and a server that answers badly.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::protocol::{DnsAnswers, DnsFault, DnsQuestion, DnsWay};
use super::{Server, udp};

/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long, when none is expected.
const IMPATIENCE: Duration = Duration::from_millis(5);
/// The largest message.
const LARGEST: usize = 65_535;
/// Bytes of a header.
const HEADER: usize = 12;

/// Asks each question `rounds` times, one after another. Over TCP each round has a connection of its own: resolvers
/// end those that ask much.
pub(super) fn ask(
    to: SocketAddr,
    way: DnsWay,
    questions: &[DnsQuestion],
    rounds: u32,
    patient: bool,
) -> Result<DnsAnswers> {
    let patience = if patient { PATIENCE } else { IMPATIENCE };
    let mut asker = Asker::open(to, way, patience)?;
    let mut answers = DnsAnswers::default();
    let mut counts: BTreeMap<(u16, u8), u64> = BTreeMap::new();
    let mut id = 0u16;
    for round in 0..rounds {
        if round > 0 && matches!(way, DnsWay::Tcp { .. }) {
            asker = Asker::open(to, way, patience)?;
        }
        for question in questions {
            id = id.wrapping_add(1);
            let Some(answer) = asker.exchange(&encode(id, question)?)? else {
                answers.unanswered += 1;
                continue;
            };
            if answer.len() < HEADER || answer[..2] != id.to_be_bytes() || answer[2] & 0x80 == 0 {
                answers.malformed += 1;
                continue;
            }
            *counts.entry((question.qtype, answer[3] & 0xf)).or_default() += 1;
        }
    }
    answers.answers = counts.into_iter().map(|((qtype, rcode), count)| (qtype, rcode, count)).collect();
    Ok(answers)
}

enum Asker {
    Udp { socket: UdpSocket, to: SocketAddr, connected: bool },
    Tcp { stream: TcpStream, split: bool },
}

impl Asker {
    fn open(to: SocketAddr, way: DnsWay, patience: Duration) -> Result<Self> {
        match way {
            DnsWay::Udp { connected } => {
                let socket = udp::client(to, connected)?;
                socket.set_read_timeout(Some(patience)).context("setting up a UDP socket")?;
                Ok(Self::Udp { socket, to, connected })
            }
            DnsWay::Tcp { split } => {
                let stream = TcpStream::connect(to).with_context(|| format!("connecting to {to}"))?;
                stream.set_nodelay(true).context("setting up a TCP socket")?;
                stream.set_read_timeout(Some(patience)).context("setting up a TCP socket")?;
                Ok(Self::Tcp { stream, split })
            }
        }
    }

    /// Sends a message and waits for one; `None` when none comes.
    fn exchange(&mut self, message: &[u8]) -> Result<Option<Vec<u8>>> {
        let mut buffer = vec![0; LARGEST];
        match self {
            Self::Udp { socket, to, connected } => {
                let sent = if *connected { socket.send(message) } else { socket.send_to(message, *to) };
                sent.with_context(|| format!("asking {to}"))?;
                match socket.recv(&mut buffer) {
                    Ok(length) => buffer.truncate(length),
                    Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                        return Ok(None);
                    }
                    Err(error) => return Err(error).with_context(|| format!("waiting for an answer from {to}")),
                }
            }
            Self::Tcp { stream, split } => {
                let mut framed = u16::try_from(message.len())?.to_be_bytes().to_vec();
                framed.extend(message);
                let (first, rest) = framed.split_at(if *split { 7 } else { framed.len() });
                stream.write_all(first).and_then(|()| stream.write_all(rest)).context("asking over TCP")?;
                match read_message(stream) {
                    Ok(message) => buffer = message,
                    Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
                    Err(error) => return Err(error).context("waiting for an answer over TCP"),
                }
            }
        }
        Ok(Some(buffer))
    }
}

/// A message with its length before it (RFC 1035, section 4.2.2).
fn read_message(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut message = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut message)?;
    Ok(message)
}

/// A message that asks one question and wishes for recursion.
fn encode(id: u16, question: &DnsQuestion) -> Result<Vec<u8>> {
    let mut message = id.to_be_bytes().to_vec();
    message.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in question.name.split('.').filter(|label| !label.is_empty()) {
        ensure!(label.len() < 64, "the label {label:?} is too long for DNS");
        message.push(u8::try_from(label.len())?);
        message.extend(label.as_bytes());
    }
    message.push(0);
    message.extend(question.qtype.to_be_bytes());
    message.extend([0, 1]);
    Ok(message)
}

/// Answers over UDP and TCP, not as a resolver should.
pub(super) fn serve(listen: SocketAddr, fault: DnsFault) -> Result<Arc<Server>> {
    let socket = udp::bound(listen).with_context(|| format!("listening at {listen}"))?;
    let address = socket.local_addr().context("asking a socket for its address")?;
    let listener = TcpListener::bind(address).with_context(|| format!("listening at {address} for TCP"))?;
    let thread = || std::thread::Builder::new().name("dns".to_owned());
    thread()
        .spawn(move || {
            let mut buffer = vec![0; LARGEST];
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                if let Some(answer) = bad_answer(&buffer[..length], fault)
                    && let Err(error) = socket.send_to(&answer, from)
                {
                    eprintln!("observer-lab: answering {from}: {error}");
                }
            }
        })
        .context("starting a thread for a DNS server")?;
    thread()
        .spawn(move || {
            // One after another: so does the client.
            for stream in listener.incoming().map_while(Result::ok) {
                if let Err(error) = answer_stream(stream, fault) {
                    eprintln!("observer-lab: answering over TCP: {error:#}");
                }
            }
        })
        .context("starting a thread for a DNS server")?;
    Ok(Arc::new(Server::new(address, true)))
}

/// Answers until the client ends the connection.
fn answer_stream(mut stream: TcpStream, fault: DnsFault) -> Result<()> {
    stream.set_nodelay(true).context("setting up a TCP socket")?;
    loop {
        let question = match read_message(&mut stream) {
            Ok(question) => question,
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error).context("reading a question"),
        };
        let Some(answer) = bad_answer(&question, fault) else { continue };
        let cut = fault == DnsFault::Cut;
        let said = if cut { question.len() } else { answer.len() };
        let framed = [&u16::try_from(said)?.to_be_bytes()[..], &answer].concat();
        stream.write_all(&framed).context("answering")?;
        if cut {
            return Ok(());
        }
    }
}

fn bad_answer(question: &[u8], fault: DnsFault) -> Option<Vec<u8>> {
    let mut answer = question.to_vec();
    if answer.len() < HEADER {
        return None;
    }
    match fault {
        DnsFault::Silent => return None,
        DnsFault::Rcode(rcode) => {
            answer[2] |= 0x80;
            answer[3] = rcode;
        }
        DnsFault::NoQuestion(rcode) => {
            answer.truncate(HEADER);
            answer[2] |= 0x80;
            answer[3] = rcode;
            answer[4..].fill(0);
        }
        DnsFault::Loop => {
            // The name points at itself (RFC 1035, section 4.1.4).
            answer[2] |= 0x80;
            answer.truncate(HEADER);
            answer.extend([0xc0, 12, 0, 1, 0, 1]);
        }
        DnsFault::Short | DnsFault::Cut => answer.truncate(HEADER - 1),
        DnsFault::Empty => answer.clear(),
        DnsFault::Late(ms) => {
            std::thread::sleep(Duration::from_millis(ms.into()));
            answer[2] |= 0x80;
        }
    }
    Some(answer)
}
