use clap::{Args, FromArgMatches};

use super::*;
use crate::config::{LogLevel, RunOptions};

fn command() -> Command {
    RunOptions::augment_args(Command::new("run"))
}

fn options_from(file: &str, line: &[&str]) -> RunOptions {
    let mut arguments = vec![OsString::from("run")];
    arguments.extend(parse(file, "o.toml", &command()).unwrap());
    arguments.extend(line.iter().map(OsString::from));
    RunOptions::from_arg_matches(&command().try_get_matches_from(arguments).unwrap()).unwrap()
}

fn error(file: &str) -> String {
    parse(file, "o.toml", &command()).unwrap_err().to_string()
}

#[test]
fn every_option_can_stand_in_the_file_and_flags_win() {
    let file = r#"
        kubernetes = "https://api:6443"
        "kubernetes.kubeconfig" = "/kubeconfig"
        "kubernetes.peers" = "watch"
        "kubernetes.peers.max-nodes" = 9
        "resolver.ca-file" = "/resolver.crt"
        "resolver.token-file" = "/resolver.token"
        [web]
        listen-address = "127.0.0.1:1"
        telemetry-path = "/m"
        [path]
        procfs = "/host/proc"
        cgroupfs = "/host/cgroup"
        bpffs = "/host/bpf"
        [log]
        level = "debug"
        format = "json"
        [pods]
        file = "pods.json"
        namespaces = "a,b"
        exclude-namespaces = "c"
        selector = "app=web"
        annotation-selector = "!x"
        [cri]
        endpoint = "unix:///x.sock"
        [kubelet]
        url = "https://10.0.0.1:10250"
        ca-file = "/kubelet.crt"
        insecure-skip-verify = true
        [service-account]
        token-file = "/token"
        ca-file = "/ca.crt"
        [node]
        name = "n1"
        [traffic]
        edges = 16
        interface-handlers = "vm,kata"
        accounting = "sockets"
        peer-detail = "namespace"
        series = 7
        peers-per-container = 8
        ports-per-container = 9
        peer-names = 7
        peer-names-per-container = 3
        unix-sockets = true
        [dns]
        ports = "53, 5353"
        [resources]
        runqueue = true
    "#;
    let options = options_from(file, &["--web.listen-address", ":2", "--log.level=trace"]);
    assert_eq!(options.web.listen_address.to_string(), "0.0.0.0:2");
    assert_eq!(options.log.level, LogLevel::Trace);
    assert_eq!(options.web.telemetry_path, "/m");
    assert_eq!(options.paths.procfs, Path::new("/host/proc"));
    assert_eq!(options.traffic_edges, 16);
    assert!(options.runqueue && options.unix_sockets);
    assert_eq!(options.interface_handlers.to_string(), "kata,vm");
    assert_eq!(options.accounting(), crate::kernel::Accounting::Sockets);
    assert_eq!(options.peer_detail(), crate::traffic::PeerDetail::Namespace);
    let selection = options.selection();
    assert_eq!((selection.namespaces, selection.exclude_namespaces), ("b,a".parse().unwrap(), "c".parse().unwrap()));
    assert_eq!((selection.labels, selection.annotations), ("app=web".parse().unwrap(), "!x".parse().unwrap()));
    let limits = crate::traffic::Limits { series: 7, peers_per_container: 8, ports_per_container: 9 };
    assert_eq!(options.limits(), limits);
    assert_eq!(options.node_name(), "n1");
    assert_eq!(options.dns.budget(), crate::dns::Budget { node: 7, container: 3 });
    assert_eq!(options.dns.ports.to_string(), "53,5353");
    assert_eq!(options.pods_file.as_deref(), Some(Path::new("pods.json")));

    assert_eq!(options.sources.cri_endpoint.to_string(), "unix:///x.sock");
    let kube = options.sources.kube();
    assert_eq!((kube.kubelet_url().unwrap(), kube.kubelet_insecure), ("https://10.0.0.1:10250".into(), true));
    assert_eq!((kube.api_server_url().unwrap(), kube.node.as_str()), ("https://api:6443".into(), "n1"));
    assert_eq!((kube.kubelet_ca_file.unwrap(), kube.ca_file), ("/kubelet.crt".into(), "/ca.crt".into()));
    let peers = options.sources.peers();
    assert_eq!((peers.source.to_string().as_str(), peers.max_nodes), ("watch", 9));
    assert_eq!(peers.resolver_ca_file, Path::new("/resolver.crt"));
    assert_eq!(peers.resolver_token_file.as_deref(), Some(Path::new("/resolver.token")));
    assert_eq!(kube.token_file, Path::new("/token"));
    assert_eq!(kube.kubeconfig.as_deref(), Some(Path::new("/kubeconfig")));

    let in_file = super::options(&command()).count();
    assert_eq!(parse(file, "o.toml", &command()).unwrap().len(), in_file, "an option is missing in this test");
}

#[test]
fn dotted_keys_are_the_same_as_tables() {
    assert_eq!(options_from("traffic.edges = 17", &[]).traffic_edges, 17);
    assert_eq!(options_from("\"traffic.edges\" = 17", &[]).traffic_edges, 17);
    assert_eq!(options_from("", &[]).traffic_edges, crate::config::DEFAULT_EDGES);
}

#[test]
fn unknown_keys_name_file_key_and_the_nearest_one() {
    let message = error("[web]\nlisten_adress = \"x\"");
    assert!(message.contains("o.toml") && message.contains("`web.listen_adress`"), "{message}");
    assert!(message.contains("did you mean `web.listen-address`?"), "{message}");
    assert!(!error("zzzzzzzzzzzz.qqqqqqqqqqq = 1").contains("did you mean"));
    assert!(error("config = \"other.toml\"").contains("unknown key `config`"));
    assert!(error("help = true").contains("unknown key `help`"));
}

#[test]
fn wrong_types_name_what_is_expected() {
    for (file, key, expected) in [
        ("traffic.edges = \"many\"", "traffic.edges", "whole number"),
        ("traffic.edges = 1.5", "traffic.edges", "whole number"),
        ("traffic.edges = true", "traffic.edges", "but is true"),
        ("log.level = 3", "log.level", "text in quotes"),
        ("web.listen-address = [\"a\"]", "web.listen-address", "a list"),
        ("node.name = 1979-05-27", "node.name", "the date"),
    ] {
        let message = error(file);
        assert!(message.contains("o.toml") && message.contains(&format!("`{key}`")), "{message}");
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn values_out_of_range_name_the_range() {
    assert!(error("traffic.edges = 15").contains("16..=1048576"), "{}", error("traffic.edges = 15"));
    assert!(error("traffic.edges = -1").contains("`traffic.edges`"), "{}", error("traffic.edges = -1"));
    let level = error("log.level = \"loud\"");
    assert!(level.contains("[possible values: error, warn, info, debug, trace]"), "{level}");
    assert!(error("web.listen-address = \"here\"").contains("127.0.0.1:10836"));
    assert!(error("pods.selector = \"a in b\"").contains("write it like app=web"));
    assert!(error("web.listen-address = \"--help\"").contains("`web.listen-address`"));
}

#[test]
fn broken_toml_names_the_line() {
    let message = error("[web\nx");
    assert!(message.contains("o.toml") && message.contains("line 1"), "{message}");
}

#[test]
fn an_unreadable_file_names_path_and_flag() {
    let message = arguments(Path::new("/nonexistent/o.toml"), &command()).unwrap_err().to_string();
    assert!(message.contains("/nonexistent/o.toml") && message.contains("--config"), "{message}");
}
