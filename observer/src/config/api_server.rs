//! Options of the Kubernetes API, which the agent and the resolver share.

use std::path::PathBuf;

use clap::Args;

use crate::identity::{
    ApiServer,
    kube::{CA_FILE, TOKEN_FILE},
};

/// How the Kubernetes API is reached.
#[derive(Debug, Clone, Args)]
pub struct ApiServerOptions {
    /// The Kubernetes API: auto, none, or a URL.
    ///
    /// auto is the one that --kubernetes.kubeconfig names, else the cluster that this process is a pod of, if it is one.
    /// It tells an agent owners, labels, phases, requests and limits of its node's pods, and a resolver who has which
    /// address.
    #[arg(id = "kubernetes", long = "kubernetes", value_name = "SERVER", default_value_t = ApiServer::Auto)]
    pub kubernetes: ApiServer,
    /// A file as kubectl has it, whose current context tells where the Kubernetes API is, whom to believe, and what to
    /// show: a token or a client certificate.
    ///
    /// For a process that has no service account. The file and those that it names are read again for each connection,
    /// tokens for each question. With --kubernetes URL the server is that one. A user with `exec` or `auth-provider` is
    /// not supported.
    #[arg(id = "kubernetes.kubeconfig", long = "kubernetes.kubeconfig", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// The token that the API server is shown, and an agent's kubelet; read again for each question.
    #[arg(
        id = "service-account.token-file",
        long = "service-account.token-file",
        value_name = "FILE",
        default_value = TOKEN_FILE
    )]
    pub token_file: PathBuf,
    /// Whom the API server's certificate is signed by; read again for each connection.
    #[arg(id = "service-account.ca-file", long = "service-account.ca-file", value_name = "FILE", default_value = CA_FILE)]
    pub ca_file: PathBuf,
}
