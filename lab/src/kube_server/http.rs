//! HTTP/1.1 over TLS, as far as one client needs it.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::Shared;
use super::state::{Answer, Next};

type Stream = StreamOwned<ServerConnection, TcpStream>;

/// How long a watch waits for something to say before it looks whether the server is over.
const WAIT: Duration = Duration::from_millis(100);

/// Serves one connection to its end.
pub fn serve(stream: TcpStream, config: Arc<ServerConfig>, shared: &Shared) {
    let Ok(connection) = ServerConnection::new(config) else { return };
    // A client that goes away, or that does not believe the certificate, is nothing to tell.
    let _ = answer_all(&mut StreamOwned::new(connection, stream), shared);
}

fn answer_all(stream: &mut Stream, shared: &Shared) -> io::Result<()> {
    while let Some((path, authorization)) = request(stream)? {
        let (answer, since) = {
            let mut state = shared.state();
            (state.ask(&path, &authorization), state.interruptions())
        };
        match answer {
            Answer::Whole(status, body) => {
                let length = body.len();
                let head = format!(
                    "HTTP/1.1 {status} x\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
                );
                stream.write_all(&[head.as_bytes(), &body].concat())?;
                stream.flush()?;
            }
            Answer::Watch(at, from) => {
                shared.state().watches += 1;
                let ended = watch(stream, shared, (&at, from), since);
                shared.state().watches -= 1;
                ended?;
            }
        }
    }
    Ok(())
}

fn watch(stream: &mut Stream, shared: &Shared, (at, from): (&str, usize), since: (u64, u64)) -> io::Result<()> {
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")?;
    stream.flush()?;
    let mut said = from;
    loop {
        let next = {
            let state = shared.state();
            match state.next(at, said, since) {
                Next::Wait => {
                    drop(shared.changed.wait_timeout(state, WAIT));
                    continue;
                }
                next => next,
            }
        };
        match next {
            Next::Lines(lines) => {
                said += lines.len();
                lines.iter().try_for_each(|line| chunk(stream, &format!("{line}\n")))?;
            }
            Next::Broken(part) => {
                chunk(stream, &part)?;
                // Without a word of TLS that this is the end.
                return stream.sock.shutdown(Shutdown::Both);
            }
            Next::End => {
                stream.write_all(b"0\r\n\r\n")?;
                return stream.flush();
            }
            Next::Wait => {}
        }
    }
}

fn chunk(stream: &mut Stream, text: &str) -> io::Result<()> {
    // In two pieces, as a network may have it.
    let (first, second) = text.as_bytes().split_at(text.len() / 3);
    for piece in [first, second].into_iter().filter(|piece| !piece.is_empty()) {
        stream.write_all(&[format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat())?;
        stream.flush()?;
    }
    Ok(())
}

/// The path and the header `Authorization` of the next request; `None` when there is none.
fn request(stream: &mut Stream) -> io::Result<Option<(String, String)>> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte)? == 0 {
            return Ok(None);
        }
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head);
    let mut lines = head.lines();
    let path = lines.next().and_then(|line| line.split(' ').nth(1)).unwrap_or_default().to_owned();
    let authorization = lines
        .filter_map(|line| line.split_once(": "))
        .find(|(name, _)| name.eq_ignore_ascii_case("authorization"))
        .map(|(_, value)| value.to_owned());
    Ok(Some((path, authorization.unwrap_or_default())))
}
