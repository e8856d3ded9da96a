use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, Mutex, mpsc::sync_channel},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::*;
use crate::{
    identity::{
        KubeOptions,
        cluster::{PEERS, PeerBook, PeerRecord, claims::Cluster, teller::Teller},
        source::{Feed, Source},
    },
    metrics::{AgentMetrics, BuildInfo},
};

/// The status that a question for an owner of this name is answered with; `*` for all that are not named.
type Answers = Arc<Mutex<BTreeMap<String, u16>>>;

/// Answers questions for Jobs, each of which a CronJob owns; with 200 where nothing else was said.
async fn serve(listener: TcpListener, answers: Answers, asked: Arc<Mutex<Vec<String>>>) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        tokio::spawn(talk(stream, Arc::clone(&answers), Arc::clone(&asked)));
    }
}

async fn talk(mut stream: TcpStream, answers: Answers, asked: Arc<Mutex<Vec<String>>>) {
    let mut head = Vec::new();
    while let Ok(byte) = stream.read_u8().await {
        head.push(byte);
        if !head.ends_with(b"\r\n\r\n") {
            continue;
        }
        let text = String::from_utf8(std::mem::take(&mut head)).unwrap();
        let name = text.split(' ').nth(1).unwrap().rsplit('/').next().unwrap().to_owned();
        let status = {
            let answers = answers.lock().unwrap();
            *answers.get(&name).or_else(|| answers.get("*")).unwrap_or(&200)
        };
        let body = format!(
            r#"{{"metadata":{{"name":"{name}","uid":"uid-{name}","ownerReferences":[
            {{"kind":"CronJob","name":"cron-{name}","controller":true}}]}}}}"#
        );
        asked.lock().unwrap().push(name);
        let answer = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        let _ = stream.write_all(answer.as_bytes()).await;
    }
}

/// A pod of the Job `job-NUMBER`.
fn pod(number: u16) -> Pod {
    let [high, low] = number.to_be_bytes();
    serde_json::from_str(&format!(
        r#"{{"metadata":{{"name":"p{number}","namespace":"n","uid":"p{number}","ownerReferences":[
        {{"kind":"Job","name":"job-{number}","uid":"uid-job-{number}","controller":true}}]}},"spec":{{}},
        "status":{{"phase":"Running","podIPs":[{{"ip":"10.1.{high}.{low}"}}]}}}}"#
    ))
    .unwrap()
}

/// All pods, with an API server to ask for owners.
struct Scene {
    pods: AllPods,
    book: Arc<PeerBook>,
    answers: Answers,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Scene {
    async fn new(feed: Feed) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let options = KubeOptions {
            kubelet: None,
            kubelet_ca_file: None,
            kubelet_insecure: false,
            api_server: format!("http://{}", listener.local_addr().unwrap()).parse().unwrap(),
            kubeconfig: None,
            ca_file: "/nonexistent".into(),
            token_file: "/nonexistent".into(),
            node: String::new(),
        };
        let target = options.api_server().unwrap();
        let (answers, asked) = (Answers::default(), Arc::<Mutex<Vec<String>>>::default());
        tokio::spawn(serve(listener, Arc::clone(&answers), Arc::clone(&asked)));
        let book = Arc::new(PeerBook::default());
        let teller = Teller::new(Cluster::with_room_for(10_000), Arc::<PeerBook>::clone(&book));
        Self { pods: AllPods::new(target, Shared::new(teller, feed)), book, answers, asked }
    }

    fn says(&self, name: &str, status: u16) {
        self.answers.lock().unwrap().insert(name.to_owned(), status);
    }

    /// The questions since this was asked last.
    fn asked(&self) -> usize {
        std::mem::take(&mut *self.asked.lock().unwrap()).len()
    }

    /// The workload of a pod, as whoever looks now is told.
    fn workload(&self, number: u16) -> String {
        let [high, low] = number.to_be_bytes();
        match self.book.open().who(IpAddr::from([10, 1, high, low]), u64::MAX) {
            Some(PeerRecord::Pod { workload_kind, workload, .. }) => format!("{workload_kind} {workload}"),
            _ => String::new(),
        }
    }
}

