//! Actors send exactly what they say, by their own account and by the kernel's. Needs root.

mod support;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use observer_lab::actor::{Answer, Command, Pace, ServeMode, Sizes, Traffic, Upstream};
use observer_lab::pod::{Container, ContainerSpec, Pod, PodSpec};
use observer_lab::truth::Truth;
use support::{any_port, node};

const LOOPBACKS: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

fn requests(to: SocketAddr, connections: u32) -> Command {
    Command::TcpRequests { to, connections, requests: 1, request_bytes: 100, response_bytes: 100, parallel: 2 }
}

/// What a container's last server has heard, once that is enough or the time is over: a server that is not waited for reads
/// when it has its turn.
fn heard(server: &Container, enough: impl Fn(&Traffic) -> bool) -> Traffic {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let traffic = server.stats().unwrap().pop().unwrap().traffic;
        if enough(&traffic) || Instant::now() > deadline {
            return traffic;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn tcp_over_localhost() {
    let node = node();
    let pod = Pod::create(&node, PodSpec::new("t", "tcp", &["client", "server"])).unwrap();
    let (client, server) = (pod.container("client").unwrap(), pod.container("server").unwrap());
    for address in LOOPBACKS {
        let sink = server.serve_tcp(any_port(address), ServeMode::Sink).unwrap();
        let sent = client.traffic(&Command::TcpSend { to: sink, bytes: 64 << 20, chunk: 65_536 });
        let sent = sent.unwrap();
        assert_eq!((sent.sent_bytes, sent.received_bytes), (64 << 20, 0));
        let seen = server.stats().unwrap().pop().unwrap();
        assert_eq!((seen.traffic.connections, seen.traffic.received_bytes), (1, 64 << 20));

        let echo = server.serve_tcp(any_port(address), ServeMode::Echo).unwrap();
        let sent = client.traffic(&Command::TcpSend { to: echo, bytes: 3 << 20, chunk: 1000 }).unwrap();
        assert_eq!((sent.sent_bytes, sent.received_bytes), (3 << 20, 3 << 20));

        let mode = ServeMode::request_response(100, 100);
        let many = server.serve_tcp(any_port(address), mode).unwrap();
        let before = Truth::of_process(client.pid()).unwrap();
        let sent = client.traffic(&requests(many, 2000)).unwrap();
        assert_eq!((sent.connections, sent.sent_bytes, sent.received_bytes), (2000, 200_000, 200_000));
        let seen = server.stats().unwrap().pop().unwrap();
        assert_eq!((seen.traffic.connections, seen.traffic.received_bytes), (2000, 200_000));
        let counted = &Truth::of_process(client.pid()).unwrap() - &before;
        assert_eq!(counted.protocol("Tcp.ActiveOpens"), 2000);
        assert_eq!(counted.interface("lo").tx_bytes, counted.interface("lo").rx_bytes);
        assert!(counted.interface("lo").tx_bytes > 400_000);
    }
}

#[test]
fn a_connection_stays_open_between_commands() {
    let node = node();
    let pod = Pod::create(&node, PodSpec::new("t", "open", &["client", "server"])).unwrap();
    let (client, server) = (pod.container("client").unwrap(), pod.container("server").unwrap());
    let echo = server.serve_tcp(any_port(pod.ipv6()), ServeMode::Echo).unwrap();
    let (connection, local) = client.open_tcp(echo).unwrap();
    assert_eq!(local.ip(), pod.ipv6());
    let write = Command::TcpWrite { connection, bytes: 5000, reply_bytes: 5000 };
    assert_eq!(client.traffic(&write).unwrap().received_bytes, 5000);
    assert_eq!(server.stats().unwrap()[0].open, 1);
    client.traffic(&write).unwrap();
    client.run(&Command::TcpClose { connection }).unwrap();
    let seen = &server.stats().unwrap()[0];
    assert_eq!((seen.open, seen.traffic.received_bytes), (0, 10_000));
    let error = client.run(&write).unwrap_err();
    assert!(format!("{error:#}").contains("no open connection"), "{error:#}");
}

#[test]
fn udp_loses_nothing() {
    let node = node();
    let pod = Pod::create(&node, PodSpec::new("t", "udp", &["client", "server"])).unwrap();
    let (client, server) = (pod.container("client").unwrap(), pod.container("server").unwrap());
    let before = Truth::of_process(client.pid()).unwrap();
    for address in LOOPBACKS {
        for (echo, connected, pace) in [
            (false, false, Pace::Batches { datagrams: 200, pause_us: 1000 }),
            (true, true, Pace::Echoed { window: 64 }),
        ] {
            let to = server.serve_udp(any_port(address), echo).unwrap();
            let sizes = Sizes::Random { count: 20_000, min: 1, max: 9000, seed: 42 };
            let (count, bytes) = sizes.totals();
            let sent = client.traffic(&Command::UdpSend { to, sizes, connected, pace }).unwrap();
            assert_eq!((sent.sent_datagrams, sent.sent_bytes), (count, bytes));
            let seen = heard(server, |seen| seen.received_datagrams >= count);
            assert_eq!((seen.received_datagrams, seen.received_bytes), (count, bytes));
            if echo {
                assert_eq!((sent.received_datagrams, sent.received_bytes), (count, bytes));
            }
        }
    }
    let counted = &Truth::of_process(client.pid()).unwrap() - &before;
    assert_eq!(counted.protocol("Udp.RcvbufErrors"), 0);
    assert_eq!(counted.protocol("Udp.OutDatagrams"), 60_000);
    assert_eq!(counted.protocol("Udp6.OutDatagrams"), 60_000);
    assert_eq!(counted.interface("lo").tx_packets, 120_000);
}

#[test]
fn ping_over_everything() {
    let node = node();
    let one = Pod::create(&node, PodSpec::new("t", "one", &["c"])).unwrap();
    let two = Pod::create(&node, PodSpec::new("t", "two", &["c"])).unwrap();
    let c = one.container("c").unwrap();
    let targets = LOOPBACKS.into_iter().chain([
        one.ipv4().into(),
        one.ipv6().into(),
        two.ipv4().into(),
        two.ipv6().into(),
        observer_lab::node::ADDRESS_V4.0.into(),
        observer_lab::node::ADDRESS_V6.0.into(),
    ]);
    for to in targets {
        for raw in [false, true] {
            let answer = c.traffic(&Command::Ping { to, count: 5, payload: 56, raw }).unwrap();
            assert_eq!((answer.sent_datagrams, answer.received_datagrams), (5, 5), "{to}");
            assert_eq!(answer.received_bytes, 280, "{to}");
        }
    }
}

#[test]
fn between_pods_the_interfaces_hold_exactly_what_was_sent() {
    const DATAGRAMS: u64 = 1000;
    const SIZE: u32 = 500;
    let node = node();
    let one = Pod::create(&node, PodSpec::new("t", "one", &["c"])).unwrap();
    let two = Pod::create(&node, PodSpec::new("t", "two", &["s"])).unwrap();
    one.introduce(&two).unwrap();
    let (client, server) = (one.container("c").unwrap(), two.container("s").unwrap());
    // The kernel's own announcements of group memberships are over by then.
    std::thread::sleep(Duration::from_millis(300));
    for (address, header) in [(IpAddr::V4(two.ipv4()), 28), (IpAddr::V6(two.ipv6()), 48)] {
        let to = server.serve_udp(any_port(address), true).unwrap();
        let before = Truth::of_process(client.pid()).unwrap();
        let send = Command::UdpSend {
            to,
            sizes: Sizes::List(vec![SIZE; DATAGRAMS as usize]),
            connected: false,
            pace: Pace::Echoed { window: 32 },
        };
        client.traffic(&send).unwrap();
        let eth0 = (&Truth::of_process(client.pid()).unwrap() - &before).without_multicast("eth0");
        let wanted = DATAGRAMS * (u64::from(SIZE) + header + 14);
        assert_eq!((eth0.tx_packets, eth0.tx_bytes), (DATAGRAMS, wanted), "{address}");
        assert_eq!((eth0.rx_packets, eth0.rx_bytes), (DATAGRAMS, wanted), "{address}");
    }
}

#[test]
fn servers_call_others_and_jobs_repeat() {
    let node = node();
    let pod = Pod::create(&node, PodSpec::new("t", "chain", &["app", "proxy", "logs"])).unwrap();
    let other = Pod::create(&node, PodSpec::new("t", "client", &["client"])).unwrap();
    let logs = pod.container("logs").unwrap();
    let to = logs.serve_udp(any_port(Ipv4Addr::LOCALHOST), false).unwrap();
    let app = pod.container("app").unwrap();
    let app = app.serve_tcp(any_port(Ipv6Addr::LOCALHOST), ServeMode::request_response(50, 500)).unwrap();
    let upstreams =
        vec![Upstream::Tcp { to: app, request_bytes: 50, response_bytes: 500 }, Upstream::Udp { to, bytes: 77 }];
    let mode = ServeMode::RequestResponse { request_bytes: 100, response_bytes: 100, upstreams };
    let serving = pod.container("proxy").unwrap();
    let proxy = serving.serve_tcp(any_port(pod.ipv4()), mode).unwrap();

    let client = other.container("client").unwrap();
    let script = vec![requests(proxy, 3), Command::Burn { cpu_ms: 1 }];
    let job = client.start(script.clone(), Duration::from_millis(1), Some(10)).unwrap();
    let done = client.join(job).unwrap();
    assert_eq!((done.connections, done.requests, done.failures), (30, 30, 0));
    assert_eq!(heard(logs, |seen| seen.received_bytes >= 30 * 77).received_bytes, 30 * 77);

    let job = client.start(script, Duration::from_millis(1), None).unwrap();
    assert_eq!(client.run(&Command::Ready).unwrap(), Answer::Done);
    // A round that has begun comes to its end.
    assert!(heard(serving, |seen| seen.requests > 30).requests > 30);
    assert!(client.stop(job).unwrap().connections >= 3);
}

#[test]
fn a_container_can_send_as_its_first_act() {
    let node = node();
    let receiver = Pod::create(&node, PodSpec::new("t", "receiver", &["r"])).unwrap();
    let receiver = receiver.container("r").map(|r| (r, receiver.ipv4())).unwrap();
    let to = receiver.0.serve_udp(any_port(receiver.1), false).unwrap();
    let send = Command::UdpSend { to, sizes: Sizes::List(vec![123]), connected: false, pace: Pace::Free };
    let mut senders = Vec::new();
    for n in 0..10 {
        let spec =
            PodSpec::new("t", &format!("sender-{n}"), &[]).container(ContainerSpec::new("s").first(send.clone()));
        let pod = Pod::create(&node, spec).unwrap();
        let answers = pod.container("s").unwrap().first_answers();
        assert!(matches!(answers, [Answer::Traffic(t)] if t.sent_bytes == 123), "{answers:?}");
        // Kept: a datagram may still wait for an ARP reply, and goes with its pod.
        senders.push(pod);
    }
    assert_eq!(heard(receiver.0, |seen| seen.received_datagrams >= 10).received_datagrams, 10);
}
