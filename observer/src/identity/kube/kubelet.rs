//! Asking the kubelet for its pods, again and again.

use std::time::{Duration, Instant};

use tokio::time::sleep;
use tracing::{info, warn};

use super::{
    backoff::{Backoff, dice},
    client::{KubeError, Target},
    connection::{Connection, JSON, MAX_BODY},
};
use crate::{
    identity::{document, source::Feed},
    metrics::ProbeState,
};

const PODS: &str = "/pods";
/// After somebody saw a container that the kubelet had not told of. It tells of one only when it has looked itself,
/// which it does every second (`relistPeriod` in kubernetes/pkg/kubelet).
const AFTER_CHANGE: [u64; 6] = [250, 250, 500, 1000, 1000, 3000];
/// When nothing happens: labels and phases change too.
const POLL: Duration = Duration::from_secs(10);

/// Follows a kubelet. Never ends.
pub async fn follow(target: Target, mut feed: Feed) {
    let mut backoff = Backoff::default();
    loop {
        let began = Instant::now();
        let error = match session(&target, &mut feed).await {
            Ok(()) => continue,
            Err(error) => error,
        };
        feed.error();
        let text = error.to_string();
        if feed.tell(ProbeState::Failed, &text) {
            warn!("{text}; pods keep the names they have");
        }
        sleep(backoff.wait(began.elapsed(), dice())).await;
    }
}

/// Asks over one connection, until that ends.
async fn session(target: &Target, feed: &mut Feed) -> Result<(), KubeError> {
    let mut connection = Connection::open(target).await?;
    let mut asked = 0;
    loop {
        let answer = connection.get(PODS, JSON).await?;
        let body = connection.whole(answer, MAX_BODY).await?;
        let pods = document::parse(&body)
            .map_err(|error| connection.broken(PODS, &format!("the answer is no list of pods: {error}")))?;
        drop(body);
        let count = pods.len();
        // In this order: who is told that this works finds the names.
        feed.publish(pods);
        if feed.tell(ProbeState::Ok, "") {
            info!(url = target.place(), pods = count, "asking the kubelet for names");
        }
        tokio::select! {
            () = feed.asked() => {
                sleep(pause(0)).await;
                asked = 1;
            }
            () = sleep(pause(asked)) => asked = asked.saturating_add(1),
        }
        // It was silent for long: nothing went wrong.
        if connection.is_closed() {
            return Ok(());
        }
    }
}

/// The wait before the next question, the `asked`th since something happened.
fn pause(asked: usize) -> Duration {
    AFTER_CHANGE.get(asked).map_or(POLL, |milliseconds| Duration::from_millis(*milliseconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn soon_after_a_change_then_seldom() {
        let waits: Vec<u128> = (0..8).map(|asked| pause(asked).as_millis()).collect();
        assert_eq!(waits, [250, 250, 500, 1000, 1000, 3000, 10_000, 10_000]);
    }
}
