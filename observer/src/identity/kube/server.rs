//! Following a collection of the API: a list, then a watch, and all that may go wrong with them.

use std::time::{Duration, Instant};

use tokio::time::{sleep, timeout};
use tracing::debug;

use super::{
    backoff::{Backoff, dice, spread},
    client::{KubeError, Target},
    connection::{Connection, JSON},
    list::{ListMetadata, Page},
    watch::{Lines, Objects, Outcome, Progress},
};

/// How long a watch lasts at least, and by how much longer it may: agents should not all come back at once.
const WATCH: (Duration, Duration) = (Duration::from_secs(300), Duration::from_secs(300));
/// How much later than it should a watch may end.
const SLACK: Duration = Duration::from_secs(30);
/// The wait between a watch that ended as it should and the next.
const BETWEEN: Duration = Duration::from_secs(1);
/// A watch that ends before this has ended early.
const SHORT: Duration = Duration::from_secs(10);
/// How long a list may say nothing.
const SILENCE: Duration = Duration::from_secs(30);
/// Objects that are asked for at once. A first list is taken from the server's cache, which may give all of them.
const PAGE: usize = 500;

/// What is followed, and what becomes of it.
pub trait Topic {
    /// Its objects.
    type Objects: Objects;

    /// Where they are: a path with a query that may be empty.
    fn path(&self) -> String;

    /// Its objects, to be changed.
    fn objects(&mut self) -> &mut Self::Objects;

    /// A connection was made, after a while without one. Says whether there is something to publish.
    fn connected(&mut self) -> bool;

    /// Objects have changed.
    async fn publish(&mut self);

    /// The watch was answered.
    fn works(&mut self);

    /// Everything up to now has been told: a list was, or an event after what had been told before.
    fn caught_up(&mut self) {}

    /// Something failed. Of what is `usual`, and lost nothing, nobody needs to hear.
    fn failed(&mut self, error: &KubeError, usual: bool);
}

/// Follows. Never ends.
pub async fn follow<T: Topic>(target: Target, topic: T) {
    let mut watcher = Watcher { target, topic, progress: Progress::default(), fresh: false, established: false };
    let mut backoff = Backoff::default();
    loop {
        let began = Instant::now();
        let wait = match watcher.session(&mut backoff).await {
            // One that ends at once again and again must not cost more than an error.
            Ok(()) if began.elapsed() < SHORT => backoff.wait(Duration::ZERO, dice()),
            Ok(()) => spread(BETWEEN, dice()),
            Err(error) => {
                // A watch that breaks off after a while is usual, and nothing is lost when the next one goes on: only
                // when that fails too is the server said to be away.
                let usual = watcher.established && began.elapsed() >= SHORT;
                watcher.topic.failed(&error, usual);
                backoff.wait(began.elapsed(), dice())
            }
        };
        sleep(wait).await;
    }
}

/// How many objects there are at a path, from a page of one. `None` when the server does not say.
///
/// # Errors
/// When they may not be listed, or nobody answers.
pub async fn count<O: Objects>(target: &Target, path: &str, objects: &mut O) -> Result<Option<u64>, KubeError> {
    let mut connection = Connection::open(target).await?;
    let (metadata, count) = page(&mut connection, &format!("{path}&limit=1"), objects).await?;
    let further = if metadata.next.is_empty() { Some(0) } else { metadata.remaining_item_count };
    Ok(further.map(|further| count + further))
}

/// Asks for a page of a list, and puts its objects. Gives the number of them.
async fn page<O: Objects>(
    connection: &mut Connection,
    path: &str,
    objects: &mut O,
) -> Result<(ListMetadata, u64), KubeError> {
    let mut answer = connection.get(path, JSON).await?;
    let broken = |reason: String| connection.broken(path, &reason);
    let mut page = Page::default();
    loop {
        let late = || broken(format!("nothing more for {} seconds", SILENCE.as_secs()));
        let piece = timeout(SILENCE, connection.chunk(&mut answer)).await.map_err(|_| late())??;
        match piece {
            Some(piece) => page.take(&piece, objects).map_err(broken)?,
            None => return page.end().map_err(broken),
        }
    }
}

