//! The file that says to `kubectl` and its kin where a server is and how to come in
//! (kubernetes.io/docs/reference/config-api/kubeconfig.v1). Of its contexts the current one counts.

use std::path::{Path, PathBuf};

use base64::{Engine, prelude::BASE64_STANDARD};
use serde::Deserialize;

use super::{
    access::{self, Access, Certificate, Trust},
    url::KubeUrl,
};

/// What a kubeconfig says for its current context.
#[derive(Debug)]
pub struct Kubeconfig {
    file: PathBuf,
    cluster: Cluster,
    user: User,
}

#[derive(Deserialize)]
struct Document {
    #[serde(rename = "current-context", default)]
    current_context: Option<String>,
    #[serde(default)]
    clusters: Option<Vec<NamedCluster>>,
    #[serde(default)]
    contexts: Option<Vec<NamedContext>>,
    #[serde(default)]
    users: Option<Vec<NamedUser>>,
}

#[derive(Deserialize)]
struct NamedCluster {
    name: String,
    cluster: Cluster,
}

#[derive(Deserialize)]
struct NamedContext {
    name: String,
    context: Context,
}

#[derive(Deserialize)]
struct NamedUser {
    name: String,
    #[serde(default)]
    user: Option<User>,
}

#[derive(Deserialize)]
struct Context {
    cluster: String,
    #[serde(default)]
    user: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct Cluster {
    server: Option<String>,
    tls_server_name: Option<String>,
    insecure_skip_tls_verify: Option<bool>,
    certificate_authority: Option<PathBuf>,
    certificate_authority_data: Option<String>,
    proxy_url: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct User {
    token: Option<String>,
    #[serde(rename = "tokenFile")]
    token_file: Option<PathBuf>,
    client_certificate: Option<PathBuf>,
    client_certificate_data: Option<String>,
    client_key: Option<PathBuf>,
    client_key_data: Option<String>,
    username: Option<String>,
    #[serde(rename = "as")]
    impersonate: Option<String>,
    exec: Option<serde::de::IgnoredAny>,
    auth_provider: Option<serde::de::IgnoredAny>,
}

impl std::fmt::Debug for User {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("User(…)")
    }
}

/// Reads one.
///
/// # Errors
/// In words, with the file's path: it cannot be read, or says nothing that can be used.
pub fn read(file: &Path) -> Result<Kubeconfig, String> {
    let bytes = access::read(file)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| format!("{}: it is no text", file.display()))?;
    parse(file, text).map_err(|reason| format!("{}: {reason}", file.display()))
}

fn parse(file: &Path, text: &str) -> Result<Kubeconfig, String> {
    let document: Document = serde_saphyr::from_str(text).map_err(|error| {
        // The first line says where; those that follow would show what may be a secret.
        format!("it is no kubeconfig: {}", error.to_string().lines().next().unwrap_or_default())
    })?;
    let current = given(document.current_context).ok_or("it has no current-context")?;
    let contexts = document.contexts.unwrap_or_default();
    let context = contexts.into_iter().find(|context| context.name == current);
    let context = context.ok_or_else(|| format!("its current-context {current:?} is none of its contexts"))?.context;
    let clusters = document.clusters.unwrap_or_default();
    let cluster = clusters.into_iter().find(|cluster| cluster.name == context.cluster);
    let cluster = cluster.ok_or_else(|| format!("it has no cluster {:?}", context.cluster))?.cluster;
    let user = match given(context.user) {
        None => User::default(),
        Some(name) => {
            let user = document.users.unwrap_or_default().into_iter().find(|user| user.name == name);
            user.ok_or_else(|| format!("it has no user {name:?}"))?.user.unwrap_or_default()
        }
    };
    supported(&cluster, &user)?;
    Ok(Kubeconfig { file: file.to_owned(), cluster, user })
}

