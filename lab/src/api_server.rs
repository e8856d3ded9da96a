//! A real API server over a real etcd, on loopback, both ended when this is dropped.
//!
//! The binary is named by the environment: Debian has the server's sources alone, and `cargo xtask api-server` builds it.

use std::fs::{self, File};
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::agent::free_address;

/// The environment variable that names the server's binary.
pub const ENV: &str = "OBSERVER_KUBE_APISERVER";
/// How long a server may take until it is ready.
const PATIENCE: Duration = Duration::from_secs(60);
/// Who may do everything.
const ADMIN: &str = "the-admin-s-token";
/// The agent, which may do what its role says.
const AGENT: &str = "the-agent-s-token";
/// The agent's name for the server.
pub const AGENT_USER: &str = "observer";

/// The server and its store.
pub struct ApiServer {
    binary: PathBuf,
    directory: TempDir,
    // Before the store, which it would wait for.
    server: Option<Process>,
    address: SocketAddr,
    _etcd: Process,
    etcd_address: SocketAddr,
}

/// A process that does not outlive its owner.
struct Process(Child);

impl Process {
    fn start(command: &mut Command, log: &Path) -> Result<Self> {
        let file =
            File::options().create(true).append(true).open(log).with_context(|| format!("making {}", log.display()))?;
        let errors = file.try_clone().with_context(|| format!("opening {} twice", log.display()))?;
        let name = command.get_program().to_owned();
        command.stdin(Stdio::null()).stdout(file).stderr(errors);
        // SAFETY: one system call, which is all that may be done between fork and exec.
        unsafe {
            command.pre_exec(|| Ok(rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?));
        }
        Ok(Self(command.spawn().with_context(|| format!("starting {}", Path::new(&name).display()))?))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl ApiServer {
    /// Starts both.
    pub fn start() -> Result<Self> {
        let binary = std::env::var_os(ENV)
            .with_context(|| format!("{ENV} names no API server: run `cargo xtask api-server`"))?;
        let directory = tempfile::tempdir().context("making a directory for the servers")?;
        let (etcd_address, peers, address) = (free_address()?, free_address()?, free_address()?);
        let store = directory.path().join("etcd");
        let mut etcd = Command::new("etcd");
        etcd.arg("--data-dir")
            .arg(&store)
            .arg("--unsafe-no-fsync")
            .env("ETCD_UNSUPPORTED_ARCH", std::env::consts::ARCH);
        for (option, address) in [
            ("--listen-client-urls", etcd_address),
            ("--advertise-client-urls", etcd_address),
            ("--listen-peer-urls", peers),
            ("--initial-advertise-peer-urls", peers),
        ] {
            etcd.arg(option).arg(format!("http://{address}"));
        }
        etcd.arg("--initial-cluster").arg(format!("default=http://{peers}"));
        let etcd = Process::start(&mut etcd, &directory.path().join("etcd.log"))?;
        let mut all = Self { binary: binary.into(), directory, server: None, address, _etcd: etcd, etcd_address };
        all.configure()?;
        all.up()?;
        Ok(all)
    }

    fn configure(&self) -> Result<()> {
        let write =
            |name: &str, text: &str| fs::write(self.file(name), text).with_context(|| format!("writing {name}"));
        let made = rcgen::generate_simple_self_signed(vec![Ipv4Addr::LOCALHOST.to_string()])
            .context("making a certificate")?;
        write("ca.crt", &made.cert.pem())?;
        write("tls.key", &made.signing_key.serialize_pem())?;
        write("tokens.csv", &format!("{ADMIN},admin,1,system:masters\n{AGENT},{AGENT_USER},2\n"))?;
        write("token", AGENT)?;
        let policy =
            "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nrules:\n- level: Metadata\n";
        write("audit.yaml", policy)
    }

    /// A file of the servers' directory.
    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Where the server listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The agent's token.
    pub fn token_file(&self) -> PathBuf {
        self.file("token")
    }

    /// Who signed the server's certificate.
    pub fn ca_file(&self) -> PathBuf {
        self.file("ca.crt")
    }

    /// Starts the server, at the same address as before, and waits until it is ready.
    pub fn up(&mut self) -> Result<()> {
        self.server = Some(self.serve(self.address)?);
        Ok(())
    }

    /// Kills the server; the store stays.
    pub fn down(&mut self) {
        self.server = None;
    }

    /// Does something to the store with another server, at another address, of which whoever watches knows nothing.
    pub fn behind(&self, act: impl FnOnce(&Self, SocketAddr) -> Result<()>) -> Result<()> {
        let address = free_address()?;
        let _server = self.serve(address)?;
        act(self, address)
    }

    fn serve(&self, address: SocketAddr) -> Result<Process> {
        let mut server = Command::new(&self.binary);
        let files = [
            ("--tls-cert-file", "ca.crt"),
            ("--tls-private-key-file", "tls.key"),
            ("--service-account-signing-key-file", "tls.key"),
            ("--service-account-key-file", "ca.crt"),
            ("--token-auth-file", "tokens.csv"),
            ("--audit-policy-file", "audit.yaml"),
            ("--audit-log-path", "audit.log"),
        ];
        for (option, file) in files {
            server.arg(option).arg(self.file(file));
        }
        server.arg(format!("--etcd-servers=http://{}", self.etcd_address));
        server.arg(format!("--secure-port={}", address.port()));
        server.args([
            "--bind-address=127.0.0.1",
            "--advertise-address=10.0.0.1",
            "--insecure-port=0",
            "--endpoint-reconciler-type=none",
            "--authorization-mode=RBAC",
            "--service-account-issuer=https://kubernetes.default",
            "--service-cluster-ip-range=10.96.0.0/24",
            "--disable-admission-plugins=ServiceAccount",
            "--etcd-compaction-interval=0",
        ]);
        let mut server = Process::start(&mut server, &self.file("server.log"))?;
        let deadline = Instant::now() + PATIENCE;
        while self.raw_at(address, "get", "/readyz", None).is_err() {
            if let Some(status) = server.0.try_wait().context("asking for the server's end")? {
                bail!("the API server ended ({status}): {}", self.log_end());
            }
            ensure!(Instant::now() < deadline, "the API server is not ready: {}", self.log_end());
            std::thread::sleep(Duration::from_millis(200));
        }
        Ok(server)
    }

    fn log_end(&self) -> String {
        let log = fs::read_to_string(self.file("server.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(10)..].join("\n")
    }

    /// Asks the server as an administrator: `verb` is kubectl's (create, replace, delete, get), the path is the API's.
    pub fn raw(&self, verb: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        self.raw_at(self.address, verb, path, body)
    }

    /// The same of the server at this address.
    pub fn raw_at(&self, address: SocketAddr, verb: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        let mut kubectl = Command::new("kubectl");
        kubectl.args(["--server", &format!("https://{address}"), "--token", ADMIN, "--kubeconfig", "/dev/null"]);
        kubectl.arg("--certificate-authority").arg(self.file("ca.crt")).args([verb, "--raw", path]);
        if body.is_some() {
            kubectl.args(["-f", "-"]);
        }
        let mut child = kubectl
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("starting kubectl (Debian: kubernetes-client)")?;
        if let (Some(body), Some(mut stdin)) = (body, child.stdin.take()) {
            stdin.write_all(body.to_string().as_bytes()).context("writing to kubectl")?;
        }
        let output = child.wait_with_output().context("waiting for kubectl")?;
        ensure!(output.status.success(), "{verb} {path}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(serde_json::from_slice(&output.stdout).unwrap_or_default())
    }

    /// Throws away everything in the store that is older than now.
    pub fn compact(&self) -> Result<()> {
        let etcdctl = |arguments: &[&str]| -> Result<String> {
            let output = Command::new("etcdctl")
                .env("ETCDCTL_API", "3")
                .args(["--endpoints", &format!("http://{}", self.etcd_address)])
                .args(arguments)
                .output()
                .context("starting etcdctl (Debian: etcd-client)")?;
            ensure!(output.status.success(), "etcdctl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        };
        let status: Value = serde_json::from_str(&etcdctl(&["endpoint", "status", "--write-out", "json"])?)
            .context("reading what etcdctl says")?;
        let revision = status[0]["Status"]["header"]["revision"].as_u64().context("etcdctl tells no revision")?;
        etcdctl(&["compact", &revision.to_string()]).map(drop)
    }

    /// What the agent has asked for so far, in this order, each with the status of the answer, as the server's own log has
    /// it. A watch is in it when it ends.
    pub fn asked(&self) -> Result<Vec<(String, u64)>> {
        let log = fs::read_to_string(self.file("audit.log")).context("reading the server's log of requests")?;
        let events = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let of_agent = events.filter(|event| event["user"]["username"] == AGENT_USER);
        Ok(of_agent
            .filter_map(|event| {
                Some((event["requestURI"].as_str()?.to_owned(), event["responseStatus"]["code"].as_u64()?))
            })
            .collect())
    }
}
