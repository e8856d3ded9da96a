//! Agents, as a resolver sees them: a connection each, subscriptions, and what they are told.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use observer_resolver::tonic::transport::Endpoint;
use observer_resolver::v1::resolver_client::ResolverClient;
use observer_resolver::v1::{FollowRequest, answer::Who};
use observer_resolver::{MAX_BATCH, MAX_MESSAGE, address, packed, prost::Message};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio_stream::wrappers::ReceiverStream;

/// What all agents have in common.
#[derive(Default)]
pub(super) struct Shared {
    /// When an address changed hands last, and who has it since.
    changes: Mutex<HashMap<IpAddr, (Instant, Option<String>)>>,
    delays: Mutex<Vec<Duration>>,
    /// Messages from the resolver, their bytes, and answers in them.
    pub(super) messages: AtomicU64,
    pub(super) bytes: AtomicU64,
    pub(super) answers: AtomicU64,
    /// The same of what the agents say.
    pub(super) requests: AtomicU64,
    pub(super) request_bytes: AtomicU64,
}

impl Shared {
    /// An address changes hands now.
    pub(super) fn changed(&self, address: IpAddr, pod: Option<String>) {
        lock(&self.changes).insert(address, (Instant::now(), pod));
    }

    /// How long it took until changes were known to those who had subscribed before; in order.
    pub(super) fn delays(&self) -> Vec<Duration> {
        let mut delays = lock(&self.delays).clone();
        delays.sort_unstable();
        delays
    }

    fn told(&self, address: IpAddr, pod: Option<&str>) {
        let now = Instant::now();
        // Where it has changed again meanwhile, this is not the answer that is waited for.
        if let Some((since, expected)) = lock(&self.changes).get(&address)
            && expected.as_deref() == pod
        {
            lock(&self.delays).push(now - *since);
        }
    }
}

/// What one agent has been told: the name of the pod, Service or node. Absent before the first answer.
pub(super) type View = HashMap<IpAddr, Option<String>>;

/// An agent.
pub(super) struct Agent {
    pub(super) wanted: Vec<IpAddr>,
    view: Arc<Mutex<View>>,
    requests: Sender<FollowRequest>,
    shared: Arc<Shared>,
}

impl Agent {
    /// Connects, and subscribes.
    pub(super) async fn connect(url: String, wanted: Vec<IpAddr>, shared: Arc<Shared>) -> Result<Self> {
        let (requests, stream): (_, Receiver<FollowRequest>) = channel(8);
        let channel = Endpoint::from_shared(url)?.connect().await.context("connecting to the resolver")?;
        let mut client = ResolverClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
        let mut answers =
            client.follow(ReceiverStream::new(stream)).await.context("following the resolver")?.into_inner();
        let view: Arc<Mutex<View>> = Arc::default();
        let agent = Self { wanted, view: Arc::clone(&view), requests, shared: Arc::clone(&shared) };
        tokio::spawn(async move {
            while let Ok(Some(response)) = answers.message().await {
                shared.messages.fetch_add(1, Relaxed);
                shared.bytes.fetch_add(framed(&response), Relaxed);
                shared.answers.fetch_add(response.answers.len() as u64, Relaxed);
                for answer in response.answers {
                    let Some(address) = address(&answer.address) else { continue };
                    let name = answer.who.map(|who| match who {
                        Who::Pod(pod) => pod.name,
                        Who::Service(service) => service.name,
                        Who::Node(node) => node.name,
                    });
                    if let Some(before) = lock(&view).insert(address, name.clone())
                        && before != name
                    {
                        shared.told(address, name.as_deref());
                    }
                }
            }
        });
        agent.say(&[], &agent.wanted).await?;
        Ok(agent)
    }

    /// Wants another address in the place of one.
    pub(super) async fn replace(&mut self, at: usize, address: IpAddr) -> Result<()> {
        let before = std::mem::replace(&mut self.wanted[at], address);
        lock(&self.view).remove(&before);
        self.say(&[before], &[address]).await
    }

    /// Whether there is an answer to all that is wanted.
    pub(super) fn is_answered(&self) -> bool {
        let view = lock(&self.view);
        self.wanted.iter().all(|address| view.contains_key(address))
    }

    /// # Errors
    /// When what it was told is not so.
    pub(super) fn check(&self, truth: impl Fn(IpAddr) -> Option<String>) -> Result<()> {
        let view = lock(&self.view);
        for address in &self.wanted {
            let (told, is) = (view.get(address), truth(*address));
            ensure!(told == Some(&is), "an agent was told that {address} is {told:?}, but it is {is:?}");
        }
        Ok(())
    }

    async fn say(&self, unsubscribe: &[IpAddr], subscribe: &[IpAddr]) -> Result<()> {
        let pack = |all: &[IpAddr]| all.iter().copied().map(packed).collect();
        for part in subscribe.chunks(MAX_BATCH - unsubscribe.len()) {
            let request = FollowRequest { subscribe: pack(part), unsubscribe: pack(unsubscribe) };
            self.shared.requests.fetch_add(1, Relaxed);
            self.shared.request_bytes.fetch_add(framed(&request), Relaxed);
            self.requests.send(request).await.context("the resolver has ended the stream")?;
        }
        Ok(())
    }
}

/// A message with its head (github.com/grpc/grpc, doc/PROTOCOL-HTTP2.md, "Length-Prefixed-Message").
fn framed(message: &impl Message) -> u64 {
    message.encoded_len() as u64 + 5
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
