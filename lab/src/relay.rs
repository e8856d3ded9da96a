//! A TCP relay on loopback, whose connections can be cut.

use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};

/// A relay. Its thread ends with the process; its connections with it, or when they are cut.
pub struct Relay {
    address: SocketAddr,
    connections: Arc<Mutex<Vec<TcpStream>>>,
}

impl Relay {
    /// Relays to this address.
    pub fn start(to: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listening on 127.0.0.1")?;
        let address = listener.local_addr().context("asking for the port")?;
        let connections = Arc::new(Mutex::new(Vec::new()));
        let open = Arc::clone(&connections);
        let accept = move || {
            for client in listener.incoming().flatten() {
                // Whoever is not there refuses: so does the relay, by ending the connection.
                let _ = relay(client, to, &open);
            }
        };
        std::thread::Builder::new().name("relay".to_owned()).spawn(accept).context("starting a relay")?;
        Ok(Self { address, connections })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Cuts all connections that there are now.
    pub fn cut(&self) {
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        for connection in connections.drain(..) {
            // One that has ended is cut.
            let _ = connection.shutdown(Shutdown::Both);
        }
    }
}

fn relay(client: TcpStream, to: SocketAddr, open: &Mutex<Vec<TcpStream>>) -> io::Result<()> {
    let server = TcpStream::connect(to)?;
    for (from, to) in [(&client, &server), (&server, &client)] {
        let (mut from, mut to) = (from.try_clone()?, to.try_clone()?);
        std::thread::Builder::new().name("relay".to_owned()).spawn(move || {
            let _ = io::copy(&mut from, &mut to);
            // The end of one direction is handed on.
            let _ = to.shutdown(Shutdown::Write);
        })?;
    }
    open.lock().unwrap_or_else(PoisonError::into_inner).extend([client, server]);
    Ok(())
}
