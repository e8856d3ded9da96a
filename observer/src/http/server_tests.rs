use std::{
    io::{Read, Write},
    net::TcpStream,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread::{sleep, spawn},
};

use super::*;
use crate::http::{Latch, PodLine, Readiness, Status};

fn state(scrape: impl Fn() -> anyhow::Result<Vec<Vec<u8>>> + Send + Sync + 'static) -> WebState {
    let pods = vec![PodLine { namespace: "n".into(), name: "<p>".into(), containers: vec!["c".into()] }];
    let status = Status { version: "1".into(), node: "n1".into(), probes: vec![], pods };
    WebState {
        telemetry_path: "/m".into(),
        scrape: Arc::new(scrape),
        further: vec![("/m/further", Arc::new(|| Ok(vec![b"y 2\n".to_vec()])))],
        status: Arc::new(move || status.clone()),
        readiness: Arc::new(Readiness::default()),
    }
}

fn start(state: WebState) -> Server {
    Server::start(SocketAddr::from(([127, 0, 0, 1], 0)), state).unwrap()
}

fn request(address: SocketAddr, method: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    (answer.split(' ').nth(1).unwrap().parse().unwrap(), answer)
}

fn get(address: SocketAddr, path: &str) -> (u16, String) {
    request(address, "GET", path)
}

#[test]
fn every_path_answers() {
    let state = state(|| Ok(vec![b"x ".to_vec(), b"1\n".to_vec()]));
    let readiness = Arc::clone(&state.readiness);
    let server = start(state);
    let at = server.address();
    let (status, metrics) = get(at, "/m");
    assert!(status == 200 && metrics.ends_with("\r\n\r\nx 1\n"), "{metrics}");
    assert!(metrics.contains("content-length: 4\r\n"), "{metrics}");
    assert!(metrics.contains("content-type: text/plain; version=0.0.4; charset=utf-8"), "{metrics}");
    let (status, page) = get(at, "/");
    assert!(status == 200 && page.contains("text/html") && page.contains("&lt;p&gt;"), "{page}");
    let (status, further) = get(at, "/m/further");
    assert!(status == 200 && further.ends_with("\r\n\r\ny 2\n"), "{further}");
    assert_eq!(get(at, "/healthz").0, 200);
    assert_eq!(get(at, "/metrics").0, 404);
    assert_eq!(request(at, "POST", "/m").0, 405);

    let (status, text) = get(at, "/readyz");
    assert!(status == 503 && text.contains("pods of this node") && text.contains("hooks"), "{text}");
    readiness.set(Latch::Hooks);
    let (status, text) = get(at, "/readyz");
    assert!(status == 503 && !text.contains("hooks"), "{text}");
    readiness.set(Latch::Snapshot);
    assert_eq!(get(at, "/readyz").0, 503);
    readiness.set(Latch::Older);
    assert_eq!(get(at, "/readyz").0, 503);
    readiness.set(Latch::Serving);
    assert_eq!(get(at, "/readyz").0, 200);
    server.stop().unwrap();
    assert!(TcpStream::connect(at).is_err());
}

#[test]
fn scrapes_that_fail_or_panic_are_errors_of_that_scrape_only() {
    let calls = AtomicUsize::new(0);
    let server = start(state(move || match calls.fetch_add(1, Ordering::SeqCst) {
        0 => anyhow::bail!("no such map"),
        1 => panic!("on purpose"),
        _ => Ok(vec![b"x ".to_vec(), b"1\n".to_vec()]),
    }));
    let (status, text) = get(server.address(), "/m");
    assert!(status == 500 && text.contains("no such map"), "{text}");
    assert_eq!(get(server.address(), "/m").0, 500);
    assert_eq!(get(server.address(), "/m").0, 200);
    server.stop().unwrap();
}

#[test]
fn one_scrape_at_a_time_and_health_answers_meanwhile() {
    let running = Arc::new(AtomicUsize::new(0));
    let most = Arc::new(AtomicUsize::new(0));
    let (running_in, most_in) = (Arc::clone(&running), Arc::clone(&most));
    let server = start(state(move || {
        most_in.fetch_max(running_in.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        sleep(Duration::from_millis(50));
        running_in.fetch_sub(1, Ordering::SeqCst);
        Ok(Vec::new())
    }));
    let at = server.address();
    let clients: Vec<_> = (0..6).map(|_| spawn(move || get(at, "/m").0)).collect();
    while running.load(Ordering::SeqCst) == 0 {
        sleep(Duration::from_millis(1));
    }
    assert_eq!(get(at, "/healthz").0, 200);
    assert!(running.load(Ordering::SeqCst) > 0, "health waited for the scrapes");
    assert!(clients.into_iter().all(|c| c.join().unwrap() == 200));
    assert_eq!(most.load(Ordering::SeqCst), 1);
    server.stop().unwrap();
}

#[test]
fn shutdown_lets_a_running_scrape_end() {
    let began = Arc::new(AtomicUsize::new(0));
    let began_in = Arc::clone(&began);
    let server = start(state(move || {
        began_in.store(1, Ordering::SeqCst);
        sleep(Duration::from_millis(200));
        Ok(vec![b"x ".to_vec(), b"1\n".to_vec()])
    }));
    let at = server.address();
    let client = spawn(move || get(at, "/m"));
    while began.load(Ordering::SeqCst) == 0 {
        sleep(Duration::from_millis(1));
    }
    server.stop().unwrap();
    let (status, text) = client.join().unwrap();
    assert!(status == 200 && text.ends_with("x 1\n"), "{text}");
}

#[test]
fn a_connection_that_says_nothing_does_not_hold_up_the_end() {
    let server = start(state(|| Ok(Vec::new())));
    let _silent = TcpStream::connect(server.address()).unwrap();
    assert_eq!(get(server.address(), "/healthz").0, 200);
    let start = std::time::Instant::now();
    server.stop().unwrap();
    assert!(start.elapsed() < DRAIN_TIME * 2);
}

#[test]
fn a_port_in_use_names_address_and_flag() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let message = format!("{:#}", bind(address).unwrap_err());
    assert!(message.contains(&address.to_string()) && message.contains("--web.listen-address"), "{message}");
    assert!(message.contains("in use"), "{message}");
    let elsewhere = format!("{:#}", bind("192.0.2.1:1".parse().unwrap()).unwrap_err());
    assert!(elsewhere.contains("192.0.2.1:1") && elsewhere.contains("--web.listen-address"), "{elsewhere}");
}
