//! Tests of [`super`], with a runtime that this process plays on a socket of its own.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
        mpsc::{Receiver, sync_channel},
    },
    time::Duration,
};

use observer_cri::{
    tonic::{Request, Response, Status, async_trait, codegen::BoxStream, transport::Server},
    v1::{
        self,
        runtime_service_server::{RuntimeService, RuntimeServiceServer},
    },
};
use tokio::{
    net::UnixListener,
    sync::{mpsc, oneshot},
};
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};

use super::*;
use crate::{identity::PodIndex, metrics::BuildInfo};

const PATIENCE: Duration = Duration::from_secs(30);

/// The address of all pods.
const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 88, 0, 7));

type Event = Result<v1::ContainerEventResponse, Status>;

/// What the runtime runs, and who listens to its events. It stays when the server goes.
#[derive(Default)]
struct Node {
    pods: Mutex<Vec<&'static str>>,
    streams: Mutex<Vec<mpsc::Sender<Event>>>,
    /// How many details were asked for after each list.
    asked: Mutex<Vec<usize>>,
    opened: AtomicUsize,
    /// Pods whose sandboxes' details are not told.
    silent: Mutex<HashMap<&'static str, Silence>>,
    /// It does not say its version.
    mute: AtomicBool,
}

/// How a detail is not told.
#[derive(Clone, Copy)]
enum Silence {
    /// No answer comes.
    Stuck,
    /// An answer comes at once, and says that nobody can answer.
    Unavailable,
    /// An answer comes at once.
    Refused,
}

impl Node {
    fn lists(&self) -> usize {
        self.asked.lock().unwrap().len()
    }

    fn opened(&self) -> usize {
        self.opened.load(Relaxed)
    }

    fn tell(&self) {
        let sent = self.streams.lock().unwrap().iter().filter(|stream| stream.blocking_send(event()).is_ok()).count();
        assert!(sent > 0, "nobody listens");
    }

    fn silence(&self, pod: &'static str, how: Option<Silence>) {
        let mut silent = self.silent.lock().unwrap();
        match how {
            Some(how) => silent.insert(pod, how),
            None => silent.remove(pod),
        };
    }

    fn details(&self) -> usize {
        self.asked.lock().unwrap().iter().sum()
    }

    fn cut(&self) {
        self.streams.lock().unwrap().clear();
    }
}

fn event() -> Event {
    Ok(v1::ContainerEventResponse::default())
}

/// The version of what listens and does not speak this interface: containerd with `disabled_plugins = ["cri"]`.
const SWITCHED_OFF: &str = "";

/// The server's side.
struct Served {
    node: Arc<Node>,
    version: &'static str,
    events: bool,
}

#[async_trait]
impl RuntimeService for Served {
    async fn version(&self, _: Request<v1::VersionRequest>) -> Result<Response<v1::VersionResponse>, Status> {
        if self.version == SWITCHED_OFF {
            return Err(Status::unimplemented("unknown service runtime.v1.RuntimeService"));
        }
        if self.node.mute.load(Relaxed) {
            return Err(Status::unavailable("mute"));
        }
        Ok(Response::new(v1::VersionResponse {
            runtime_name: "containerd".into(),
            runtime_version: self.version.into(),
            ..Default::default()
        }))
    }

    async fn list_pod_sandbox(
        &self,
        _: Request<v1::ListPodSandboxRequest>,
    ) -> Result<Response<v1::ListPodSandboxResponse>, Status> {
        self.node.asked.lock().unwrap().push(0);
        let sandbox = |name: &&str| v1::PodSandbox {
            id: format!("sandbox-{name}"),
            metadata: Some(v1::PodSandboxMetadata {
                name: (*name).into(),
                uid: format!("uid-{name}"),
                ..Default::default()
            }),
            ..Default::default()
        };
        let items = self.node.pods.lock().unwrap().iter().map(sandbox).collect();
        Ok(Response::new(v1::ListPodSandboxResponse { items }))
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<v1::PodSandboxStatusRequest>,
    ) -> Result<Response<v1::PodSandboxStatusResponse>, Status> {
        *self.node.asked.lock().unwrap().last_mut().unwrap() += 1;
        let pod = request.into_inner().pod_sandbox_id.replace("sandbox-", "");
        let silence = self.node.silent.lock().unwrap().get(pod.as_str()).copied();
        match silence {
            Some(Silence::Stuck) => std::future::pending().await,
            Some(Silence::Unavailable) => Err(Status::unavailable("the shim is away")),
            Some(Silence::Refused) => Err(Status::internal("no task")),
            None => {
                let network = v1::PodSandboxNetworkStatus { ip: ADDRESS.to_string(), ..Default::default() };
                let status = v1::PodSandboxStatus { network: Some(network), ..Default::default() };
                Ok(Response::new(v1::PodSandboxStatusResponse { status: Some(status), ..Default::default() }))
            }
        }
    }

