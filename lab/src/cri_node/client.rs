//! The calls that a kubelet makes.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use observer_cri::tonic::transport::{Channel, Endpoint};
use observer_cri::v1::{self, runtime_service_client::RuntimeServiceClient};
use tokio::runtime::Runtime;

/// What one call may take.
const CALL: Duration = Duration::from_secs(60);
/// What a command in a container may take.
const EXEC_SECONDS: i64 = 30;

/// A client that connects anew for each call: the runtime may have been started again.
#[derive(Debug)]
pub(super) struct Client {
    socket: PathBuf,
    runtime: Runtime,
}

impl Client {
    pub(super) fn new(socket: PathBuf) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self { socket, runtime })
    }

    fn call<T>(
        &self,
        what: &str,
        act: impl AsyncFnOnce(&mut RuntimeServiceClient<Channel>) -> Result<T, observer_cri::tonic::Status>,
    ) -> Result<T> {
        self.runtime.block_on(async {
            let endpoint = Endpoint::from_shared(format!("unix://{}", self.socket.display()))?.timeout(CALL);
            let channel =
                endpoint.connect().await.with_context(|| format!("connecting to {}", self.socket.display()))?;
            act(&mut RuntimeServiceClient::new(channel)).await.with_context(|| format!("asking containerd to {what}"))
        })
    }

    pub(super) fn version(&self) -> Result<String> {
        let answer = self.call("tell its version", async |cri| cri.version(v1::VersionRequest::default()).await)?;
        Ok(answer.into_inner().runtime_version)
    }

    /// By this handler; by the default one when it is empty.
    pub(super) fn run_pod(&self, config: &v1::PodSandboxConfig, handler: &str) -> Result<String> {
        let request = v1::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: handler.to_owned() };
        let answer = self.call("run a pod sandbox", async |cri| cri.run_pod_sandbox(request).await)?;
        Ok(answer.into_inner().pod_sandbox_id)
    }

    pub(super) fn pod_status(&self, id: &str) -> Result<v1::PodSandboxStatus> {
        let request = v1::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: false };
        let answer = self.call("tell a sandbox's status", async |cri| cri.pod_sandbox_status(request).await)?;
        answer.into_inner().status.context("containerd tells no status of a sandbox")
    }

    pub(super) fn container_status(&self, id: &str) -> Result<v1::ContainerStatus> {
        let request = v1::ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        let answer = self.call("tell a container's status", async |cri| cri.container_status(request).await)?;
        answer.into_inner().status.context("containerd tells no status of a container")
    }

    pub(super) fn remove_pod(&self, id: &str) -> Result<()> {
        let request = v1::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
        self.call("stop a pod sandbox", async |cri| cri.stop_pod_sandbox(request).await)?;
        let request = v1::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
        self.call("remove a pod sandbox", async |cri| cri.remove_pod_sandbox(request).await)?;
        Ok(())
    }

    pub(super) fn start(
        &self,
        pod: &str,
        sandbox_config: &v1::PodSandboxConfig,
        config: v1::ContainerConfig,
    ) -> Result<String> {
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: pod.to_owned(),
            config: Some(config),
            sandbox_config: Some(sandbox_config.clone()),
        };
        let answer = self.call("create a container", async |cri| cri.create_container(request).await)?;
        let id = answer.into_inner().container_id;
        let request = v1::StartContainerRequest { container_id: id.clone() };
        self.call("start a container", async |cri| cri.start_container(request).await)?;
        Ok(id)
    }

    /// The container's first process.
    pub(super) fn pid(&self, id: &str) -> Result<u32> {
        let request = v1::ContainerStatusRequest { container_id: id.to_owned(), verbose: true };
        let answer = self.call("tell a container's status", async |cri| cri.container_status(request).await)?;
        let info: serde_json::Value = serde_json::from_str(
            answer.into_inner().info.get("info").context("containerd tells nothing of a container")?,
        )?;
        info["pid"].as_u64().and_then(|pid| pid.try_into().ok()).context("containerd tells no pid of a container")
    }

    pub(super) fn exec(&self, id: &str, command: &[&str]) -> Result<String> {
        let cmd = command.iter().map(ToString::to_string).collect();
        let request = v1::ExecSyncRequest { container_id: id.to_owned(), cmd, timeout: EXEC_SECONDS };
        let answer = self.call("run a command", async |cri| cri.exec_sync(request).await)?.into_inner();
        ensure!(
            answer.exit_code == 0,
            "{command:?} ended with {}: {}",
            answer.exit_code,
            String::from_utf8_lossy(&answer.stderr)
        );
        Ok(String::from_utf8_lossy(&answer.stdout).into_owned())
    }

    pub(super) fn stop(&self, id: &str) -> Result<()> {
        let request = v1::StopContainerRequest { container_id: id.to_owned(), timeout: 0 };
        self.call("stop a container", async |cri| cri.stop_container(request).await)?;
        Ok(())
    }

    pub(super) fn remove(&self, id: &str) -> Result<()> {
        let request = v1::RemoveContainerRequest { container_id: id.to_owned() };
        self.call("remove a container", async |cri| cri.remove_container(request).await)?;
        Ok(())
    }
}
