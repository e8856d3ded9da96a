//! A connection to a kubelet or an API server: HTTP/1.1, over TLS but for a port that asks for no token.

use std::{future::Future, io, time::Duration};

use http_body_util::{BodyExt, Empty};
use hyper::{
    Request, StatusCode,
    body::{Bytes, Incoming},
    client::conn::http1::{SendRequest, handshake},
    header::{ACCEPT, AUTHORIZATION, HOST, HeaderValue, USER_AGENT},
};
use hyper_util::rt::TokioIo;
use rustix::net::sockopt;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    task::JoinHandle,
    time::timeout,
};
use tokio_rustls::rustls::pki_types::ServerName;

use super::{
    access::Access,
    client::{KubeError, Target},
    tls,
    url::KubeUrl,
};

/// What connecting may take.
const CONNECT: Duration = Duration::from_secs(5);
/// How long an answer may take to begin, and the whole of one that ends.
const ANSWER: Duration = Duration::from_secs(30);
/// Silence after which the other side is asked whether it is there, and how often it may not say so.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(30), Duration::from_secs(10), 3);
/// The longest answer that is read as a whole: a hundred times what a node with 250 pods has.
pub const MAX_BODY: usize = 256 << 20;
/// What is read of an error's text.
const MAX_ERROR: usize = 64 << 10;
/// The longest token.
const MAX_TOKEN: usize = 64 << 10;

/// Objects as a whole.
pub const JSON: HeaderValue = HeaderValue::from_static("application/json");
/// Their metadata alone (kubernetes.io/docs/reference/using-api/api-concepts, "Metadata-only fetches").
pub const METADATA: HeaderValue =
    HeaderValue::from_static("application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1");

/// A connection. It is closed when this is dropped.
pub struct Connection {
    target: Target,
    url: KubeUrl,
    send: SendRequest<Empty<Bytes>>,
    task: JoinHandle<()>,
}

/// An answer that has begun.
pub struct Answer {
    path: String,
    status: StatusCode,
    body: Incoming,
}

impl Connection {
    /// Connects.
    ///
    /// # Errors
    /// When nobody listens there, or not the one whose certificate is believed.
    pub async fn open(target: &Target) -> Result<Self, KubeError> {
        let late = || target.unreachable(&format!("no connection after {} seconds", CONNECT.as_secs()));
        timeout(CONNECT, Self::connect(target)).await.unwrap_or_else(|_| Err(late()))
    }

    async fn connect(target: &Target) -> Result<Self, KubeError> {
        let unreachable = |error: io::Error| target.unreachable(&error.to_string());
        let access = target.source.access().map_err(|reason| target.bad_access(&reason))?;
        let Access { url, server_name, .. } = &access;
        let tcp = TcpStream::connect((url.host.as_str(), url.port)).await.map_err(unreachable)?;
        keep_alive(&tcp).map_err(unreachable)?;
        if !url.tls {
            return Self::speak(target, access.url, tcp).await;
        }
        let connector = tls::connector(&access).map_err(|reason| target.bad_access(&reason))?;
        let name = server_name.as_ref().unwrap_or(&url.host).clone();
        let name = ServerName::try_from(name).map_err(|error| target.unreachable(&error.to_string()))?;
        let stream = connector.connect(name, tcp).await.map_err(unreachable)?;
        Self::speak(target, access.url, stream).await
    }

    async fn speak(
        target: &Target,
        url: KubeUrl,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    ) -> Result<Self, KubeError> {
        let (send, connection) =
            handshake(TokioIo::new(stream)).await.map_err(|error| target.unreachable(&error.to_string()))?;
        let task = tokio::spawn(async move {
            // What goes wrong shows in the answer that is being read.
            let _ = connection.await;
        });
        Ok(Self { target: target.clone(), url, send, task })
    }

    /// Whether the other side has ended it.
    pub fn is_closed(&self) -> bool {
        self.send.is_closed()
    }

    /// Asks for a path. The answer to an error is an error, with its status.
    ///
    /// # Errors
    /// When there is no token, no answer, or one that is an error.
    pub async fn get(&mut self, path: &str, accept: HeaderValue) -> Result<Answer, KubeError> {
        let broken = |reason: &str| self.target.broken(path, reason);
        let mut request = Request::get(path)
            .header(HOST, self.url.authority())
            .header(ACCEPT, accept)
            .header(USER_AGENT, concat!("observer/", env!("CARGO_PKG_VERSION")))
            .body(Empty::new())
            .map_err(|error| broken(&error.to_string()))?;
        // Never in clear text.
        if self.url.tls
            && let Some(token) = token(&self.target).map_err(|reason| self.target.bad_token(&reason))?
        {
            request.headers_mut().insert(AUTHORIZATION, token);
        }
        let answer = async {
            self.send.ready().await?;
            self.send.send_request(request).await
        };
        let answer = within(answer).await.map_err(|reason| self.target.broken(path, &reason))?;
        let answer = Answer { path: path.to_owned(), status: answer.status(), body: answer.into_body() };
        if answer.status.is_success() {
            return Ok(answer);
        }
        let status = answer.status.as_u16();
        let body = self.whole(answer, MAX_ERROR).await.unwrap_or_default();
        Err(self.target.refused(path, status, &body))
    }

