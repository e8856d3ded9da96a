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
        [node]
        name = "n1"
        [traffic]
        edges = 16
        peer-detail = "pod"
    "#;
    let options = options_from(file, &["--web.listen-address", ":2", "--log.level=trace"]);
    assert_eq!(options.web.listen_address.to_string(), "0.0.0.0:2");
    assert_eq!(options.log.level, LogLevel::Trace);
    assert_eq!(options.web.telemetry_path, "/m");
    assert_eq!(options.paths.procfs, Path::new("/host/proc"));
    assert_eq!(options.traffic_edges, 16);
    assert_eq!(options.peer_detail(), crate::traffic::PeerDetail::Pod);
    assert_eq!(options.node_name(), "n1");
    assert_eq!(options.pods_file.as_deref(), Some(Path::new("pods.json")));

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
