//! deploy/kubernetes/resolver.yaml says what the program understands, and asks for no more than it needs; so does the role in
//! docs/operations.md.

use std::{collections::BTreeSet, net::SocketAddr, path::Path};

use serde_json::Value;

use super::*;
use crate::{config, resolver};

const FILE: &str = include_str!("../../../deploy/kubernetes/resolver.yaml");

fn documents() -> Vec<Value> {
    serde_saphyr::from_multiple(FILE).unwrap()
}

fn of_kind(kind: &str) -> Value {
    let mut found: Vec<Value> = documents().into_iter().filter(|document| document["kind"] == kind).collect();
    assert_eq!(found.len(), 1, "{kind}");
    found.remove(0)
}

fn texts(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect()
}

fn parse(arguments: &[&str]) -> Command {
    Cli::try_parse_from([&["observer"], arguments].concat()).unwrap().command
}

/// What a role allows, in the words of the agent's own messages.
fn allowed(role: &Value) -> BTreeSet<String> {
    let rules = role["rules"].as_array().unwrap().iter();
    let of_rule = |rule: &Value| {
        let (groups, verbs) = (texts(&rule["apiGroups"]), texts(&rule["verbs"]).join(" and "));
        assert_eq!(groups.len(), 1);
        let group = if groups[0].is_empty() { String::new() } else { format!(".{}", groups[0]) };
        let resources = texts(&rule["resources"]).into_iter();
        resources.map(|resource| format!("{verbs} {resource}{group}")).collect::<Vec<_>>()
    };
    rules.flat_map(of_rule).collect()
}

#[test]
fn the_resolver_starts_with_these_arguments_and_files() {
    let deployment = of_kind("Deployment");
    let pod = &deployment["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    let arguments = texts(&container["args"]);
    let Command::Resolver(options) = parse(&arguments) else { panic!("{arguments:?}") };
    let port = |name: &str| {
        let ports = container["ports"].as_array().unwrap();
        ports.iter().find(|port| port["name"] == name).unwrap()["containerPort"].as_u64().unwrap()
    };
    assert_eq!(port("agents"), u64::from(options.listen_address.port()));
    assert_eq!(port("metrics"), u64::from(options.web.listen_address.port()));
    assert_eq!((port("agents"), port("metrics")), (resolver::DEFAULT_PORT.into(), config::DEFAULT_PORT.into()));
    for (probe, path) in [("readinessProbe", "/readyz"), ("livenessProbe", "/healthz")] {
        assert_eq!(container[probe]["httpGet"], serde_json::json!({ "path": path, "port": "metrics" }));
    }
    // Every file is one of the Secret's, and there is a volume for it.
    let mount = container["volumeMounts"][0]["mountPath"].as_str().unwrap();
    let files: BTreeSet<&str> =
        arguments.iter().filter_map(|argument| argument.split_once('=')?.1.strip_prefix(mount)).collect();
    assert_eq!(files, BTreeSet::from(["/tls.crt", "/tls.key", "/token"]));
    assert_eq!(pod["volumes"][0]["name"], container["volumeMounts"][0]["name"]);
    let secret = pod["volumes"][0]["secret"]["secretName"].as_str().unwrap();
    assert!(FILE.contains(&format!("create secret generic {secret} --from-file=tls.crt --from-file=tls.key")));
    assert!(FILE.contains("--from-literal=token="));
}

#[test]
fn agents_find_the_service_by_the_arguments_in_its_comment() {
    let (service, deployment) = (of_kind("Service"), of_kind("Deployment"));
    assert_eq!(service["spec"]["selector"], deployment["spec"]["template"]["metadata"]["labels"]);
    assert_eq!(service["spec"]["selector"], deployment["spec"]["selector"]["matchLabels"]);
    let port = &service["spec"]["ports"][0];
    assert_eq!((&port["targetPort"], port["port"].as_u64()), (&"agents".into(), Some(resolver::DEFAULT_PORT.into())));
    let lines = FILE.lines().filter_map(|line| line.strip_prefix("#   --"));
    let arguments: Vec<String> =
        std::iter::once("run".to_owned()).chain(lines.map(|line| format!("--{line}"))).collect();
    assert_eq!(arguments.len(), 4, "{arguments:?}");
    let Command::Run(options) = parse(&arguments.iter().map(String::as_str).collect::<Vec<_>>()) else { panic!() };
    let peers = options.sources.peers();
    let metadata = |of: &Value, key: &str| of["metadata"][key].as_str().unwrap().to_owned();
    let (name, namespace) = (metadata(&service, "name"), metadata(&service, "namespace"));
    assert_eq!(peers.source.to_string(), format!("resolver=https://{name}.{namespace}.svc:{}", resolver::DEFAULT_PORT));
    assert_eq!(peers.resolver_ca_file, Path::new("/etc/observer-resolver/ca.crt"));
    assert_eq!(peers.resolver_token_file.as_deref(), Some(Path::new("/etc/observer-resolver/token")));
    let any: SocketAddr = ([0, 0, 0, 0], resolver::DEFAULT_PORT).into();
    let Command::Resolver(options) = parse(&["resolver"]) else { panic!() };
    assert_eq!(options.listen_address, any, "what the Service leads to");
}

#[test]
fn the_role_allows_what_is_asked_for_and_no_more() {
    let (account, role, binding) = (of_kind("ServiceAccount"), of_kind("ClusterRole"), of_kind("ClusterRoleBinding"));
    let allowed = allowed(&role);
    let needed = crate::identity::cluster::permissions();
    assert_eq!(allowed, needed.into_iter().collect());
    assert_eq!(binding["roleRef"]["name"], role["metadata"]["name"]);
    assert_eq!(binding["subjects"][0]["name"], account["metadata"]["name"]);
    assert_eq!(binding["subjects"][0]["namespace"], account["metadata"]["namespace"]);
    assert_eq!(of_kind("Deployment")["spec"]["template"]["spec"]["serviceAccountName"], account["metadata"]["name"]);
}

#[test]
fn the_documented_role_of_agents_allows_what_is_asked_for_and_no_more() {
    const TEXT: &str = include_str!("../../../docs/operations.md");
    let role = TEXT.split("```").find(|block| block.contains("kind: ClusterRole\n")).unwrap();
    let documents: Vec<Value> = serde_saphyr::from_multiple(role.strip_prefix("yaml\n").unwrap()).unwrap();
    let role = documents.iter().find(|document| document["kind"] == "ClusterRole").unwrap();
    let needed = crate::identity::cluster::permissions().into_iter();
    // The kubelet's `/pods`.
    assert_eq!(allowed(role), needed.chain(["get nodes/pods".to_owned()]).collect());
}
