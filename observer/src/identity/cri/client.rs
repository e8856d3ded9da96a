//! The calls to the runtime.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use observer_cri::{
    tonic::{
        Code, Request, Status, Streaming,
        transport::{Channel, Endpoint},
    },
    v1::{self, runtime_service_client::RuntimeServiceClient},
};
use tracing::debug;

use super::listing::{Detail, Facts, Listing, SandboxFacts};

/// What one call may take.
const CALL: Duration = Duration::from_secs(10);
/// What one detail may take the first time: one sandbox that is stuck must not keep the others' names for long.
const DETAIL: Duration = Duration::from_secs(2);
/// What it may take when it is asked for again: a runtime may only be slow.
const DETAIL_AGAIN: Duration = Duration::from_secs(5);
/// After so many details of one list without an answer the runtime is asked whether it is there at all.
const SILENT: u32 = 3;
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

/// What a list has brought.
#[derive(Debug)]
pub struct Listed {
    /// Everything that the runtime runs.
    pub listing: Listing,
    /// Details that it was asked for now and did not tell.
    pub failed: u64,
    /// All details that are missing because it did not tell them, now or before.
    pub missing: usize,
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

    /// Everything that it runs. Asks for the details of what is new, and of what it did not tell a while ago, and keeps
    /// them in `facts`.
    ///
    /// # Errors
    /// When a list cannot be had. Without some of the details everything else is told.
    pub async fn list(&mut self, facts: &mut Facts) -> Result<Listed, CriError> {
        let sandboxes = self.runtime.list_pod_sandbox(v1::ListPodSandboxRequest::default()).await;
        let sandboxes = sandboxes.map_err(|status| self.failed("ListPodSandbox", &status))?.into_inner().items;
        let containers = self.runtime.list_containers(v1::ListContainersRequest::default()).await;
        let containers = containers.map_err(|status| self.failed("ListContainers", &status))?.into_inner().containers;
        let listing = Listing { sandboxes, containers };
        let failed = self.details(&listing, facts).await?;
        facts.forget_others(&listing);
        Ok(Listed { listing, failed, missing: facts.missing() })
    }

    /// Asks for details; how many were not told comes back. Begins none after the time that [`SILENT`] new ones without an
    /// answer take: the rest is for the next list.
    ///
    /// # Errors
    /// When the runtime does not say its version either.
    async fn details(&mut self, listing: &Listing, facts: &mut Facts) -> Result<u64, CriError> {
        let (mut failed, mut silent) = (0, 0);
        let end = Instant::now() + DETAIL * SILENT;
        for (detail, again) in facts.to_ask(listing, Instant::now()) {
            // What was silent before keeps the new ones waiting once in a list, no more.
            if again && silent > 0 || Instant::now() >= end {
                break;
            }
            let began = Instant::now();
            let Err(status) = self.detail(&detail, again, facts).await else { continue };
            // It has just gone.
            if status.code() == Code::NotFound {
                continue;
            }
            debug!("the container runtime does not tell {detail:?}: {status}");
            facts.failed(&detail, Instant::now(), began.elapsed());
            failed += 1;
            silent += u32::from(is_silence(&status));
            if silent == SILENT {
                self.version().await?;
                break;
            }
        }
        Ok(failed)
    }

    /// Asks for one detail.
    async fn detail(&mut self, detail: &Detail, again: bool, facts: &mut Facts) -> Result<(), Status> {
        let limit = if again { DETAIL_AGAIN } else { DETAIL };
        match detail {
            Detail::Sandbox(id) => {
                let request = v1::PodSandboxStatusRequest { pod_sandbox_id: id.clone(), verbose: true };
                let answer = self.runtime.pod_sandbox_status(within(limit, request)).await?;
                facts.sandbox(id.clone(), SandboxFacts::from(&answer.into_inner()));
            }
            Detail::Container(id) => {
                let request = v1::ContainerStatusRequest { container_id: id.clone(), verbose: false };
                let answer = self.runtime.container_status(within(limit, request)).await?;
                facts.container(id.clone(), answer.into_inner().status.as_ref());
            }
        }
        Ok(())
    }

    /// Its stream of events.
    ///
    /// # Errors
    /// The runtime's own: `Unimplemented` when it has none (containerd before 1.7).
    pub async fn events(&mut self) -> Result<Streaming<v1::ContainerEventResponse>, Status> {
        let answer = self.endless.get_container_events(v1::GetEventsRequest::default()).await?;
        Ok(answer.into_inner())
    }

    fn failed(&self, call: &'static str, status: &Status) -> CriError {
        let mut reason = format!("{:?}", status.code());
        if !status.message().is_empty() {
            reason = format!("{reason}: {}", status.message());
        }
        CriError::Call { path: self.path.clone(), call, reason }
    }
}

/// A question that is to be answered so soon; the runtime is told so too.
fn within<T>(limit: Duration, question: T) -> Request<T> {
    let mut request = Request::new(question);
    request.set_timeout(limit);
    request
}

/// True when nobody answered: the runtime is gone, or what it was asked for is stuck.
fn is_silence(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled)
}

/// The system's own words, which stand innermost.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}
