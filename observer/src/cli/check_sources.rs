//! The sources of names in `observer check`: asked once, and judged.

use std::{sync::Arc, time::Duration};

use crate::{
    config::SourceOptions,
    identity::{
        Endpoint,
        cluster::{PEERS, PeerSource, RESOLVER},
        cri,
        kube::{KUBELET, KUBERNETES},
    },
    kernel::check::{Check, State},
    metrics::{AgentMetrics, BuildInfo, Probe, ProbeState},
};

/// How long the sources may take to answer.
const WAIT: Duration = Duration::from_secs(8);

/// What was found.
pub(super) struct Facts {
    /// Where the runtime, the kubelet and the API server were asked, and who tells of peers; `None` for who was not.
    asked: [Option<String>; 4],
    /// What came of it.
    probes: Vec<Probe>,
}

impl Facts {
    /// Asks each once.
    pub(super) fn gather(options: &SourceOptions) -> Self {
        let metrics = Arc::new(AgentMetrics::new(BuildInfo::default()));
        let following = options.follow(&metrics);
        following.wait_first(WAIT);
        let kube = options.kube();
        let runtime = (options.cri_endpoint != Endpoint::None).then(|| options.cri_endpoint.to_string());
        let peers = match options.peers().source {
            PeerSource::None => None,
            PeerSource::Resolver(url) => Some(url.to_string()),
            PeerSource::Auto => kube.api_server_url(),
            PeerSource::Watch => kube.api_server_url().or(Some("no API server".to_owned())),
        };
        Self { asked: [runtime, kube.kubelet_url(), kube.api_server_url(), peers], probes: metrics.probes() }
    }
}

/// A line for each.
pub(super) fn judge(facts: &Facts) -> Vec<Check> {
    const SOURCES: [(&str, &str, &str, &str); 4] = [
        ("container runtime", cri::SOURCE, "--cri.endpoint", "names, labels, images and restarts of pods"),
        (
            "kubelet",
            KUBELET,
            "--kubelet.url",
            "the same where the runtime cannot be asked, and owners, phases, requests",
        ),
        ("Kubernetes API", KUBERNETES, "--kubernetes", "owners, phases, requests, and labels as they are now"),
        ("peers", PEERS, "--kubernetes.peers", "names of Services, nodes and pods of other nodes"),
    ];
    let lines = SOURCES.iter().zip(&facts.asked);
    lines
        .map(|((name, source, option, purpose), asked)| {
            // Peers are told of by the API or by a resolver.
            let is = |probe: &&Probe| probe.name == *source || (*source == PEERS && probe.name == RESOLVER);
            let probe = facts.probes.iter().find(is);
            let (state, found, remedy) = judge_one(asked.as_deref(), probe, option);
            Check { name, state, found, purpose, remedy }
        })
        .collect()
}

fn judge_one(asked: Option<&str>, probe: Option<&Probe>, option: &str) -> (State, String, String) {
    let Some(asked) = asked else { return (State::Ok, format!("not asked ({option})"), String::new()) };
    match probe {
        Some(probe) if probe.state == ProbeState::Ok && probe.reason.is_empty() => {
            (State::Ok, format!("answers at {asked}"), String::new())
        }
        Some(probe) => {
            // What to do stands last, where there is more to say than where it should be.
            let elsewhere = format!("say where it listens with {option}");
            let (found, remedy) = probe.reason.rsplit_once("; ").unwrap_or((&probe.reason, &elsewhere));
            (State::Degraded, found.to_owned(), remedy.to_owned())
        }
        None => (
            State::Degraded,
            format!("no answer from {asked} after {} seconds", WAIT.as_secs()),
            format!("see {option}"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_source_has_a_line_and_what_is_wrong_a_remedy() {
        let probe = |name: &str, state, reason: &str| Probe { name: name.into(), state, reason: reason.into() };
        let facts = Facts {
            asked: [Some("auto".into()), Some("https://k".into()), None, Some("https://a".into())],
            probes: vec![
                probe("cri", ProbeState::Ok, ""),
                probe("kubelet", ProbeState::Failed, "answers; with 403; let it get nodes/pods"),
                probe("peers", ProbeState::Unsupported, "612 nodes; raise the limit"),
            ],
        };
        let away = probe("kubelet", ProbeState::Failed, "refused");
        let (_, found, remedy) = judge_one(Some("https://k"), Some(&away), "--kubelet.url");
        assert_eq!((found.as_str(), remedy.as_str()), ("refused", "say where it listens with --kubelet.url"));
        let lines = judge(&facts);
        let states: Vec<State> = lines.iter().map(|line| line.state).collect();
        assert_eq!(states, [State::Ok, State::Degraded, State::Ok, State::Degraded]);
        assert_eq!((lines[3].found.as_str(), lines[3].remedy.as_str()), ("612 nodes", "raise the limit"));
        assert_eq!(lines[0].found, "answers at auto");
        let resolver = Facts {
            asked: [None, None, None, Some("http://r:10837".into())],
            probes: vec![probe("resolver", ProbeState::Ok, "")],
        };
        assert_eq!(judge(&resolver)[3].found, "answers at http://r:10837");
        assert_eq!((lines[1].found.as_str(), lines[1].remedy.as_str()), ("answers; with 403", "let it get nodes/pods"));
        assert_eq!(lines[2].found, "not asked (--kubernetes)");
        let silent = judge(&Facts { asked: [None, None, Some("https://a".into()), None], probes: Vec::new() });
        assert!(silent[2].state == State::Degraded && silent[2].remedy.contains("--kubernetes"));
        assert!(lines.iter().chain(&silent).all(|line| (line.state == State::Ok) == line.remedy.is_empty()));
    }
}
