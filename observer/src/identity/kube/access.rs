//! How a server is reached, as the files say it at this moment: they are read anew for each connection, because
//! certificates and tokens are replaced before they end.

use std::path::{Path, PathBuf};

use super::{kubeconfig, url::KubeUrl};

/// The longest file of a certificate, a key or a token, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// Where it is said how a server is reached.
#[derive(Debug, Clone)]
pub enum Source {
    /// By options and a service account's files.
    Files {
        /// Where it listens.
        url: KubeUrl,
        /// The token to show; read for each question, because it is replaced before it ends.
        token: PathBuf,
        /// Whom its certificate is signed by.
        ca: PathBuf,
        /// Take any certificate for its own.
        insecure: bool,
    },
    /// By a file as `kubectl` has it.
    Kubeconfig {
        /// The file.
        file: PathBuf,
        /// Where it listens, when it is not where the file says.
        server: Option<KubeUrl>,
    },
}

/// How a server is reached.
#[derive(Debug, PartialEq, Eq)]
pub struct Access {
    /// Where it listens.
    pub url: KubeUrl,
    /// The name in its certificate; its host's when absent.
    pub server_name: Option<String>,
    /// Whom to believe to be it.
    pub trust: Trust,
    /// What to show beside a token.
    pub certificate: Option<Certificate>,
}

/// Whom to believe.
#[derive(Debug, PartialEq, Eq)]
pub enum Trust {
    /// Whose certificate one of these has signed, in PEM.
    Signed(Vec<u8>),
    /// Anybody.
    Anybody,
}

/// A client's certificate.
#[derive(PartialEq, Eq)]
pub struct Certificate {
    /// It, and those above it, in PEM.
    pub chain: Vec<u8>,
    /// Its key, in PEM.
    pub key: Vec<u8>,
}

impl std::fmt::Debug for Certificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Certificate(…)")
    }
}

impl Source {
    /// How to reach it now.
    ///
    /// # Errors
    /// In words: which file is of no use, and why.
    pub fn access(&self) -> Result<Access, String> {
        match self {
            Self::Files { url, ca, insecure, .. } => {
                // In clear text nobody proves anything.
                let trust = if *insecure || !url.tls { Trust::Anybody } else { Trust::Signed(read(ca)?) };
                Ok(Access { url: url.clone(), server_name: None, trust, certificate: None })
            }
            Self::Kubeconfig { file, server } => kubeconfig::read(file)?.access(server.as_ref()),
        }
    }

    /// The token to show now; `None` when a certificate is shown.
    ///
    /// # Errors
    /// In words: which file is of no use, and why.
    pub fn token(&self) -> Result<Option<String>, String> {
        match self {
            Self::Files { token, .. } => text(token).map(Some),
            Self::Kubeconfig { file, .. } => kubeconfig::read(file)?.token(),
        }
    }

    /// Where it listens, for people; the file that should tell, when it does not.
    pub fn place(&self) -> String {
        match self {
            Self::Files { url, .. } | Self::Kubeconfig { server: Some(url), .. } => url.to_string(),
            Self::Kubeconfig { file, server: None } => kubeconfig::read(file)
                .and_then(|said| said.url())
                .map_or_else(|_| file.display().to_string(), |url| url.to_string()),
        }
    }
}

/// A file's bytes.
///
/// # Errors
/// In words, with its path.
pub fn read(path: &Path) -> Result<Vec<u8>, String> {
    use std::io::Read;
    let bad = |reason: &dyn std::fmt::Display| format!("{}: {reason}", path.display());
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(|error| bad(&error))?;
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(|error| bad(&error))?;
    if bytes.len() as u64 > MAX_FILE { Err(bad(&"it has more than a MiB")) } else { Ok(bytes) }
}

/// A file's text, without the white space around it.
///
/// # Errors
/// In words, with its path.
pub fn text(path: &Path) -> Result<String, String> {
    let text = String::from_utf8(read(path)?).map_err(|_| format!("{}: it is no text", path.display()))?;
    Ok(text.trim().to_owned())
}
