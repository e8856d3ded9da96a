//! Asking a resolver who has the addresses that this node's pods talk to.

use std::{
    fmt::Display,
    future::Future,
    io,
    net::IpAddr,
    path::PathBuf,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use observer_resolver::{
    MAX_MESSAGE,
    tonic::{
        Code, Request, Status,
        metadata::{Ascii, MetadataValue},
        transport::{Certificate, ClientTlsConfig, Endpoint},
    },
    v1::{FollowRequest, FollowResponse, resolver_client::ResolverClient},
};
use tokio::{
    sync::{
        Notify,
        mpsc::{Sender, channel},
    },
    time::{sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tracing::{info, warn};

use super::{Known, PeerBook, Reply, wants::Wants};
use crate::{
    clock::monotonic,
    identity::{
        KubeUrl,
        kube::{Backoff, dice},
        source::{Feed, Source},
    },
    metrics::{AgentMetrics, ProbeState},
    resolver::Token,
};

/// The resolver, in `observer_agent_source_errors_total` and `observer_agent_probe_state`.
pub const RESOLVER: &str = "resolver";
/// Addresses that an agent wants to know at one time; more than the edge table has by default.
pub const MAX_WANTED: usize = 50_000;
/// What connecting may take.
const CONNECT: Duration = Duration::from_secs(5);
/// Silence after which the resolver is asked whether it is there, and how long it may take to say so.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(10));

/// How to reach a resolver.
#[derive(Debug, Clone)]
pub struct ResolverOptions {
    /// Where it listens.
    pub url: KubeUrl,
    /// Whom its certificate is signed by, for `https`.
    pub ca_file: PathBuf,
    /// What it is shown.
    pub token_file: Option<PathBuf>,
}

/// What goes wrong between agent and resolver.
#[derive(Debug, thiserror::Error)]
#[error("the resolver at {url} (--kubernetes.peers) {what}")]
pub struct ResolverError {
    url: String,
    what: String,
}

/// A resolver that is asked, as those see it who know which addresses there are.
#[derive(Clone)]
pub struct Resolver(Arc<Shared>);

struct Shared {
    wants: Mutex<Wants>,
    /// There is something to say.
    say: Notify,
    /// There is an answer, or there will be none.
    heard: Condvar,
    connected: AtomicBool,
    book: Arc<PeerBook>,
}

impl Resolver {
    /// Starts asking, until the source is dropped. What it tells is written into `book`, its state told to `metrics`.
    ///
    /// # Errors
    /// When the thread or its runtime cannot be made.
    pub fn start(
        options: ResolverOptions,
        book: Arc<PeerBook>,
        metrics: Arc<AgentMetrics>,
    ) -> io::Result<(Source, Self)> {
        Self::with_room_for(MAX_WANTED, options, book, metrics)
    }

    fn with_room_for(
        most: usize,
        options: ResolverOptions,
        book: Arc<PeerBook>,
        metrics: Arc<AgentMetrics>,
    ) -> io::Result<(Source, Self)> {
        let shared = Arc::new(Shared {
            wants: Mutex::new(Wants::new(most)),
            say: Notify::new(),
            heard: Condvar::new(),
            connected: AtomicBool::new(false),
            book,
        });
        let follower = Arc::clone(&shared);
        let source = Source::start(RESOLVER, metrics, |feed| follow(follower, options, feed))?;
        Ok((source, Self(shared)))
    }

    /// These addresses are there now: asks for those that are new. Returns when there is an answer for all, or at
    /// `deadline`; at once when nothing was new or the resolver is away.
    pub fn see(&self, addresses: impl Iterator<Item = IpAddr>, deadline: Instant) {
        self.see_at(addresses, monotonic(), deadline);
    }

    fn see_at(&self, addresses: impl Iterator<Item = IpAddr>, now: u64, deadline: Instant) {
        let shared = &self.0;
        let mut wants = shared.wants();
        let seen = wants.see(addresses, now);
        // Under the lock: an answer that is under way must not bring it back.
        seen.left.iter().for_each(|address| shared.book.forget(*address));
        shared.book.fold(seen.refused);
        if seen.new > 0 || !seen.left.is_empty() {
            shared.say.notify_one();
        }
        if seen.new == 0 {
            return;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let open = |wants: &mut Wants| shared.connected.load(Relaxed) && !wants.all_answered();
        // In time or not: the next look finds what came.
        drop(shared.heard.wait_timeout_while(wants, left, open));
    }
}

impl Shared {
    fn wants(&self) -> MutexGuard<'_, Wants> {
        self.wants.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, response: FollowResponse, now: u64) {
        let mut wants = self.wants();
        for reply in response.answers.into_iter().filter_map(Reply::of_message) {
            if wants.answered(reply.address) {
                let known = self.book.who(reply.address, u64::MAX);
                if reply.may_be_a_pods && matches!(known, Known::Nobody | Known::Unknown) {
                    // The book says nothing of it, which is what is known: it is told when somebody has it.
                    self.book.forget(reply.address);
                } else if let Some(since) = since(&known, &reply, now) {
                    if since == 0 {
                        // Whoever it is told to be now has been it all the time: nobody was known to be another.
                        self.book.forget(reply.address);
                    }
                    self.book.tell(reply.address, reply.record, since);
                }
            }
        }
        drop(wants);
        self.heard.notify_all();
    }
}

/// Since when what the resolver says is so, in nanoseconds of `CLOCK_MONOTONIC`; `None` when it is known already.
fn since(known: &Known, reply: &Reply, now: u64) -> Option<u64> {
    let changed = || reply.age_ms.map(|age| now.saturating_sub(age.saturating_mul(1_000_000)));
    match known {
        Known::By(record) if Some(record) == reply.record.as_ref() => None,
        Known::Nobody | Known::Vacant if reply.record.is_none() => None,
        // Somebody else had it. If the resolver does not know (it began later, or has forgotten), it was at any time since
        // we heard last.
        Known::By(_) | Known::Vacant => Some(changed().unwrap_or(now).max(1)),
        // As far as anybody knows it was never another's.
        Known::Nobody | Known::Unknown => Some(changed().map_or(0, |since| since.max(1))),
    }
}

async fn follow(shared: Arc<Shared>, options: ResolverOptions, mut feed: Feed) {
    let mut backoff = Backoff::default();
    loop {
        let began = Instant::now();
        let error = session(&shared, &options, &mut feed, &mut backoff).await;
        {
            let _wants = shared.wants();
            shared.connected.store(false, Relaxed);
        }
        shared.heard.notify_all();
        feed.error();
        let text = error.to_string();
        if feed.tell(ProbeState::Failed, &text) {
            warn!("{text}; addresses that are known stay so, new ones are peer_kind=\"other\"");
        }
        sleep(backoff.wait(began.elapsed(), dice())).await;
    }
}

/// Follows until something goes wrong.
async fn session(shared: &Shared, options: &ResolverOptions, feed: &mut Feed, backoff: &mut Backoff) -> ResolverError {
    match talk(shared, options, feed, backoff).await {
        Ok(never) => match never {},
        Err(what) => ResolverError { url: options.url.to_string(), what },
    }
}

async fn talk(
    shared: &Shared,
    options: &ResolverOptions,
    feed: &mut Feed,
    backoff: &mut Backoff,
) -> Result<std::convert::Infallible, String> {
    let (requests, stream) = channel(1);
    let mut answers = in_time(connect(options, ReceiverStream::new(stream))).await?;
    shared.wants().connected();
    shared.connected.store(true, Relaxed);
    if feed.tell(ProbeState::Ok, "") {
        info!(url = %options.url, "asking the resolver for addresses");
    }
    let (mut silent, before) = (false, *backoff);
    loop {
        // Both ways at once: two sides that each wait for the other to read would wait for ever.
        tokio::select! {
            answer = answers.message() => match answer {
                Ok(Some(response)) => {
                    backoff.well();
                    shared.take(response, monotonic());
                }
                Ok(None) => return Err("ended the stream".to_owned()),
                Err(status) => {
                    if status.code() == Code::ResourceExhausted {
                        // Whatever was told before: who is over a bound comes back ever later.
                        *backoff = before;
                    }
                    return Err(said("ended the stream", &status));
                }
            },
            said = say(shared, &requests), if !silent => silent = said?,
            () = shared.say.notified(), if silent => silent = false,
        }
    }
}

/// Says the next thing; true when there is nothing to say.
async fn say(shared: &Shared, requests: &Sender<FollowRequest>) -> Result<bool, String> {
    let place = requests.reserve().await.map_err(|_| "does not listen any more".to_owned())?;
    let request = shared.wants().request();
    Ok(request.map(|request| place.send(request)).is_none())
}

async fn in_time<T>(what: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    let late = || format!("does not answer within {} seconds", CONNECT.as_secs());
    timeout(CONNECT, what).await.unwrap_or_else(|_| Err(late()))
}

async fn connect(
    options: &ResolverOptions,
    requests: ReceiverStream<FollowRequest>,
) -> Result<observer_resolver::tonic::Streaming<FollowResponse>, String> {
    let failed = |error: &dyn std::error::Error| format!("cannot be reached: {}", innermost(error));
    let mut endpoint = Endpoint::from_shared(options.url.to_string()).map_err(|error| failed(&error))?;
    if options.url.tls {
        let file = &options.ca_file;
        let bad =
            |reason: &dyn Display| format!("cannot be believed: {}: {reason} (--resolver.ca-file)", file.display());
        let pem = tokio::fs::read(file).await.map_err(|error| bad(&error))?;
        let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem)).domain_name(&options.url.host);
        endpoint = endpoint.tls_config(tls).map_err(|error| bad(&innermost(&error)))?;
    }
    let endpoint = endpoint
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE.0)
        .keep_alive_timeout(KEEPALIVE.1)
        .keep_alive_while_idle(true);
    let channel = endpoint.connect().await.map_err(|error| failed(&error))?;
    let mut request = Request::new(requests);
    if let Some(file) = &options.token_file {
        let token = Token::new(file.clone()).read().await.map_err(|error| format!("cannot be asked: {error:#}"))?;
        let mut value: MetadataValue<Ascii> =
            format!("Bearer {token}").parse().map_err(|_| "cannot be asked: the token has unusual characters")?;
        value.set_sensitive(true);
        request.metadata_mut().insert("authorization", value);
    }
    let mut client = ResolverClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
    let answer = client.follow(request).await.map_err(|status| said("turns this agent away", &status))?;
    Ok(answer.into_inner())
}

fn said(what: &str, status: &Status) -> String {
    format!("{what}: {:?}: {}", status.code(), status.message())
}

/// The system's own words, which stand innermost.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

#[cfg(test)]
#[path = "resolver_tests.rs"]
mod tests;
