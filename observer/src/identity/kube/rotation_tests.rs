//! A connection that a kubeconfig describes, to a server that takes a client's certificate, while all certificates are
//! replaced.

use std::{path::Path, sync::Arc};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::watch,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        RootCertStore, ServerConfig,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
        server::WebPkiClientVerifier,
    },
};

use super::{
    access::Source,
    client::{Kind, Target},
    connection::{Connection, JSON},
};

/// An authority with a certificate for a server and one for a client.
struct Authority {
    ca: String,
    server: (String, String),
    client: (String, String),
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let sign = |host: &str, usage| {
            let mut params = CertificateParams::new([host.to_owned()]).unwrap();
            params.extended_key_usages = vec![usage];
            let key = KeyPair::generate().unwrap();
            (params.signed_by(&key, &issuer).unwrap().pem(), key.serialize_pem())
        };
        let server = sign("kubernetes", ExtendedKeyUsagePurpose::ServerAuth);
        let client = sign("observer", ExtendedKeyUsagePurpose::ClientAuth);
        Self { ca: issuer.pem(), server, client }
    }

    fn acceptor(&self) -> TlsAcceptor {
        let provider = Arc::new(ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.ca.as_bytes()).unwrap()).unwrap();
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
        let chain = vec![CertificateDer::from_pem_slice(self.server.0.as_bytes()).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(self.server.1.as_bytes()).unwrap();
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(clients.build().unwrap())
            .with_single_cert(chain, key)
            .unwrap();
        TlsAcceptor::from(Arc::new(config))
    }

    /// The files that the kubeconfig names, as this authority has them.
    fn write(&self, directory: &Path) {
        for (name, text) in [("ca.crt", &self.ca), ("client.crt", &self.client.0), ("client.key", &self.client.1)] {
            std::fs::write(directory.join(name), text).unwrap();
        }
    }
}

/// Answers each connection's first question with what was asked, by the acceptor of the moment.
async fn serve(listener: TcpListener, acceptors: watch::Receiver<TlsAcceptor>) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let acceptor = acceptors.borrow().clone();
        // A client that is not believed gets nothing.
        let Ok(mut stream) = acceptor.accept(stream).await else { continue };
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            match stream.read_u8().await {
                Ok(byte) => head.push(byte),
                Err(_) => break,
            }
        }
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", head.len());
        // It may have gone.
        let _ = stream.write_all(&[answer.as_bytes(), &head].concat()).await;
    }
}

async fn ask(target: &Target) -> Result<String, String> {
    let mut connection = Connection::open(target).await.map_err(|error| error.to_string())?;
    let answer = connection.get("/version", JSON).await.map_err(|error| error.to_string())?;
    let body = connection.whole(answer, 4096).await.map_err(|error| error.to_string())?;
    Ok(String::from_utf8(body).unwrap().to_ascii_lowercase())
}

#[tokio::test]
async fn certificates_that_are_replaced_are_taken_for_the_next_connection() {
    let directory = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let [first, second] = ["first", "second"].map(Authority::new);
    let (acceptor, acceptors) = watch::channel(first.acceptor());
    let server = tokio::spawn(serve(listener, acceptors));
    let file = directory.path().join("config");
    let text = |user: &str| {
        format!(
            "current-context: c\ncontexts: [{{name: c, context: {{cluster: k, user: u}}}}]\n\
             clusters: [{{name: k, cluster: {{server: 'https://127.0.0.1:{port}', tls-server-name: kubernetes, \
             certificate-authority: ca.crt}}}}]\nusers: [{{name: u, user: {{{user}}}}}]\n"
        )
    };
    std::fs::write(&file, text("client-certificate: client.crt, client-key: client.key")).unwrap();
    let target = Target { kind: Kind::ApiServer, source: Source::Kubeconfig { file: file.clone(), server: None } };
    let error = ask(&target).await.unwrap_err();
    assert!(error.contains("ca.crt") && error.contains("--kubernetes.kubeconfig"), "{error}");

    first.write(directory.path());
    let asked = ask(&target).await.unwrap();
    assert!(asked.starts_with("get /version") && asked.contains(&format!("host: 127.0.0.1:{port}")), "{asked}");
    assert!(!asked.contains("authorization"), "a certificate is enough: {asked}");

    acceptor.send_replace(second.acceptor());
    let error = ask(&target).await.unwrap_err();
    assert!(error.contains("certificate"), "an authority that is not believed: {error}");
    second.write(directory.path());
    ask(&target).await.unwrap();

    // With a token of the file's, and then another one, on the certificate's connection.
    for token in ["one", "two"] {
        let user = format!("token: {token}, client-certificate: client.crt, client-key: client.key");
        std::fs::write(&file, text(&user)).unwrap();
        let asked = ask(&target).await.unwrap();
        assert!(asked.contains(&format!("authorization: bearer {token}\r\n")), "{asked}");
    }
    // Nobody without a certificate comes in.
    std::fs::write(&file, text("token: one")).unwrap();
    ask(&target).await.unwrap_err();
    server.abort();
}
