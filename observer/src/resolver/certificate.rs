//! The certificate that agents are shown.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context, ensure};
use arc_swap::ArcSwap;
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        crypto::{CryptoProvider, ring},
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
        server::{ClientHello, ResolvesServerCert},
        sign::CertifiedKey,
    },
};
use tracing::{info, warn};

/// HTTP/2 (RFC 9113, 3.2), which gRPC asks for.
const ALPN: &[u8] = b"h2";

/// Where certificate and key are, in PEM.
#[derive(Debug, Clone)]
pub struct CertificateFiles {
    /// The certificate, with those above it.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// A certificate in files, which are read again for each agent that connects. While they cannot be used, as when somebody is
/// writing them, the last one that could be is shown.
#[derive(Debug)]
struct Certificate {
    files: CertificateFiles,
    provider: Arc<CryptoProvider>,
    last: ArcSwap<CertifiedKey>,
    /// Why the files cannot be used, as it was logged.
    trouble: Mutex<Option<String>>,
}

/// Shows agents the certificate in these files, whichever it is when they connect.
///
/// # Errors
/// When the files cannot be read now, hold no certificate, or the key is another's.
pub fn acceptor(files: CertificateFiles) -> anyhow::Result<TlsAcceptor> {
    let provider = Arc::new(ring::default_provider());
    let last = ArcSwap::from_pointee(files.load(&provider)?);
    let certificate = Certificate { files, provider: Arc::clone(&provider), last, trouble: Mutex::default() };
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .context("cannot set up TLS")?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(certificate));
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

impl CertificateFiles {
    fn load(&self, provider: &CryptoProvider) -> anyhow::Result<CertifiedKey> {
        const OPTIONS: [&str; 2] = ["--resolver.tls-cert-file", "--resolver.tls-key-file"];
        let Self { certificate, key } = self;
        let names = [certificate, key].map(|file| file.display());
        let pem = read(certificate, OPTIONS[0])?;
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
        let chain = chain.with_context(|| format!("what is in {} is no certificate ({})", names[0], OPTIONS[0]))?;
        ensure!(!chain.is_empty(), "no certificate is in {} ({})", names[0], OPTIONS[0]);
        let secret = PrivateKeyDer::from_pem_slice(&read(key, OPTIONS[1])?)
            .with_context(|| format!("no key is in {} ({})", names[1], OPTIONS[1]))?;
        CertifiedKey::from_der(chain, secret, provider)
            .with_context(|| format!("the key in {} does not work for the certificate in {}", names[1], names[0]))
    }
}

impl ResolvesServerCert for Certificate {
    /// Reads two small files, which is less than the handshake costs.
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        match self.files.load(&self.provider) {
            Ok(now) => {
                if trouble.take().is_some() {
                    info!("certificate and key can be used again");
                }
                self.last.store(Arc::new(now));
            }
            Err(error) => {
                let error = format!("{error:#}");
                if trouble.as_ref() != Some(&error) {
                    warn!("agents are shown the last certificate that worked: {error}");
                    *trouble = Some(error);
                }
            }
        }
        Some(self.last.load_full())
    }
}

fn read(file: &Path, option: &str) -> anyhow::Result<Vec<u8>> {
    std::fs::read(file).with_context(|| format!("cannot read {} ({option})", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_work_is_said_with_its_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let made = || rcgen::generate_simple_self_signed(vec!["resolver".to_owned()]).unwrap();
        let (one, other) = (made(), made());
        let files = CertificateFiles { certificate: path("certificate"), key: path("key") };
        let wrong = || format!("{:#}", acceptor(files.clone()).err().unwrap());
        assert!(wrong().contains("--resolver.tls-cert-file"), "{}", wrong());
        std::fs::write(path("certificate"), "nothing").unwrap();
        assert!(wrong().contains("no certificate"), "{}", wrong());
        std::fs::write(path("certificate"), one.cert.pem()).unwrap();
        assert!(wrong().contains("--resolver.tls-key-file"), "{}", wrong());
        std::fs::write(path("key"), "nothing").unwrap();
        assert!(wrong().contains("no key"), "{}", wrong());
        std::fs::write(path("key"), other.signing_key.serialize_pem()).unwrap();
        assert!(wrong().contains("does not work for the certificate"), "{}", wrong());
        std::fs::write(path("key"), one.signing_key.serialize_pem()).unwrap();
        acceptor(files).unwrap();
    }
}
