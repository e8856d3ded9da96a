//! Records as the resolver and its agents say them. Pure.

use std::{net::IpAddr, sync::Arc};

use observer_resolver::{
    MAX_NAME, address, packed,
    v1::{Answer, Node, Pod, Service, answer::Who},
};

use super::PeerRecord;

/// What an agent is told of an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The address.
    pub address: IpAddr,
    /// Who has it; `None` when nobody that the cluster knows of does.
    pub record: Option<Arc<PeerRecord>>,
    /// For how long it has been so, in milliseconds, where somebody else is known to have had it before.
    pub age_ms: Option<u64>,
    /// How many changes the resolver had seen then.
    pub generation: u64,
    /// Nobody is known to have it, but it may be a pod's of which the cluster has not told yet.
    pub may_be_a_pods: bool,
}

impl Reply {
    /// As a message.
    #[must_use]
    pub fn to_message(&self) -> Answer {
        Answer {
            address: packed(self.address),
            generation: self.generation,
            age_ms: self.age_ms,
            may_be_a_pods: self.may_be_a_pods,
            who: self.record.as_deref().map(who),
        }
    }

    /// From a message. Names that are too long are cut; `None` when the address is none.
    #[must_use]
    pub fn of_message(message: Answer) -> Option<Self> {
        Some(Self {
            address: address(&message.address)?,
            may_be_a_pods: message.may_be_a_pods && message.who.is_none(),
            record: message.who.map(|who| Arc::new(record(who))),
            age_ms: message.age_ms,
            generation: message.generation,
        })
    }
}

fn who(record: &PeerRecord) -> Who {
    let cut = |name: &str| name[..name.floor_char_boundary(MAX_NAME)].to_owned();
    match record {
        PeerRecord::Pod { namespace, name, workload_kind, workload } => Who::Pod(Pod {
            namespace: cut(namespace),
            name: cut(name),
            workload_kind: cut(workload_kind),
            workload: cut(workload),
        }),
        PeerRecord::Service { namespace, name } => Who::Service(Service { namespace: cut(namespace), name: cut(name) }),
        PeerRecord::Node { name } => Who::Node(Node { name: cut(name) }),
    }
}

fn record(who: Who) -> PeerRecord {
    let cut = |mut name: String| {
        name.truncate(name.floor_char_boundary(MAX_NAME));
        name.shrink_to_fit();
        name
    };
    match who {
        Who::Pod(Pod { namespace, name, workload_kind, workload }) => PeerRecord::Pod {
            namespace: cut(namespace),
            name: cut(name),
            workload_kind: cut(workload_kind),
            workload: cut(workload),
        },
        Who::Service(Service { namespace, name }) => PeerRecord::Service { namespace: cut(namespace), name: cut(name) },
        Who::Node(Node { name }) => PeerRecord::Node { name: cut(name) },
    }
}

#[cfg(test)]
mod tests {
    use observer_resolver::{MAX_BATCH, MAX_MESSAGE, prost, v1::FollowResponse};

    use super::*;

    fn pod(name: &str) -> PeerRecord {
        let name = || name.to_owned();
        PeerRecord::Pod { namespace: name(), name: name(), workload_kind: name(), workload: name() }
    }

    #[test]
    fn records_come_back_and_long_names_are_cut() {
        let service = PeerRecord::Service { namespace: "n".into(), name: "s".into() };
        for (text, record) in
            [("10.0.0.1", pod("a")), ("fd00::1", service), ("::1", PeerRecord::Node { name: "b".into() })]
        {
            let reply = Reply {
                address: text.parse().unwrap(),
                record: Some(Arc::new(record)),
                age_ms: Some(0),
                generation: 7,
                may_be_a_pods: false,
            };
            assert_eq!(Reply::of_message(reply.to_message()), Some(reply));
        }
        let address = "::".parse().unwrap();
        let nobody = Reply { address, record: None, age_ms: None, generation: 0, may_be_a_pods: false };
        assert_eq!(Reply::of_message(nobody.to_message()), Some(nobody.clone()));
        let undecided = Reply { may_be_a_pods: true, ..nobody.clone() };
        assert_eq!(Reply::of_message(undecided.to_message()), Some(undecided));
        let long = Reply { record: Some(Arc::new(pod(&"ü".repeat(200)))), ..nobody.clone() };
        let cut = Reply { record: Some(Arc::new(pod(&"ü".repeat(126)))), ..nobody.clone() };
        assert_eq!(Reply::of_message(long.to_message()), Some(cut));
        let mut sent = nobody.to_message();
        sent.who = Some(Who::Node(Node { name: "x".repeat(300) }));
        let node = Arc::new(PeerRecord::Node { name: "x".repeat(253) });
        assert_eq!(Reply::of_message(sent).unwrap().record, Some(node));
        assert_eq!(Reply::of_message(Answer { address: vec![1, 2], ..Answer::default() }), None);
    }

    #[test]
    fn the_fullest_response_is_no_longer_than_a_message_may_be() {
        let reply = Reply {
            address: "ffff::ffff".parse().unwrap(),
            record: Some(Arc::new(pod(&"x".repeat(300)))),
            age_ms: Some(u64::MAX),
            generation: u64::MAX,
            may_be_a_pods: true,
        };
        let response = FollowResponse { answers: vec![reply.to_message(); MAX_BATCH] };
        let length = prost::Message::encoded_len(&response);
        assert!((1_000_000..MAX_MESSAGE).contains(&length), "{length}");
    }
}
