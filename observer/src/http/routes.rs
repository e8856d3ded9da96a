//! Who answers what.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::State,
    http::{HeaderValue, StatusCode, header},
    response::{Html, IntoResponse, Response},
    routing::get,
};
use tokio::{sync::Mutex, time::timeout};

use super::{
    body::Parts,
    landing::{Status, page},
    readiness::Readiness,
};

/// A scrape that waits longer for those before it is turned away.
const QUEUE_TIME: Duration = Duration::from_secs(10);
/// The text exposition format of Prometheus.
const CONTENT_TYPE: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");

/// Makes one scrape, in the text format, in parts that follow one another. May block.
pub type ScrapeProvider = Arc<dyn Fn() -> anyhow::Result<Vec<Vec<u8>>> + Send + Sync>;
/// Tells what the landing page shows. Must not block.
pub type StatusProvider = Arc<dyn Fn() -> Status + Send + Sync>;

/// What the web side works with.
#[derive(Clone)]
pub struct WebState {
    /// The path of the metrics, checked by the options.
    pub telemetry_path: String,
    /// Makes a scrape.
    pub scrape: ScrapeProvider,
    /// Further paths and what makes their scrapes. They are no paths of the web side's own.
    pub further: Vec<(&'static str, ScrapeProvider)>,
    /// Tells the status.
    pub status: StatusProvider,
    /// What must have happened for `/readyz`.
    pub readiness: Arc<Readiness>,
}

struct Shared {
    state: WebState,
    /// Held while a scrape runs: one at a time.
    turn: Arc<Mutex<()>>,
}

pub(super) fn router(state: WebState) -> Router {
    let path = state.telemetry_path.clone();
    let further: Vec<&'static str> = state.further.iter().map(|(path, _)| *path).collect();
    let router = further.iter().enumerate().fold(Router::new(), |router, (at, path)| {
        router.route(path, get(async move |state| answer(state, |web| &web.further[at].1).await))
    });
    router
        .route("/", get(landing))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route(&path, get(metrics))
        .with_state(Arc::new(Shared { state, turn: Arc::default() }))
}

async fn landing(State(shared): State<Arc<Shared>>) -> Html<String> {
    let state = &shared.state;
    let further = state.further.iter().map(|(path, _)| *path);
    let paths: Vec<&str> = std::iter::once(state.telemetry_path.as_str()).chain(further).collect();
    Html(page(&(state.status)(), &paths, &state.readiness.reasons()))
}

async fn readyz(State(shared): State<Arc<Shared>>) -> Response {
    let reasons = shared.state.readiness.reasons();
    if reasons.is_empty() {
        return "ok\n".into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {}\n", reasons.join("; "))).into_response()
}

async fn metrics(state: State<Arc<Shared>>) -> Response {
    answer(state, |web| &web.scrape).await
}

async fn answer(State(shared): State<Arc<Shared>>, which: impl Fn(&WebState) -> &ScrapeProvider) -> Response {
    let Ok(turn) = timeout(QUEUE_TIME, Arc::clone(&shared.turn).lock_owned()).await else {
        let message = "scrapes before this one have not ended; scrape less often or from fewer places\n";
        return (StatusCode::SERVICE_UNAVAILABLE, message).into_response();
    };
    let scrape = Arc::clone(which(&shared.state));
    // The turn goes with the work: a client that hangs up does not let the next scrape in early.
    let made = tokio::task::spawn_blocking(move || {
        let made = scrape();
        drop(turn);
        made
    })
    .await;
    match made {
        Ok(Ok(parts)) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], Body::new(Parts::from(parts))).into_response(),
        Ok(Err(error)) => failed(&format!("{error:#}")),
        Err(panic) => failed(&panic.to_string()),
    }
}

fn failed(why: &str) -> Response {
    tracing::error!("the scrape failed: {why}");
    (StatusCode::INTERNAL_SERVER_ERROR, format!("the scrape failed: {why}\n")).into_response()
}
