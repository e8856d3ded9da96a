//! What is known of the kubelet and of the API server before anything is asked.

use std::{env, fmt, path::PathBuf, str::FromStr};

use super::{
    access::Source,
    client::{Kind, Target},
    url::KubeUrl,
};

/// Where a pod finds the token of its service account (kubernetes.io/docs/tasks/run-application/access-api-from-pod).
pub const TOKEN_FILE: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";
/// Where it finds whom the API server's certificate is signed by.
pub const CA_FILE: &str = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt";

/// The value of `--kubernetes`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ApiServer {
    /// The one of the cluster that this process is a pod of, if it is one.
    Auto,
    /// None is asked.
    None,
    /// This one.
    Url(KubeUrl),
}

impl FromStr for ApiServer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "none" => Ok(Self::None),
            _ => text
                .parse()
                .map(Self::Url)
                .map_err(|_| "must be auto, none, or a URL without a path, like https://10.96.0.1:443".to_owned()),
        }
    }
}

impl fmt::Display for ApiServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::None => f.write_str("none"),
            Self::Url(url) => url.fmt(f),
        }
    }
}

/// How to reach the kubelet and the API server.
#[derive(Debug, Clone)]
pub struct KubeOptions {
    /// The kubelet, or none.
    pub kubelet: Option<KubeUrl>,
    /// Whom the kubelet's certificate is signed by; the file of the API server when absent.
    pub kubelet_ca_file: Option<PathBuf>,
    /// Take any certificate for the kubelet's.
    pub kubelet_insecure: bool,
    /// The API server.
    pub api_server: ApiServer,
    /// What says how the API server is reached; options and files of a service account when absent.
    pub kubeconfig: Option<PathBuf>,
    /// Whom the API server's certificate is signed by.
    pub ca_file: PathBuf,
    /// The token that both are shown.
    pub token_file: PathBuf,
    /// The node's name.
    pub node: String,
}

impl KubeOptions {
    pub(super) fn kubelet(&self) -> Option<Target> {
        let source = Source::Files {
            url: self.kubelet.clone()?,
            token: self.token_file.clone(),
            ca: self.kubelet_ca_file.clone().unwrap_or_else(|| self.ca_file.clone()),
            insecure: self.kubelet_insecure,
        };
        Some(Target { kind: Kind::Kubelet, source })
    }

    pub(in crate::identity) fn api_server(&self) -> Option<Target> {
        let url = match (&self.api_server, &self.kubeconfig) {
            (ApiServer::None, _) => return None,
            (server, Some(file)) => {
                let server = if let ApiServer::Url(url) = server { Some(url.clone()) } else { None };
                let source = Source::Kubeconfig { file: file.clone(), server };
                return Some(Target { kind: Kind::ApiServer, source });
            }
            (ApiServer::Url(url), None) => url.clone(),
            // A token without the service's address is one that a container's image has, or a test.
            (ApiServer::Auto, None) if self.token_file.exists() => in_cluster(|name| env::var(name).ok())?,
            (ApiServer::Auto, None) => return None,
        };
        let source = Source::Files { url, token: self.token_file.clone(), ca: self.ca_file.clone(), insecure: false };
        Some(Target { kind: Kind::ApiServer, source })
    }

    /// Where the kubelet is asked, if it is.
    #[must_use]
    pub fn kubelet_url(&self) -> Option<String> {
        self.kubelet().map(|target| target.place())
    }

    /// Where the API server is asked, if it is.
    #[must_use]
    pub fn api_server_url(&self) -> Option<String> {
        self.api_server().map(|target| target.place())
    }
}

/// What the kubelet tells every pod of the API server (kubernetes.io/docs/tasks/run-application/access-api-from-pod).
fn in_cluster(variable: impl Fn(&str) -> Option<String>) -> Option<KubeUrl> {
    let host = variable("KUBERNETES_SERVICE_HOST").filter(|host| !host.is_empty())?;
    let port = variable("KUBERNETES_SERVICE_PORT_HTTPS").or_else(|| variable("KUBERNETES_SERVICE_PORT"))?;
    Some(KubeUrl::https(&host, port.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(api_server: &str) -> KubeOptions {
        KubeOptions {
            kubelet: Some("https://127.0.0.1:10250".parse().unwrap()),
            kubelet_ca_file: None,
            kubelet_insecure: true,
            api_server: api_server.parse().unwrap(),
            kubeconfig: None,
            ca_file: "/ca".into(),
            token_file: "/nonexistent/token".into(),
            node: "n".into(),
        }
    }

    #[test]
    fn who_is_asked() {
        assert_eq!(options("none").api_server_url(), None);
        assert_eq!(options("auto").api_server_url(), None, "no token");
        assert_eq!(options("https://h").api_server_url().unwrap(), "https://h:443");
        let files = |target: Option<Target>| {
            let Some(Target { source: Source::Files { ca, insecure, .. }, .. }) = target else { panic!("{target:?}") };
            (ca, insecure)
        };
        assert_eq!(files(options("none").kubelet()), ("/ca".into(), true));
        let own = KubeOptions { kubelet_ca_file: Some("/own".into()), ..options("none") };
        assert_eq!(files(own.kubelet()).0, PathBuf::from("/own"));
        assert!(!files(options("https://h").api_server()).1);
        let with = |server: &str| KubeOptions { kubeconfig: Some("/nonexistent/config".into()), ..options(server) };
        assert_eq!(with("auto").api_server_url().unwrap(), "/nonexistent/config", "which does not tell");
        assert_eq!(with("https://h").api_server_url().unwrap(), "https://h:443", "the file's credentials for another");
        assert_eq!(with("none").api_server_url(), None);
        for text in ["auto", "none", "https://h:6443"] {
            assert_eq!(text.parse::<ApiServer>().unwrap().to_string(), text);
        }
        assert!("yes".parse::<ApiServer>().unwrap_err().contains("auto, none"));
    }

    #[test]
    fn a_pods_surroundings_tell_the_api_server() {
        fn told(pairs: &[(&str, &str)]) -> Option<String> {
            in_cluster(|name| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
                .map(|url| url.to_string())
        }
        let host = ("KUBERNETES_SERVICE_HOST", "fd00::1");
        assert_eq!(told(&[host, ("KUBERNETES_SERVICE_PORT", "443")]).unwrap(), "https://[fd00::1]:443");
        let both = [host, ("KUBERNETES_SERVICE_PORT", "1"), ("KUBERNETES_SERVICE_PORT_HTTPS", "6443")];
        assert_eq!(told(&both).unwrap(), "https://[fd00::1]:6443");
        assert_eq!(told(&[("KUBERNETES_SERVICE_PORT", "443")]), None);
        assert_eq!(told(&[host]), None);
    }
}
