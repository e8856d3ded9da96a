//! Unix sockets.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::thread;

use anyhow::{Context, Result, ensure};
use rustix::net::RecvFlags;

use super::protocol::{Traffic, UnixKind};

/// No message is longer.
const LARGEST: usize = 64 << 10;

/// Serves in the background until the actor ends: sends streams back, and takes datagrams.
pub fn serve(path: &Path, kind: UnixKind) -> Result<()> {
    let spawn = |work: Box<dyn FnOnce() + Send>| {
        thread::Builder::new().name("unix".into()).spawn(work).map(drop).context("starting a thread")
    };
    match kind {
        UnixKind::Stream => {
            let listener = UnixListener::bind(path).with_context(|| format!("listening at {}", path.display()))?;
            spawn(Box::new(move || {
                for stream in listener.incoming().map_while(Result::ok) {
                    let _ = spawn(Box::new(move || send_back(stream)));
                }
            }))
        }
        UnixKind::Datagram => {
            let socket = UnixDatagram::bind(path).with_context(|| format!("binding {}", path.display()))?;
            spawn(Box::new(move || {
                let mut buffer = vec![0; LARGEST];
                while socket.recv(&mut buffer).is_ok() {}
            }))
        }
    }
}

fn send_back(mut stream: UnixStream) {
    let mut buffer = vec![0; LARGEST];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return,
            Ok(length) if stream.write_all(&buffer[..length]).is_ok() => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Ok(_) | Err(_) => return,
        }
    }
}

/// Sends messages on one connection. A stream's come back one by one, and each is looked at before it is read.
pub fn send(path: &Path, kind: UnixKind, messages: u32, size: u32) -> Result<Traffic> {
    ensure!((1..=LARGEST).contains(&(size as usize)), "a message of {size} bytes: 1 to {LARGEST} are possible");
    let message = vec![b'u'; size as usize];
    let sent = u64::from(messages) * u64::from(size);
    let lost = || format!("sending to {}", path.display());
    match kind {
        UnixKind::Stream => {
            let mut stream = UnixStream::connect(path).with_context(|| format!("connecting to {}", path.display()))?;
            let mut buffer = message.clone();
            for _ in 0..messages {
                stream.write_all(&message).with_context(lost)?;
                rustix::net::recv(&stream, &mut buffer[..], RecvFlags::PEEK).context("looking at a reply")?;
                stream.read_exact(&mut buffer).with_context(lost)?;
            }
            Ok(Traffic { connections: 1, sent_bytes: sent, received_bytes: sent, ..Traffic::default() })
        }
        UnixKind::Datagram => {
            let socket = UnixDatagram::unbound().context("making a datagram socket")?;
            socket.connect(path).with_context(|| format!("connecting to {}", path.display()))?;
            for _ in 0..messages {
                socket.send(&message).with_context(lost)?;
            }
            Ok(Traffic { sent_bytes: sent, ..Traffic::default() })
        }
    }
}
