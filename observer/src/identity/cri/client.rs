//! The calls to the runtime.

use std::{path::Path, time::Duration};

use observer_cri::{
    tonic::{
        Code, Status, Streaming,
        transport::{Channel, Endpoint},
    },
    v1::{self, runtime_service_client::RuntimeServiceClient},
};
use tracing::debug;

use super::listing::{Facts, Listing, SandboxFacts};

/// What one call may take.
const CALL: Duration = Duration::from_secs(10);
/// What connecting may take.
const CONNECT: Duration = Duration::from_secs(2);
/// The longest answer, which bounds the number of pods too. The kubelet allows 16 MiB.
const MAX_ANSWER: usize = 32 << 20;

/// Why the runtime cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum CriError {
    /// Nobody listens, or we may not connect.
    #[error("cannot connect to the container runtime at {path} (--cri.endpoint): {reason}")]
    Connect {
        /// The socket.
        path: String,
        /// The system's words.
        reason: String,
    },
    /// It does not answer, or with an error.
    #[error("the container runtime at {path} (--cri.endpoint) does not answer {call}: {reason}")]
    Call {
        /// The socket.
        path: String,
        /// What it was asked.
        call: &'static str,
        /// Its words.
        reason: String,
    },
}

/// A connection.
#[derive(Debug, Clone)]
pub struct Client {
    path: String,
    runtime: RuntimeServiceClient<Channel>,
    /// Without a limit of time: for what answers for as long as it lives.
    endless: RuntimeServiceClient<Channel>,
}

impl Client {
    /// Connects to a socket.
    ///
    /// # Errors
    /// When nobody listens there.
    pub async fn connect(path: &Path) -> Result<Self, CriError> {
        let path = path.display().to_string();
        let failed = |error: &dyn std::error::Error| CriError::Connect { path: path.clone(), reason: innermost(error) };
        let endpoint = Endpoint::from_shared(format!("unix://{path}")).map_err(|error| failed(&error))?;
        let endpoint = endpoint.connect_timeout(CONNECT);
        let channel = endpoint.clone().timeout(CALL).connect().await.map_err(|error| failed(&error))?;
        let endless = endpoint.connect_lazy();
        let limited = |channel| RuntimeServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER);
        Ok(Self { path, runtime: limited(channel), endless: limited(endless) })
    }

    /// The runtime's name and version.
    ///
    /// # Errors
    /// When it does not speak version 1 of the interface.
    pub async fn version(&mut self) -> Result<(String, String), CriError> {
        let answer = self.runtime.version(v1::VersionRequest::default()).await;
        let answer = answer.map_err(|status| self.failed("Version", &status))?.into_inner();
        Ok((answer.runtime_name, answer.runtime_version))
    }

    /// Everything that it runs. Asks for the details of what is new and keeps them in `facts`; the number of details
    /// that it refused comes back too.
    ///
    /// # Errors
    /// When a list cannot be had.
    pub async fn list(&mut self, facts: &mut Facts) -> Result<(Listing, u64), CriError> {
        let sandboxes = self.runtime.list_pod_sandbox(v1::ListPodSandboxRequest::default()).await;
        let sandboxes = sandboxes.map_err(|status| self.failed("ListPodSandbox", &status))?.into_inner().items;
        let containers = self.runtime.list_containers(v1::ListContainersRequest::default()).await;
        let containers = containers.map_err(|status| self.failed("ListContainers", &status))?.into_inner().containers;
        let listing = Listing { sandboxes, containers };
        let mut refused = 0;
        for id in facts.sandboxes_to_ask(&listing) {
            let request = v1::PodSandboxStatusRequest { pod_sandbox_id: id.clone(), verbose: true };
            match self.runtime.pod_sandbox_status(request).await {
                Ok(answer) => facts.sandbox(id, SandboxFacts::from(&answer.into_inner())),
                Err(status) => refused += self.refusal("PodSandboxStatus", &status)?,
            }
        }
        for id in facts.containers_to_ask(&listing) {
            let request = v1::ContainerStatusRequest { container_id: id.clone(), verbose: false };
            match self.runtime.container_status(request).await {
                Ok(answer) => facts.container(id, answer.into_inner().status.as_ref()),
                Err(status) => refused += self.refusal("ContainerStatus", &status)?,
            }
        }
        facts.forget_others(&listing);
        Ok((listing, refused))
    }

    /// Its stream of events.
    ///
    /// # Errors
    /// The runtime's own: `Unimplemented` when it has none (containerd before 1.7).
    pub async fn events(&mut self) -> Result<Streaming<v1::ContainerEventResponse>, Status> {
        let answer = self.endless.get_container_events(v1::GetEventsRequest::default()).await?;
        Ok(answer.into_inner())
    }

    /// 0 for what has just gone, 1 for another refusal of one thing.
    ///
    /// # Errors
    /// When the runtime itself is gone.
    fn refusal(&self, call: &'static str, status: &Status) -> Result<u64, CriError> {
        match status.code() {
            Code::NotFound => Ok(0),
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => Err(self.failed(call, status)),
            _ => {
                debug!("the container runtime does not answer {call}: {status}");
                Ok(1)
            }
        }
    }

    fn failed(&self, call: &'static str, status: &Status) -> CriError {
        let mut reason = format!("{:?}", status.code());
        if !status.message().is_empty() {
            reason = format!("{reason}: {}", status.message());
        }
        CriError::Call { path: self.path.clone(), call, reason }
    }
}

/// The system's own words, which stand innermost.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}
