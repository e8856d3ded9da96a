//! What is asked, of whom, and what may go wrong.

use super::access::Source;

/// Characters of an answer's message that are kept.
const MAX_MESSAGE: usize = 300;

/// Who is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The node's kubelet.
    Kubelet,
    /// The API server.
    ApiServer,
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::Kubelet => "the kubelet",
            Self::ApiServer => "the API server",
        }
    }
}

/// Where, and with what.
#[derive(Debug, Clone)]
pub struct Target {
    /// Who it is.
    pub kind: Kind,
    /// What says how it is reached.
    pub source: Source,
}

/// Why something cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub struct KubeError {
    text: String,
    /// The status, where there was an answer.
    pub status: Option<u16>,
    /// What the service account must be allowed to do, where that is what is missing.
    pub permission: Option<String>,
}

impl Target {
    /// Where it listens, for people.
    #[must_use]
    pub fn place(&self) -> String {
        self.source.place()
    }

    const fn option(&self) -> &'static str {
        match (&self.source, self.kind) {
            (Source::Kubeconfig { .. }, _) => "--kubernetes.kubeconfig",
            (_, Kind::Kubelet) => "--kubelet.url",
            (_, Kind::ApiServer) => "--kubernetes",
        }
    }

    const fn ca_option(&self) -> &'static str {
        match (&self.source, self.kind) {
            (Source::Kubeconfig { .. }, _) => "certificate-authority in the kubeconfig",
            (_, Kind::Kubelet) => "--kubelet.ca-file, or --kubelet.insecure-skip-verify for one that signed its own",
            (_, Kind::ApiServer) => "--service-account.ca-file",
        }
    }

    fn error(&self, text: &str) -> KubeError {
        let (name, option) = (self.kind.name(), self.option());
        KubeError { text: format!("{name} at {} ({option}) {text}", self.place()), status: None, permission: None }
    }

    /// Nobody listens, or the certificate is not believed.
    pub(super) fn unreachable(&self, reason: &str) -> KubeError {
        let certificate = reason.to_ascii_lowercase().contains("certificate");
        let remedy = if certificate { format!("; say whom to believe: {}", self.ca_option()) } else { String::new() };
        self.error(&format!("cannot be reached: {reason}{remedy}"))
    }

    /// What says whom to believe and what to show is of no use.
    pub(super) fn bad_access(&self, reason: &str) -> KubeError {
        match &self.source {
            Source::Kubeconfig { file, .. } if reason.contains(&file.display().to_string()) => {
                self.error(&format!("cannot be asked: {reason}"))
            }
            _ => self.error(&format!("cannot be believed: {reason}; say whom to believe: {}", self.ca_option())),
        }
    }

    /// The token cannot be read.
    pub(super) fn bad_token(&self, reason: &str) -> KubeError {
        let remedy = match self.source {
            Source::Kubeconfig { .. } => "mend the kubeconfig",
            Source::Files { .. } => "name another with --service-account.token-file",
        };
        self.error(&format!("cannot be asked: no token: {reason}; {remedy}"))
    }

    /// The answer broke off.
    pub(super) fn broken(&self, path: &str, reason: &str) -> KubeError {
        self.error(&format!("does not answer GET {path}: {reason}"))
    }

    /// An answer that is an error. `body` may be a `v1` `Status`.
    pub(super) fn refused(&self, path: &str, status: u16, body: &[u8]) -> KubeError {
        #[derive(serde::Deserialize)]
        struct Status {
            message: String,
        }
        let said = serde_json::from_slice(body).map_or_else(
            |_| String::from_utf8_lossy(&body[..body.len().min(MAX_MESSAGE)]).into_owned(),
            |status: Status| status.message,
        );
        let said: String =
            said.trim().chars().take(MAX_MESSAGE).map(|c| if c.is_control() { ' ' } else { c }).collect();
        let said = if said.is_empty() { String::new() } else { format!(" ({said})") };
        let remedy = match (status, self.kind) {
            (401, _) => self.not_accepted(),
            (403, Kind::Kubelet) => {
                "; let the service account get nodes/pods (Kubernetes 1.33 and later) or nodes/proxy".to_owned()
            }
            (403, Kind::ApiServer) => format!("; let the service account {}", needed(path)),
            _ => String::new(),
        };
        let permission = (status == 403 && self.kind == Kind::ApiServer).then(|| needed(path));
        KubeError {
            status: Some(status),
            permission,
            ..self.error(&format!("answers GET {path} with {status}{said}{remedy}"))
        }
    }
}