    async fn list_containers(
        &self,
        _: Request<v1::ListContainersRequest>,
    ) -> Result<Response<v1::ListContainersResponse>, Status> {
        Ok(Response::new(v1::ListContainersResponse::default()))
    }

    async fn get_container_events(
        &self,
        _: Request<v1::GetEventsRequest>,
    ) -> Result<Response<BoxStream<v1::ContainerEventResponse>>, Status> {
        self.node.opened.fetch_add(1, Relaxed);
        if !self.events {
            return Err(Status::unimplemented("not here"));
        }
        let (send, receive) = mpsc::channel(64);
        self.node.streams.lock().unwrap().push(send);
        Ok(Response::new(Box::pin(ReceiverStream::new(receive))))
    }
}

/// A runtime that listens. It is gone, with its connections, when this is dropped.
struct Running {
    runtime: Option<tokio::runtime::Runtime>,
    _stop: oneshot::Sender<()>,
    path: PathBuf,
}

impl Running {
    fn start(path: &Path, runtime: Served) -> Self {
        let threads = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let listener = threads.block_on(async { UnixListener::bind(path) }).unwrap();
        threads.spawn(async move {
            let served = Server::builder()
                .serve_with_incoming(RuntimeServiceServer::new(runtime), UnixListenerStream::new(listener));
            tokio::select! {
                _ = stopped => {}
                served = served => served.unwrap(),
            }
        });
        Self { runtime: Some(threads), _stop: stop, path: path.to_owned() }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Connections go with it: nobody says good-bye.
            runtime.shutdown_timeout(PATIENCE);
        }
        let _ = std::fs::remove_file(&self.path);
    }
}

struct Stage {
    node: Arc<Node>,
    metrics: Arc<AgentMetrics>,
    source: Source,
    changes: Receiver<()>,
    running: Option<Running>,
    path: PathBuf,
    _directory: tempfile::TempDir,
}

impl Stage {
    fn new(version: &'static str, events: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("cri.sock");
        let node = Arc::new(Node::default());
        let running = Running::start(&path, Served { node: Arc::clone(&node), version, events });
        let metrics = Arc::new(AgentMetrics::new(BuildInfo::default()));
        let source = start(&Endpoint::Unix(path.clone()), Arc::clone(&metrics)).unwrap().unwrap();
        let (told, changes) = sync_channel(1024);
        source.on_change(move || told.send(()).unwrap());
        source.wait_first(PATIENCE);
        Self { node, metrics, source, changes, running: Some(running), path, _directory: directory }
    }

