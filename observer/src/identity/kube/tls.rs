//! Whom to believe to be a kubelet or an API server.

use std::sync::Arc;

use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
        client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    },
};

use super::access::{Access, Certificate, Trust};

/// Believes those whom an access believes, and shows its certificate to whoever asks for one.
///
/// # Errors
/// In words: what is wrong with the certificates or the key.
pub fn connector(access: &Access) -> Result<TlsConnector, String> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    let builder = match &access.trust {
        Trust::Anybody => builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody(provider))),
        Trust::Signed(pem) => builder.with_root_certificates(roots(pem)?),
    };
    let config = match &access.certificate {
        None => builder.with_no_client_auth(),
        Some(Certificate { chain, key }) => {
            let bad = |reason: &dyn std::fmt::Display| format!("the client's certificate does not work: {reason}");
            let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(chain).collect();
            let chain = chain.map_err(|error| bad(&error))?;
            let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| bad(&format!("its key: {error}")))?;
            builder.with_client_auth_cert(chain, key).map_err(|error| bad(&error))?
        }
    };
    Ok(TlsConnector::from(Arc::new(config)))
}

fn roots(pem: &[u8]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|error| error.to_string())?;
        roots.add(certificate).map_err(|error| error.to_string())?;
    }
    if roots.is_empty() { Err("no certificate is in what says whom to believe".to_owned()) } else { Ok(roots) }
}

/// Takes any certificate. Who holds it has still to prove that it is theirs.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(trust: Trust, certificate: Option<(&str, &str)>) -> Access {
        let certificate = certificate.map(|(chain, key)| Certificate { chain: chain.into(), key: key.into() });
        Access { url: "https://h".parse().unwrap(), server_name: None, trust, certificate }
    }

    #[test]
    fn what_is_no_certificate_is_an_error() {
        let wrong = |access: &Access| connector(access).err().unwrap();
        assert!(wrong(&access(Trust::Signed(b"nothing".to_vec()), None)).contains("no certificate"));
        assert!(connector(&access(Trust::Anybody, None)).is_ok());
        let rcgen::CertifiedKey { cert, signing_key } = rcgen::generate_simple_self_signed(["h".to_owned()]).unwrap();
        let (chain, key) = (cert.pem(), signing_key.serialize_pem());
        assert!(connector(&access(Trust::Signed(chain.clone().into()), Some((&chain, &key)))).is_ok());
        assert!(wrong(&access(Trust::Anybody, Some((&chain, "x")))).contains("its key"));
        assert!(wrong(&access(Trust::Anybody, Some(("x", &key)))).contains("the client's certificate"));
    }
}
