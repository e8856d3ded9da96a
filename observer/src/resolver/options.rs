//! Options of `observer resolver`.

use std::{net::SocketAddr, path::PathBuf};

use clap::Args;

use super::{CertificateFiles, Listening, Token};
use crate::{
    config::{ApiServerOptions, LogOptions, WebOptions, listen_address},
    identity::KubeOptions,
};

/// The port for agents, when none is given.
pub const DEFAULT_PORT: u16 = 10837;

/// Everything that `observer resolver` is told.
#[derive(Debug, Clone, Args)]
#[command(args_override_self = true)]
pub struct ResolverOptions {
    /// Where agents ask; `:PORT` means every address.
    ///
    /// Agents are told of it with --kubernetes.peers resolver=http://HOST:PORT, or https:// with a certificate.
    #[arg(
        id = "resolver.listen-address", long = "resolver.listen-address", value_name = "ADDRESS:PORT",
        default_value_t = SocketAddr::from(([0, 0, 0, 0], DEFAULT_PORT)), value_parser = listen_address,
        help_heading = "Agents"
    )]
    pub listen_address: SocketAddr,
    /// The certificate that agents are shown, in PEM, with those above it.
    ///
    /// Without one, whoever is on the way between agents and resolver can read which addresses pods talk to, and tell
    /// agents other names. Read again for each agent that connects.
    #[arg(
        id = "resolver.tls-cert-file",
        long = "resolver.tls-cert-file",
        value_name = "FILE",
        requires = "resolver.tls-key-file",
        help_heading = "Agents"
    )]
    certificate: Option<PathBuf>,
    /// The certificate's key, in PEM. Read again with it.
    #[arg(
        id = "resolver.tls-key-file",
        long = "resolver.tls-key-file",
        value_name = "FILE",
        requires = "resolver.tls-cert-file",
        help_heading = "Agents"
    )]
    key: Option<PathBuf>,
    /// Answer those agents alone that show the token in this file (theirs is in --resolver.token-file too).
    ///
    /// Without one, whoever can connect can ask who has which address. Without a certificate the token can be read on
    /// the way. Read again for each agent that connects.
    #[arg(id = "resolver.token-file", long = "resolver.token-file", value_name = "FILE", help_heading = "Agents")]
    token: Option<PathBuf>,
    /// The Kubernetes API whose Services, EndpointSlices, nodes and pods are watched.
    #[command(flatten, next_help_heading = "Cluster")]
    api_server: ApiServerOptions,
    /// Where the web side listens and what it serves.
    #[command(flatten)]
    pub web: WebOptions,
    /// What is logged and how.
    #[command(flatten)]
    pub log: LogOptions,
}

impl ResolverOptions {
    /// How the API server is reached.
    pub(super) fn kube(&self) -> KubeOptions {
        KubeOptions {
            kubelet: None,
            kubelet_ca_file: None,
            kubelet_insecure: false,
            api_server: self.api_server.kubernetes.clone(),
            kubeconfig: self.api_server.kubeconfig.clone(),
            ca_file: self.api_server.ca_file.clone(),
            token_file: self.api_server.token_file.clone(),
            node: String::new(),
        }
    }

    /// Where and how agents are listened to.
    pub(super) fn listening(&self) -> Listening {
        let tls = self.certificate.clone().zip(self.key.clone());
        let tls = tls.map(|(certificate, key)| CertificateFiles { certificate, key });
        Listening { address: self.listen_address, tls, token: self.token.clone().map(Token::new) }
    }
}
