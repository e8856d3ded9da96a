//! A stream for each agent: subscriptions in, answers out.

use std::{net::IpAddr, sync::Arc, time::Duration};

use observer_resolver::{
    MAX_BATCH, address,
    tonic::{Request, Response, Status, Streaming, async_trait, metadata::MetadataMap},
    v1::{FollowRequest, FollowResponse, resolver_server::Resolver},
};
use tokio::{
    sync::mpsc::{Sender, channel},
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tracing::{debug, warn};

use super::{
    core::{MAX_SUBSCRIPTIONS, TooMany},
    shared::{MAX_AGENTS, Membership, Refusal, Shared},
    token::Token,
};
use crate::identity::cluster::Reply;

/// How long an agent may take no answers before it is cut off. It comes back and asks anew.
const PATIENCE: Duration = Duration::from_secs(30);

/// Answers agents.
#[derive(Debug)]
pub struct Service {
    shared: Arc<Shared>,
    token: Option<Token>,
}

impl Service {
    /// A service of this table. With a token it answers those alone who show it.
    pub const fn new(shared: Arc<Shared>, token: Option<Token>) -> Self {
        Self { shared, token }
    }

    async fn admit(&self, metadata: &MetadataMap) -> Result<(), Status> {
        let Some(token) = &self.token else { return Ok(()) };
        let shown = metadata.get("authorization").map_or(&[][..], |value| value.as_bytes());
        match token.is(shown).await {
            Ok(true) => Ok(()),
            Ok(false) => {
                self.shared.refused(Refusal::Unauthenticated);
                Err(Status::unauthenticated("not the token that the resolver wants (--resolver.token-file)"))
            }
            Err(error) => {
                warn!("agents are turned away: {error}");
                Err(Status::unavailable("the resolver cannot read its own token"))
            }
        }
    }
}

#[async_trait]
impl Resolver for Service {
    type FollowStream = ReceiverStream<Result<FollowResponse, Status>>;

    async fn follow(&self, request: Request<Streaming<FollowRequest>>) -> Result<Response<Self::FollowStream>, Status> {
        self.admit(request.metadata()).await?;
        let Some(membership) = self.shared.join() else {
            self.shared.refused(Refusal::TooManyAgents);
            return Err(Status::resource_exhausted(format!("there are {MAX_AGENTS} agents already")));
        };
        // One answer waits while another is written: what follows waits in the table, each address once.
        let (answers, stream) = channel(1);
        let session = Session { membership, shared: Arc::clone(&self.shared), answers };
        tokio::spawn(session.run(request.into_inner()));
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

/// An agent's stream.
struct Session {
    membership: Membership,
    shared: Arc<Shared>,
    answers: Sender<Result<FollowResponse, Status>>,
}

/// Why a stream ends.
enum End {
    /// The agent has gone.
    Gone,
    /// The resolver stops.
    Stopping,
    /// The agent is cut off.
    Refused(Refusal, Status),
}

impl Session {
    async fn run(self, requests: Streaming<FollowRequest>) {
        let status = match self.follow(requests).await {
            End::Gone => return,
            End::Stopping => Status::unavailable("the resolver stops"),
            End::Refused(why, status) => {
                let count = self.shared.refused(why);
                // Each of many agents comes back again and again: the counter has the rest.
                if why == Refusal::TooManySubscriptions && count.is_power_of_two() {
                    warn!("agents are cut off ({count} so far): {}", status.message());
                } else {
                    debug!("an agent is cut off: {status}");
                }
                status
            }
        };
        let Self { membership, answers, .. } = self;
        // Its subscriptions make room at once, however long it takes to hear why.
        drop(membership);
        let _ = timeout(PATIENCE, answers.send(Err(status))).await;
    }

    async fn follow(&self, mut requests: Streaming<FollowRequest>) -> End {
        let mut stopping = self.shared.stopping();
        loop {
            tokio::select! {
                request = requests.message() => match request {
                    Ok(Some(request)) => if let Err(end) = self.take(&request) { return end },
                    Ok(None) | Err(_) => return End::Gone,
                },
                () = self.membership.woken() => {}
                _ = stopping.wait_for(|stopping| *stopping) => return End::Stopping,
            }
            if let Err(end) = self.answer().await {
                return end;
            }
        }
    }

    fn take(&self, request: &FollowRequest) -> Result<(), End> {
        let bad = |why: &str| End::Refused(Refusal::BadRequest, Status::invalid_argument(why));
        if request.subscribe.len() + request.unsubscribe.len() > MAX_BATCH {
            return Err(bad(&format!("more than {MAX_BATCH} addresses in one request")));
        }
        let read = |all: &[Vec<u8>]| all.iter().map(|bytes| address(bytes)).collect::<Option<Vec<IpAddr>>>();
        let (Some(unsubscribe), Some(subscribe)) = (read(&request.unsubscribe), read(&request.subscribe)) else {
            return Err(bad("an address has not 16 bytes"));
        };
        self.membership.change(&unsubscribe, &subscribe).map_err(|too_many| {
            let (why, words) = match too_many {
                TooMany::OfAgent => (Refusal::TooManyAddresses, "subscribed to too many addresses".to_owned()),
                TooMany::OfAll => {
                    let words = format!("all agents together are subscribed to {MAX_SUBSCRIPTIONS} addresses");
                    (Refusal::TooManySubscriptions, words)
                }
            };
            End::Refused(why, Status::resource_exhausted(words))
        })
    }

    /// Tells all that there is to tell.
    async fn answer(&self) -> Result<(), End> {
        loop {
            let replies = self.membership.take(MAX_BATCH);
            if replies.is_empty() {
                return Ok(());
            }
            let response = FollowResponse { answers: replies.iter().map(Reply::to_message).collect() };
            match timeout(PATIENCE, self.answers.send(Ok(response))).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(End::Gone),
                Err(_) => {
                    let words = format!("no answer was taken for {} seconds", PATIENCE.as_secs());
                    return Err(End::Refused(Refusal::Slow, Status::aborted(words)));
                }
            }
        }
    }
}