struct Watcher<T: Topic> {
    target: Target,
    topic: T,
    progress: Progress,
    /// Whether the objects are those of a list, and all that came after it.
    fresh: bool,
    /// Whether the watch of this session was answered.
    established: bool,
}

impl<T: Topic> Watcher<T> {
    /// One connection: a list where one is needed, and one watch to its end.
    async fn session(&mut self, backoff: &mut Backoff) -> Result<(), KubeError> {
        self.established = false;
        let mut connection = Connection::open(&self.target).await?;
        let publish = self.topic.connected();
        if !self.fresh {
            self.list(&mut connection).await?;
        } else if publish {
            self.topic.publish().await;
        }
        let lasts = WATCH.0 + spread(WATCH.1, dice());
        match timeout(lasts + SLACK, self.watch(&mut connection, lasts, backoff)).await {
            Ok(ended) => ended,
            Err(_) => Err(connection.broken(&self.topic.path(), "the watch does not end when it should")),
        }
    }

    async fn list(&mut self, connection: &mut Connection) -> Result<(), KubeError> {
        // The first list may come from the server's cache, which costs it little. One after what was known had expired
        // must not be older than that.
        let mut further = if self.progress.version().is_none() { "&resourceVersion=0" } else { "" }.to_owned();
        self.topic.objects().begin();
        loop {
            let path = format!("{}&limit={PAGE}{further}", self.topic.path());
            let (metadata, _) = page(connection, &path, self.topic.objects()).await?;
            if metadata.next.is_empty() {
                self.topic.objects().complete();
                self.progress.reached(&metadata.resource_version);
                break;
            }
            let next = format!("&continue={}", encoded(&metadata.next));
            if next == further {
                return Err(connection.broken(&path, "the next page is this one"));
            }
            further = next;
        }
        self.fresh = true;
        self.topic.publish().await;
        self.topic.caught_up();
        Ok(())
    }

    async fn watch(
        &mut self,
        connection: &mut Connection,
        lasts: Duration,
        backoff: &mut Backoff,
    ) -> Result<(), KubeError> {
        let from = self.progress.version().unwrap_or_default();
        let seconds = lasts.as_secs();
        let path = format!(
            "{}&watch=true&allowWatchBookmarks=true&timeoutSeconds={seconds}&resourceVersion={from}",
            self.topic.path()
        );
        let mut answer = match connection.get(&path, JSON).await {
            Ok(answer) => answer,
            Err(error) => {
                // Whatever it does not like of this watch, a list tells where to begin.
                self.fresh &= !matches!(error.status, Some(400 | 404..=428 | 504));
                return Err(error);
            }
        };
        self.established = true;
        self.topic.works();
        let mut lines = Lines::default();
        while let Some(piece) = connection.chunk(&mut answer).await? {
            let broken = |reason: String| connection.broken(&path, &reason);
            let (mut changed, mut told) = (false, false);
            for line in lines.take(&piece).map_err(broken)? {
                let outcome = self.progress.event(&line, self.topic.objects()).map_err(|reason| {
                    // It may have been any event.
                    self.fresh = false;
                    broken(format!("no event: {reason}"))
                })?;
                match outcome {
                    Outcome::Changed => changed = true,
                    Outcome::Same => {}
                    Outcome::Expired(reason) => {
                        self.fresh = false;
                        if changed {
                            self.topic.publish().await;
                        }
                        debug!("listing again, {}: {reason}", self.topic.path());
                        return Ok(());
                    }
                }
                told = true;
                backoff.well();
            }
            if changed {
                self.topic.publish().await;
            }
            if told {
                self.topic.caught_up();
            }
        }
        Ok(())
    }
}

/// For a query.
pub fn encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_encoded() {
        assert_eq!(encoded("ip-10-0-0-1.ec2.internal"), "ip-10-0-0-1.ec2.internal");
        assert_eq!(encoded("a b&c=ü"), "a%20b%26c%3D%C3%BC");
    }
}