/// Runs a test where a source is followed.
fn run<F: Future<Output = ()>>(test: impl FnOnce(Feed) -> F + Send + 'static) {
    let (done, ended) = sync_channel(1);
    let metrics = Arc::new(AgentMetrics::new(BuildInfo::default()));
    let source = Source::start(PEERS, metrics, async move |feed: Feed| {
        test(feed).await;
        done.send(()).unwrap();
        std::future::pending::<()>().await;
    });
    let _source = source.unwrap();
    ended.recv().expect("the test has failed on the source's thread");
}

#[test]
fn owners_that_could_not_be_asked_for_are_asked_for_again() {
    run(async |feed| {
        let mut scene = Scene::new(feed).await;
        scene.says("*", 500);
        scene.pods.begin();
        scene.pods.put(pod(1));
        scene.pods.complete();
        assert_eq!(scene.workload(1), "", "nobody hears of it before it was asked for");
        scene.pods.publish().await;
        assert_eq!((scene.workload(1), scene.asked()), ("Job job-1".into(), 1));
        scene.says("*", 200);
        scene.pods.put(pod(1));
        scene.pods.publish().await;
        assert_eq!((scene.workload(1), scene.asked()), ("Job job-1".into(), 0), "not at once");
        scene.pods.put(pod(2));
        scene.pods.publish().await;
        assert_eq!((scene.workload(2), scene.asked()), ("CronJob cron-job-2".into(), 1));
        scene.pods.again = scene.pods.again.map(|at| at - ASK_AGAIN);
        scene.pods.publish().await;
        assert_eq!((scene.workload(1), scene.asked()), ("CronJob cron-job-1".into(), 1));
        assert!(scene.pods.untold.is_empty() && !scene.pods.connected());
        scene.pods.publish().await;
        assert_eq!(scene.asked(), 0, "all is told");
    });
}

#[test]
fn a_new_connection_asks_again_and_so_for_what_was_forbidden() {
    run(async |feed| {
        let mut scene = Scene::new(feed).await;
        scene.says("*", 403);
        (1..=3).for_each(|number| scene.pods.put(pod(number)));
        scene.pods.publish().await;
        assert_eq!((scene.workload(3), scene.asked()), ("Job job-3".into(), 1), "one of a kind that is forbidden");
        scene.pods.put(pod(4));
        scene.pods.publish().await;
        assert_eq!((scene.workload(4), scene.asked()), ("Job job-4".into(), 0));
        scene.pods.remove(pod(2));
        scene.says("*", 200);
        scene.says("job-3", 404);
        assert!(scene.pods.connected(), "there is something to ask for");
        scene.pods.publish().await;
        let told = [1, 2, 3, 4].map(|number| scene.workload(number));
        assert_eq!(told, ["CronJob cron-job-1", "", "Job job-3", "CronJob cron-job-4"]);
        assert_eq!(scene.asked(), 3);
        assert!(!scene.pods.connected());
    });
}

#[test]
fn many_owners_are_asked_for_some_at_a_time() {
    run(async |feed| {
        let mut scene = Scene::new(feed).await;
        let all = 2 * u16::try_from(OWNERS_AT_ONCE).unwrap() + 7;
        (0..all).for_each(|number| scene.pods.put(pod(number)));
        assert!(scene.pods.ask().await);
        assert_eq!(scene.asked(), OWNERS_AT_ONCE);
        scene.pods.settle_all(true);
        assert_eq!(scene.pods.untold.len(), usize::from(all) - OWNERS_AT_ONCE);
        scene.pods.publish().await;
        assert_eq!(scene.asked(), usize::from(all) - OWNERS_AT_ONCE);
        assert!((0..all).all(|number| scene.workload(number) == format!("CronJob cron-job-{number}")));
    });
}
