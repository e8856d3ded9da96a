//! From a client to a server: over loopback and between pods, and what the series of both ends are labelled with.

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;

use crate::pod::{Container, Pod};

/// The pod that calls, with a container that answers over loopback.
pub(super) const HERE: &str = "here";
/// The pod that answers.
pub(super) const THERE: &str = "there";
/// The container that calls.
pub(super) const CLIENT: &str = "client";
/// The containers that answer.
pub(super) const SERVER: &str = "server";
/// The namespace of both pods.
pub(super) const NAMESPACE: &str = "cases";

/// From the client in [`HERE`] to a server.
#[derive(Clone, Copy)]
pub(super) struct Way<'a> {
    /// The address that the client calls.
    pub address: IpAddr,
    pub client: &'a Container,
    pub server: &'a Container,
    pub server_pod: &'static str,
}

impl<'a> Way<'a> {
    /// To the server in the client's own pod.
    pub fn near(here: &'a Pod, address: impl Into<IpAddr>) -> Result<Self> {
        let (client, server) = (here.container(CLIENT)?, here.container(SERVER)?);
        Ok(Self { address: address.into(), client, server, server_pod: HERE })
    }

    /// To the server in the other pod.
    pub fn far(here: &'a Pod, there: &'a Pod, address: impl Into<IpAddr>) -> Result<Self> {
        let (client, server) = (here.container(CLIENT)?, there.container(SERVER)?);
        Ok(Self { address: address.into(), client, server, server_pod: THERE })
    }

    /// The address that the client calls, with a port for the server to choose.
    pub fn any_port(&self) -> SocketAddr {
        SocketAddr::new(self.address, 0)
    }

    /// Which container an end is.
    pub const fn end(&self, client: bool) -> (&'static str, &'static str) {
        if client { (HERE, CLIENT) } else { (self.server_pod, SERVER) }
    }

    /// The labels of each end of a connection: who it is, whom it talks to, on which side, by which port.
    pub fn labels<'b>(&self, client: bool, port: &'b str) -> Vec<(&'static str, &'b str)> {
        let (pod, container) = self.end(client);
        let (peer_pod, peer_container) = self.end(!client);
        let mut labels = vec![("namespace", NAMESPACE), ("pod", pod), ("container", container)];
        if self.server_pod == HERE {
            labels.extend([("peer_kind", "container"), ("peer_container", peer_container), ("peer_pod", "")]);
        } else {
            labels.extend([("peer_kind", "pod"), ("peer_namespace", NAMESPACE), ("peer_pod", peer_pod)]);
        }
        labels.extend([("role", if client { "client" } else { "server" }), ("port", port)]);
        labels
    }
}