/// What would be needed, and is not done.
fn supported(cluster: &Cluster, user: &User) -> Result<(), String> {
    let instead = "use a token, a tokenFile or a client certificate, such as a service account's";
    let has = [
        (user.exec.is_some(), "`exec`: no program is started for credentials"),
        (user.auth_provider.is_some(), "`auth-provider`"),
        (user.username.is_some(), "`username` and `password`"),
        (user.impersonate.is_some(), "`as`: nobody is impersonated"),
    ];
    if let Some((_, what)) = has.into_iter().find(|(has, _)| *has) {
        return Err(format!("its user has {what}, which is not supported; {instead}"));
    }
    if cluster.proxy_url.as_ref().is_some_and(|url| !url.is_empty()) {
        return Err("its cluster has `proxy-url`, which is not supported; name a server that needs no proxy".to_owned());
    }
    Ok(())
}

impl Kubeconfig {
    /// Where its server listens.
    ///
    /// # Errors
    /// In words.
    pub fn url(&self) -> Result<KubeUrl, String> {
        let server = self.cluster.server.as_deref().unwrap_or_default();
        server.parse().map_err(|reason| self.bad(&format!("its server {server:?} {reason}")))
    }

    /// How to reach its server, or another one with what it says of its own.
    ///
    /// # Errors
    /// In words.
    pub fn access(&self, server: Option<&KubeUrl>) -> Result<Access, String> {
        let url = server.map_or_else(|| self.url(), |server| Ok(server.clone()))?;
        let server_name = self.cluster.tls_server_name.clone().filter(|name| !name.is_empty());
        let (trust, certificate) = if url.tls { (self.trust()?, self.certificate()?) } else { (Trust::Anybody, None) };
        Ok(Access { url, server_name, trust, certificate })
    }

    /// The token to show; `None` when it has none.
    ///
    /// # Errors
    /// In words: the file that it names cannot be read.
    pub fn token(&self) -> Result<Option<String>, String> {
        // As in client-go: a file is newer than what was written beside it.
        if let Some(path) = path(self.user.token_file.as_ref()) {
            return access::text(&self.beside(path)).map(Some);
        }
        Ok(self.user.token.as_ref().map(|token| token.trim().to_owned()).filter(|token| !token.is_empty()))
    }

    fn trust(&self) -> Result<Trust, String> {
        if self.cluster.insecure_skip_tls_verify.unwrap_or_default() {
            return Ok(Trust::Anybody);
        }
        let data = self.cluster.certificate_authority_data.as_ref();
        let pem = self.pem("certificate-authority", data, self.cluster.certificate_authority.as_ref())?;
        pem.map(Trust::Signed)
            .ok_or_else(|| self.bad("its cluster has no certificate-authority: authorities of the system are not used"))
    }

    fn certificate(&self) -> Result<Option<Certificate>, String> {
        let user = &self.user;
        let chain =
            self.pem("client-certificate", user.client_certificate_data.as_ref(), user.client_certificate.as_ref())?;
        let key = self.pem("client-key", user.client_key_data.as_ref(), user.client_key.as_ref())?;
        match (chain, key) {
            (Some(chain), Some(key)) => Ok(Some(Certificate { chain, key })),
            (None, None) => Ok(None),
            (Some(_), None) => Err(self.bad("its user has a client-certificate and no client-key")),
            (None, Some(_)) => Err(self.bad("its user has a client-key and no client-certificate")),
        }
    }

    /// What is written in it comes before a file.
    fn pem(&self, name: &str, data: Option<&String>, file: Option<&PathBuf>) -> Result<Option<Vec<u8>>, String> {
        if let Some(data) = data.filter(|data| !data.is_empty()) {
            let pem = BASE64_STANDARD.decode(data.trim());
            return pem.map(Some).map_err(|_| self.bad(&format!("its {name}-data is no base64")));
        }
        path(file).map(|path| access::read(&self.beside(path))).transpose()
    }

    /// Paths are relative to the file that has them.
    fn beside(&self, path: &Path) -> PathBuf {
        self.file.parent().unwrap_or(Path::new("")).join(path)
    }

    fn bad(&self, reason: &str) -> String {
        format!("{}: {reason}", self.file.display())
    }
}

fn given(name: Option<String>) -> Option<String> {
    name.filter(|name| !name.is_empty())
}

fn path(path: Option<&PathBuf>) -> Option<&Path> {
    path.map(PathBuf::as_path).filter(|path| !path.as_os_str().is_empty())
}

#[cfg(test)]
#[path = "kubeconfig_tests.rs"]
mod tests;