    /// Waits until this is so.
    fn until(&self, what: &str, is: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is(self) {
            assert!(Instant::now() < deadline, "{what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until the lists after a change are over: the next one is the safety net's, seconds later.
    fn calm(&self) {
        let mut last = self.node.lists();
        loop {
            std::thread::sleep(Duration::from_millis(1500));
            let lists = self.node.lists();
            if lists == last {
                return;
            }
            last = lists;
        }
    }

    fn makes(&self, pod: &'static str) {
        self.node.pods.lock().unwrap().push(pod);
    }

    fn knows(&self, pod: &str) -> bool {
        let pods: Arc<PodIndex> = self.source.names().pods();
        pods.contains_key(&format!("uid-{pod}"))
    }

    /// Whether details of the pod's sandbox are known.
    fn knows_address(&self, pod: &str) -> bool {
        self.source.names().pods().get(&format!("uid-{pod}")).is_some_and(|pod| pod.addresses == [ADDRESS])
    }

    fn state(&self) -> ProbeState {
        self.metrics.probes().pop().unwrap().state
    }
}

#[test]
fn a_socket_that_is_not_there_is_a_state_and_no_names() {
    let metrics = Arc::new(AgentMetrics::new(BuildInfo::default()));
    let endpoint = Endpoint::Unix("/nonexistent/cri.sock".into());
    let cri = start(&endpoint, Arc::clone(&metrics)).unwrap().unwrap();
    cri.wait_first(Duration::from_secs(20));
    let probe = metrics.probes().pop().unwrap();
    assert_eq!(probe.state, ProbeState::Failed);
    assert!(
        probe.reason.contains("/nonexistent/cri.sock") && probe.reason.contains("No such file"),
        "{}",
        probe.reason
    );
    assert!(cri.names().pods().is_empty());
    assert!(start(&Endpoint::None, metrics).unwrap().is_none());
}

#[test]
fn an_event_makes_it_look_and_nothing_else_does() {
    let stage = Stage::new("v2.0.0", true);
    stage.until("a stream", |stage| stage.node.opened() == 1);
    stage.calm();
    // Without an event nobody looks for as long as a poll would take twice.
    stage.makes("web");
    let before = stage.node.lists();
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!((stage.node.lists(), stage.knows("web")), (before, false));
    stage.node.tell();
    stage.until("the pod's name", |stage| stage.knows("web"));
    assert!(stage.changes.try_recv().is_ok());
}

#[test]
fn a_stream_that_is_cut_begins_again_with_a_list() {
    let stage = Stage::new("v2.1.0", true);
    stage.until("a stream", |stage| stage.node.opened() == 1);
    stage.calm();
    stage.node.cut();
    stage.makes("meanwhile");
    stage.until("another stream", |stage| stage.node.opened() == 2);
    stage.until("what no event told", |stage| stage.knows("meanwhile"));
    stage.calm();
    stage.makes("later");
    stage.node.tell();
    stage.until("what the new stream told", |stage| stage.knows("later"));
    assert_eq!((stage.metrics.source_errors(SOURCE), stage.state()), (0, ProbeState::Ok));
}

#[test]
fn streams_that_end_at_once_are_not_opened_without_end() {
    let stage = Stage::new("v2.1.0", true);
    let (began, node) = (Instant::now(), Arc::clone(&stage.node));
    while began.elapsed() < Duration::from_secs(4) {
        node.cut();
        std::thread::sleep(Duration::from_millis(1));
    }
    // Waits of at least 250, 500, 1000, 2000 and 4000 milliseconds.
    assert!((2..=6).contains(&node.opened()), "{}", node.opened());
    stage.makes("web");
    stage.until("a poll's name", |stage| stage.knows("web"));
}

#[test]
fn a_flood_of_events_is_a_few_lists() {
    let stage = Stage::new("v2.0.0", true);
    stage.until("a stream", |stage| stage.node.opened() == 1);
    stage.calm();
    let (lists, began) = (stage.node.lists(), Instant::now());
    (0..20_000).for_each(|_| stage.node.tell());
    stage.makes("last");
    stage.node.tell();
    stage.until("the last one's name", |stage| stage.knows("last"));
    // Ten a second, and ten that were saved up.
    let most = usize::try_from(began.elapsed().as_millis() / 100).unwrap() + 11;
    let lists = stage.node.lists() - lists;
    assert!(lists <= most, "{lists} lists in {:?}", began.elapsed());
}

#[test]
fn a_runtime_without_events_is_polled_and_asked_for_them_once() {
    for (version, events, opened) in [("v2.0.0", false, 1), ("v1.7.27", true, 0)] {
        let stage = Stage::new(version, events);
        stage.makes("web");
        stage.until("the pod's name", |stage| stage.knows("web"));
        assert_eq!(stage.node.opened(), opened, "{version}");
    }
}

#[test]
fn a_socket_that_goes_and_comes_back() {
    let mut stage = Stage::new("v2.0.0", true);
    stage.makes("old");
    stage.until("a stream", |stage| stage.node.opened() == 1);
    stage.until("a name", |stage| stage.knows("old"));
    drop(stage.running.take());
    stage.node.cut();
    stage.until("an error", |stage| stage.state() == ProbeState::Failed && stage.metrics.source_errors(SOURCE) >= 2);
    assert!(stage.knows("old"), "names stay");
    stage.makes("new");
    let runtime = Served { node: Arc::clone(&stage.node), version: "v2.0.0", events: true };
    stage.running = Some(Running::start(&stage.path, runtime));
    stage.until("a name again", |stage| stage.knows("new"));
    stage.until("a stream again", |stage| stage.node.opened() >= 2);
    assert_eq!(stage.state(), ProbeState::Ok);
    stage.calm();
    stage.makes("later");
    stage.node.tell();
    stage.until("a name that an event told", |stage| stage.knows("later"));
}

#[test]
fn one_sandbox_that_is_stuck_hides_no_other() {
    for how in [Silence::Stuck, Silence::Unavailable, Silence::Refused] {
        let stage = Stage::new("v1.7.27", false);
        stage.node.silence("ill", Some(how));
        ["ill", "well"].into_iter().for_each(|pod| stage.makes(pod));
        stage.until("the other's address", |stage| stage.knows_address("well"));
        assert!(stage.knows("ill") && !stage.knows_address("ill"), "its name is in the list");
        stage.makes("new");
        stage.until("the next one's address", |stage| stage.knows_address("new"));
        assert_eq!(stage.state(), ProbeState::Ok);
        assert!(stage.metrics.source_errors(SOURCE) >= 1);
        // Waits of at least 100, 200, 400 and 800 milliseconds; of 20 seconds after two without an answer.
        let details = stage.node.details();
        std::thread::sleep(Duration::from_secs(1));
        let asked = stage.node.details() - details;
        let is_stuck = matches!(how, Silence::Stuck);
        assert!(asked <= if is_stuck { 0 } else { 5 }, "{asked}");
        if !is_stuck {
            stage.node.silence("ill", None);
            stage.until("its address", |stage| stage.knows_address("ill"));
        }
    }
}

#[test]
fn of_many_that_are_silent_few_are_asked_after_each_list_and_the_rest_is_told() {
    const ILL: [&str; 5] = ["a", "b", "c", "d", "e"];
    let stage = Stage::new("v1.7.27", false);
    ILL.into_iter().for_each(|pod| stage.node.silence(pod, Some(Silence::Unavailable)));
    stage.node.pods.lock().unwrap().extend(ILL.into_iter().chain(["well"]));
    stage.until("all names", |stage| stage.knows("a") && stage.knows("well"));
    stage.until("an address", |stage| stage.knows_address("well"));
    // Three that are silent, and the one that is not.
    let asked = stage.node.asked.lock().unwrap().clone();
    assert!(asked.iter().all(|details| *details <= 4), "{asked:?}");
    assert_eq!(stage.state(), ProbeState::Ok);
}

#[test]
fn a_runtime_that_does_not_say_its_version_either_is_gone_and_what_it_told_stays() {
    const ILL: [&str; 3] = ["a", "b", "c"];
    let stage = Stage::new("v1.7.27", false);
    stage.makes("old");
    stage.until("an address", |stage| stage.knows_address("old"));
    let details = stage.node.details();
    stage.node.mute.store(true, Relaxed);
    ILL.into_iter().for_each(|pod| stage.node.silence(pod, Some(Silence::Unavailable)));
    ILL.into_iter().for_each(|pod| stage.makes(pod));
    stage.until("it is gone", |stage| stage.state() == ProbeState::Failed);
    assert!(stage.knows_address("old"));
    stage.node.mute.store(false, Relaxed);
    ILL.into_iter().for_each(|pod| stage.node.silence(pod, None));
    stage.until("it is back", |stage| ILL.iter().all(|pod| stage.knows_address(pod)));
    assert_eq!(
        (stage.state(), stage.node.details() - details),
        (ProbeState::Ok, 6),
        "the old one is not asked for again"
    );
}

/// On Docker with cri-dockerd, and on k3s beside Docker, the first usual socket is there and is no runtime.
#[test]
fn the_usual_sockets_are_tried_until_one_answers() {
    let directory = tempfile::tempdir().unwrap();
    let usual = ["absent", "off", "on", "other"].map(|name| directory.path().join(name)).to_vec();
    let serve = |path: &Path, version, pod| {
        let node = Arc::new(Node::default());
        node.pods.lock().unwrap().push(pod);
        Running::start(path, Served { node, version, events: true })
    };
    let metrics = Arc::new(AgentMetrics::new(BuildInfo::default()));
    let source = start_among(usual.clone(), &Endpoint::Auto, Arc::clone(&metrics)).unwrap().unwrap();
    let until = |what: &str, is: &dyn Fn(ProbeState, &str) -> bool| {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let probe = metrics.probes().pop();
            if probe.as_ref().is_some_and(|probe| is(probe.state, &probe.reason)) {
                return;
            }
            assert!(Instant::now() < deadline, "{what}: {probe:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    let knows = |pod| source.names().pods().contains_key(pod);
    until("nothing is there", &|state, _| state == ProbeState::Unsupported);
    let _off = serve(&usual[1], SWITCHED_OFF, "uid-never");
    until("its word", &|state, reason| {
        state == ProbeState::Failed && reason.contains("off") && reason.contains("unknown")
    });
    let on = serve(&usual[2], "v2.0.0", "on");
    until("the one that answers", &|state, _| state == ProbeState::Ok && knows("uid-on"));

    // It is kept to: its pods stay while it is away, and another runtime's do not take their place.
    let errors = metrics.source_errors(SOURCE);
    let _other = serve(&usual[3], "v2.0.0", "other");
    drop(on);
    until("it is away", &|state, reason| {
        state == ProbeState::Failed && reason.contains("/on") && metrics.source_errors(SOURCE) >= errors + 3
    });
    assert!(knows("uid-on") && !knows("uid-other"));
    let _on = serve(&usual[2], "v2.0.0", "again");
    until("it is back", &|state, _| state == ProbeState::Ok && knows("uid-again"));
}