impl Target {
    fn not_accepted(&self) -> String {
        match &self.source {
            Source::Files { token, .. } => format!(
                "; the token in {} is not accepted: mount a service account's, which is renewed by the kubelet",
                token.display()
            ),
            Source::Kubeconfig { file, .. } => format!("; the credentials in {} are not accepted", file.display()),
        }
    }
}

/// What a service account must be allowed to do to get the answer at a path of the API, which is
/// `/api/v1/RESOURCE?…` or `/apis/GROUP/VERSION/RESOURCE?…` for all objects of a kind, and ends in
/// `/namespaces/NAMESPACE/RESOURCE/NAME` for one.
pub(in crate::identity) fn needed(path: &str) -> String {
    let parts: Vec<&str> = path.split('?').next().unwrap_or_default().split('/').skip(1).collect();
    let (group, rest) = match parts.as_slice() {
        ["api", _, rest @ ..] => (String::new(), rest),
        ["apis", group, _, rest @ ..] => (format!(".{group}"), rest),
        _ => return format!("get {path}"),
    };
    match rest {
        ["namespaces", _, resource, _] => format!("get {resource}{group}"),
        [resource] => format!("list and watch {resource}{group}"),
        _ => format!("get {path}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(kind: Kind) -> Target {
        let url = "https://10.0.0.1:10250".parse().unwrap();
        Target { kind, source: Source::Files { url, token: "/t".into(), ca: "/ca".into(), insecure: false } }
    }

    #[test]
    fn errors_say_what_to_do() {
        let (kubelet, api) = (target(Kind::Kubelet), target(Kind::ApiServer));
        let source = Source::Kubeconfig { file: "/k".into(), server: None };
        let config = Target { kind: Kind::ApiServer, source };
        let status = br#"{"kind":"Status","message":"pods is forbidden:\n x"}"#;
        for (error, parts) in [
            (kubelet.refused("/pods", 403, b"Forbidden (user=x)"), &["nodes/pods", "nodes/proxy", "user=x", "403"][..]),
            (kubelet.refused("/pods", 401, b"Unauthorized"), &["/t", "service account", "--kubelet.url"]),
            (api.refused("/api/v1/pods?x=/", 403, status), &["list and watch pods", "forbidden:  x", "--kubernetes"]),
            (api.refused("/p", 500, b""), &["GET /p with 500"]),
            (kubelet.unreachable("invalid peer certificate: UnknownIssuer"), &["--kubelet.insecure-skip-verify"]),
            (kubelet.unreachable("Connection refused"), &["https://10.0.0.1:10250", "refused"]),
            (api.bad_access("/ca: none"), &["/ca", "--service-account.ca-file"]),
            (api.bad_token("/t: none"), &["/t", "--service-account.token-file"]),
            (config.bad_access("/k: it has no x"), &["the API server at /k", "--kubernetes.kubeconfig", "no x"]),
            (config.refused("/p", 401, b""), &["credentials in /k"]),
            (config.bad_token("/k: none"), &["mend"]),
            (config.unreachable("invalid peer certificate: Expired"), &["certificate-authority in the kubeconfig"]),
        ] {
            let text = error.to_string();
            assert!(parts.iter().all(|part| text.contains(part)), "{text}: {parts:?}");
        }
        let slices = "/apis/discovery.k8s.io/v1/endpointslices?limit=1";
        for (path, permission) in [
            (slices, "list and watch endpointslices.discovery.k8s.io"),
            ("/apis/apps/v1/namespaces/shop/replicasets/api", "get replicasets.apps"),
            ("/version", "get /version"),
        ] {
            assert_eq!(needed(path), permission);
        }
        assert_eq!(api.refused(slices, 403, b"").permission.unwrap(), "list and watch endpointslices.discovery.k8s.io");
        assert_eq!(api.refused(slices, 401, b"").permission, None);
        let long = api.refused("/p", 500, "ä".repeat(5000).as_bytes()).to_string();
        assert!(long.chars().count() < 500, "{long}");
    }
}