    /// The whole of an answer.
    ///
    /// # Errors
    /// When it breaks off or is longer than `most` bytes.
    pub async fn whole(&self, answer: Answer, most: usize) -> Result<Vec<u8>, KubeError> {
        let path = answer.path.clone();
        let read = async {
            let mut answer = answer;
            let mut body = Vec::new();
            while let Some(chunk) = self.chunk(&mut answer).await? {
                if body.len() + chunk.len() > most {
                    return Err(self.target.broken(&answer.path, &format!("the answer has more than {most} bytes")));
                }
                body.extend_from_slice(&chunk);
            }
            Ok(body)
        };
        let late = || self.target.broken(&path, &format!("no end after {} seconds", ANSWER.as_secs()));
        timeout(ANSWER, read).await.unwrap_or_else(|_| Err(late()))
    }

    /// The next piece of an answer; `None` at its end.
    ///
    /// # Errors
    /// When it breaks off.
    pub async fn chunk(&self, answer: &mut Answer) -> Result<Option<Bytes>, KubeError> {
        loop {
            match answer.body.frame().await {
                None => return Ok(None),
                Some(Err(error)) => return Err(self.target.broken(&answer.path, &innermost(&error))),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
            }
        }
    }

    /// An error of this connection's answers.
    pub fn broken(&self, path: &str, reason: &str) -> KubeError {
        self.target.broken(path, reason)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The header's value, from the file as it is now; `None` where a certificate is shown.
fn token(target: &Target) -> Result<Option<HeaderValue>, String> {
    let Some(text) = target.source.token()? else { return Ok(None) };
    if text.is_empty() || text.len() > MAX_TOKEN {
        return Err(format!("it has {} characters", text.len()));
    }
    let mut value = HeaderValue::try_from(format!("Bearer {text}")).map_err(|error| error.to_string())?;
    value.set_sensitive(true);
    Ok(Some(value))
}

/// A node that vanishes says nothing: without this a watch would wait for as long as it was to last.
fn keep_alive(stream: &TcpStream) -> io::Result<()> {
    let (idle, interval, probes) = KEEPALIVE;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, idle)?;
    sockopt::set_tcp_keepintvl(stream, interval)?;
    sockopt::set_tcp_keepcnt(stream, probes)?;
    Ok(())
}

async fn within<T>(answer: impl Future<Output = hyper::Result<T>>) -> Result<T, String> {
    match timeout(ANSWER, answer).await {
        Ok(answer) => answer.map_err(|error| innermost(&error)),
        Err(_) => Err(format!("no answer after {} seconds", ANSWER.as_secs())),
    }
}

/// The system's own words, which stand innermost, after what was being done.
fn innermost(error: &hyper::Error) -> String {
    let mut innermost: &dyn std::error::Error = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::TcpListener,
        thread::JoinHandle,
    };

    use super::*;
    use crate::identity::kube::{access::Source, client::Kind};

    /// Answers one request with these bytes, and gives back what was asked.
    fn server(answer: &'static [u8]) -> (Target, JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                head.push(byte[0]);
            }
            stream.write_all(answer).unwrap();
            String::from_utf8(head).unwrap()
        });
        let url = KubeUrl { tls: false, ..KubeUrl::https("127.0.0.1", port) };
        let nowhere = "/nonexistent";
        let source = Source::Files { url, token: nowhere.into(), ca: nowhere.into(), insecure: false };
        (Target { kind: Kind::Kubelet, source }, asked)
    }

    async fn whole(target: &Target, most: usize) -> Result<Vec<u8>, String> {
        let mut connection = Connection::open(target).await.map_err(|error| error.to_string())?;
        let answer = connection.get("/pods", JSON).await.map_err(|error| error.to_string())?;
        connection.whole(answer, most).await.map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn no_token_goes_over_the_line_in_clear_text() {
        let (target, asked) = server(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\npods");
        assert_eq!(whole(&target, 4).await.unwrap(), b"pods");
        let asked = asked.join().unwrap().to_ascii_lowercase();
        assert!(asked.starts_with("get /pods http/1.1\r\n") && asked.contains("host: 127.0.0.1:"), "{asked}");
        assert!(!asked.contains("authorization"), "{asked}");
    }

    #[tokio::test]
    async fn answers_that_are_none() {
        for (answer, most, word) in [
            (&b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\npods"[..], 3, "more than 3 bytes"),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\npods", 99, "GET /pods"),
            (b"HTTP/1.1 403 Forbidden\r\nContent-Length: 5\r\n\r\nnever", 99, "403 (never)"),
            (b"", 99, "does not answer GET /pods"),
            (b"\x15\x03\x01", 99, "does not answer GET /pods"),
        ] {
            let error = whole(&server(answer).0, most).await.unwrap_err();
            assert!(error.contains(word), "{error}");
        }
        let (target, asked) = server(b"");
        let Source::Files { url, token, ca, insecure } = target.source.clone() else { unreachable!() };
        let source = Source::Files { url: KubeUrl { tls: true, ..url }, token, ca, insecure };
        let tls = Target { source, ..target.clone() };
        let error = Connection::open(&tls).await.err().unwrap().to_string();
        assert!(error.contains("/nonexistent") && error.contains("--kubelet.ca-file"), "{error}");
        drop(whole(&target, 1).await);
        drop(asked);
    }
}
