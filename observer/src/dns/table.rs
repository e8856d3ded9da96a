//! What containers asked and were answered, by cgroup.

use std::collections::{BTreeMap, HashMap, HashSet};

use observer_common::dns::{Head, flags};

use super::{
    codes::{Qtype, Rcode},
    latency::{Durations, Exchange, Questions},
    names::Names,
    parse::{Parsed, parse},
    stream::Streams,
};

/// The IP protocol number of TCP.
const TCP: u8 = 6;

/// One cgroup's side.
#[derive(Debug, Default)]
pub struct Client {
    /// Answers.
    pub responses: BTreeMap<(Qtype, Rcode), u64>,
    /// How long they took, where the question was seen.
    pub durations: BTreeMap<Rcode, Durations>,
    /// What came from a resolver and was no DNS message.
    pub malformed: u64,
    /// Questions that found too many others waiting, since this was last looked at.
    untimed: u64,
    questions: Questions,
    streams: Streams,
}

/// TCP segments whose messages could not be read, because the place in their stream was not known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Unread {
    /// Received: there may have been answers in them.
    pub received: u64,
    /// Sent: answers to what was asked in them are not timed.
    pub sent: u64,
}

/// All cgroups.
#[derive(Debug, Default)]
pub struct Table {
    clients: HashMap<u64, Client>,
    /// Cgroups whose counts may have changed since they were last kept for the next agent.
    changed: HashSet<u64>,
    unread: Unread,
    untimed: u64,
}

impl Table {
    /// With what an earlier agent has counted.
    #[must_use]
    pub fn with(kept: impl IntoIterator<Item = (u64, Client)>) -> Self {
        Self { clients: kept.into_iter().collect(), ..Self::default() }
    }

    /// Cgroups whose counts may have changed since the last time, each with its counts; those first that have none (any
    /// more).
    pub fn changes(&mut self) -> Vec<(u64, Option<&Client>)> {
        let changed = std::mem::take(&mut self.changed);
        let counts = |cgroup| self.clients.get(cgroup).filter(|client| !client.is_empty());
        let mut all: Vec<_> = changed.iter().map(|cgroup| (*cgroup, counts(cgroup))).collect();
        all.sort_by_key(|(cgroup, client)| (client.is_some(), *cgroup));
        all
    }

    /// The counts of a cgroup could not be kept: the next time again.
    pub fn was_not_kept(&mut self, cgroup: u64) {
        self.changed.insert(cgroup);
    }

    /// Takes a packet to or from a resolver. Addresses in answers go to `names`.
    pub fn take(&mut self, head: &Head, payload: &[u8], names: &mut Names) {
        let client = self.clients.entry(head.cgroup).or_default();
        let sent = head.flags & flags::EGRESS != 0;
        if !sent {
            // Nothing is counted of what a container sends.
            self.changed.insert(head.cgroup);
        }
        if head.protocol != TCP {
            let whole = payload.len() == head.length as usize;
            client.message(head, payload, whole, names);
            self.untimed += std::mem::take(&mut client.untimed);
            return;
        }
        // Taken out, so that the client can be told of messages meanwhile.
        let mut streams = std::mem::take(&mut client.streams);
        let read = streams.take(head, payload, |message, whole| client.message(head, message, whole, names));
        client.streams = streams;
        self.untimed += std::mem::take(&mut client.untimed);
        if !read {
            *(if sent { &mut self.unread.sent } else { &mut self.unread.received }) += 1;
        }
    }

    /// Each cgroup and what it has counted.
    pub fn clients(&self) -> impl Iterator<Item = (u64, &Client)> {
        self.clients.iter().map(|(cgroup, client)| (*cgroup, client))
    }

    /// What could not be read.
    #[must_use]
    pub const fn unread(&self) -> Unread {
        self.unread
    }

    /// Questions whose answers are not timed, because too many of their container waited at the same time.
    #[must_use]
    pub const fn untimed(&self) -> u64 {
        self.untimed
    }

    /// Gives what a cgroup has counted to the one that goes on with its series. What waits there for answers stays: a
    /// socket outlives its cgroup. True when nothing was left to give, and nothing waits.
    pub fn hand_over(&mut self, from: u64, to: u64) -> bool {
        let Some(client) = self.clients.get_mut(&from) else { return true };
        let responses = std::mem::take(&mut client.responses);
        let durations = std::mem::take(&mut client.durations);
        let malformed = std::mem::take(&mut client.malformed);
        if responses.is_empty() && malformed == 0 {
            return client.questions.is_empty() && client.streams.is_empty();
        }
        self.changed.extend([from, to]);
        let heir = self.clients.entry(to).or_default();
        for (labels, count) in responses {
            *heir.responses.entry(labels).or_default() += count;
        }
        for (rcode, durations) in durations {
            heir.durations.entry(rcode).or_default().add(&durations);
        }
        heir.malformed += malformed;
        false
    }

    /// Forgets a cgroup. Says how many answers it had.
    pub fn forget(&mut self, cgroup: u64) -> u64 {
        self.changed.insert(cgroup);
        self.clients.remove(&cgroup).map_or(0, |client| client.responses.values().sum())
    }
}

impl Client {
    /// Nothing was counted.
    fn is_empty(&self) -> bool {
        // There are no durations without answers.
        self.responses.is_empty() && self.malformed == 0
    }

    fn message(&mut self, head: &Head, bytes: &[u8], whole: bool, names: &mut Names) {
        let sent = head.flags & flags::EGRESS != 0;
        let parsed = match parse(bytes, whole) {
            Ok(parsed) => parsed,
            // What a container sends is its own affair.
            Err(_) if sent => return,
            Err(_) => {
                self.malformed += 1;
                return;
            }
        };
        // From resolver to resolver both ports are the same: what the container answers, or is asked, is not counted.
        if parsed.response == sent {
            return;
        }
        let exchange = Exchange { protocol: head.protocol, port: head.local_port, id: parsed.id };
        match &parsed.question {
            Some(question) if sent => self.untimed += u64::from(!self.questions.ask(exchange, question, head.at)),
            None if sent => {}
            _ => self.answer(exchange, &parsed, head, names),
        }
    }

    fn answer(&mut self, exchange: Exchange, parsed: &Parsed, head: &Head, names: &mut Names) {
        let question = parsed.question.as_ref();
        let answered = self.questions.answer(exchange, question, head.at);
        let qtype = question.map(|question| question.qtype).or(answered.map(|answered| answered.qtype));
        *self.responses.entry((qtype.unwrap_or(Qtype::Other), parsed.rcode)).or_default() += 1;
        let Some(answered) = answered else { return };
        self.durations.entry(parsed.rcode).or_default().observe(answered.duration);
        // Only from an answer that was asked for.
        if let Some(question) = question
            && parsed.rcode == Rcode::NoError
        {
            names.learn(head.cgroup, &question.name, &parsed.addresses, head.at);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::{
        super::{
            latency::MAX_OPEN,
            names::Budget,
            parse::tests::{SAME, answer, question},
        },
        *,
    };

    const UDP: u8 = 17;

    fn head(protocol: u8, flags: u8, bytes: &[u8], at: u64) -> Head {
        let length = u32::try_from(bytes.len()).unwrap();
        Head { cgroup: 7, protocol, flags, length, at, remote_port: 53, local_port: 40_000, ..Head::default() }
    }

    fn udp(table: &mut Table, names: &mut Names, sent: bool, bytes: &[u8], at: u64) {
        table.take(&head(UDP, if sent { flags::EGRESS } else { 0 }, bytes, at), bytes, names);
    }

    #[test]
    fn answers_are_counted_timed_and_remembered() {
        let (mut table, mut names) = (Table::default(), Names::new(Vec::new(), Vec::new(), Budget::default()));
        udp(&mut table, &mut names, true, &question(1, "www.example.org", 1), 1_000);
        udp(&mut table, &mut names, false, &answer(1, "www.example.org", 1, 0, &[(SAME, 1, &[203, 0, 113, 9])]), 3_000);
        // Nobody asked for this one: it is counted, but nothing is learnt from it.
        udp(&mut table, &mut names, false, &answer(2, "evil.example", 1, 0, &[(SAME, 1, &[203, 0, 113, 9])]), 4_000);
        // An error without its question.
        udp(&mut table, &mut names, true, &question(3, "www.example.org", 28), 5_000);
        udp(&mut table, &mut names, false, &[0, 3, 0x80, 5, 0, 0, 0, 0, 0, 0, 0, 0], 6_000);
        udp(&mut table, &mut names, false, b"no DNS at all", 7_000);
        udp(&mut table, &mut names, true, b"nor this", 7_000);
        // Between two resolvers: an answer that goes out, a question that comes in.
        udp(&mut table, &mut names, true, &answer(4, "a", 1, 0, &[]), 8_000);
        udp(&mut table, &mut names, false, &question(4, "a", 1), 8_000);

        let (_, client) = table.clients().next().unwrap();
        let counted = [((Qtype::A, Rcode::NoError), 2), ((Qtype::Aaaa, Rcode::Refused), 1)];
        assert_eq!(client.responses, counted.into());
        assert_eq!((client.durations[&Rcode::NoError].sum, client.durations[&Rcode::Refused].sum), (2_000, 1_000));
        assert_eq!(client.malformed, 1);
        assert_eq!(names.learnt(7, IpAddr::from([203, 0, 113, 9])), Some("www.example.org"));
        assert_eq!(table.forget(7), 3);
        assert!(table.clients().next().is_none());
    }

    #[test]
    fn what_is_handed_over_is_added_and_questions_wait_on() {
        let (mut table, mut names) = (Table::default(), Names::new(Vec::new(), Vec::new(), Budget::default()));
        let mut give = |table: &mut Table, cgroup, flags, bytes: &[u8], at| {
            table.take(&Head { cgroup, ..head(UDP, flags, bytes, at) }, bytes, &mut names);
        };
        for (cgroup, took) in [(7, 1_000), (8, 2_000)] {
            give(&mut table, cgroup, flags::EGRESS, &question(1, "a.test", 1), 0);
            give(&mut table, cgroup, 0, &answer(1, "a.test", 1, 0, &[]), took);
            give(&mut table, cgroup, 0, b"no DNS at all", took);
        }
        give(&mut table, 7, 0, &answer(9, "a.test", 28, 3, &[]), 3_000);
        give(&mut table, 7, flags::EGRESS, &question(2, "a.test", 1), 3_000);
        assert!(!table.hand_over(7, 8));
        let of = |table: &Table, cgroup| {
            let client = &table.clients[&cgroup];
            let sums = client.durations.iter().map(|(rcode, durations)| (*rcode, durations.sum)).collect::<Vec<_>>();
            (client.responses.clone(), sums, client.malformed)
        };
        let counted = [((Qtype::A, Rcode::NoError), 2), ((Qtype::Aaaa, Rcode::NxDomain), 1)];
        assert_eq!(of(&table, 8), (counted.into(), vec![(Rcode::NoError, 3_000)], 2));
        assert_eq!(of(&table, 7), (BTreeMap::new(), vec![], 0));
        assert!(!table.hand_over(7, 8), "a question waits");
        give(&mut table, 7, 0, &answer(2, "a.test", 1, 0, &[]), 3_500);
        assert_eq!(of(&table, 7).1, [(Rcode::NoError, 500)], "it is timed");
        assert!(!table.hand_over(7, 8), "there was something to give");
        assert_eq!(of(&table, 8).1, [(Rcode::NoError, 3_500)]);
        assert!(table.hand_over(7, 8), "nothing is left");
    }

    #[test]
    fn what_has_changed_is_told_once_and_what_is_emptied_first() {
        let (mut table, mut names) = (Table::default(), Names::new(Vec::new(), Vec::new(), Budget::default()));
        let answered = answer(1, "a.test", 1, 0, &[]);
        let told = |table: &mut Table| {
            let changes = table.changes();
            let count = |client: &Client| client.responses.values().sum::<u64>();
            changes.into_iter().map(|(cgroup, client)| (cgroup, client.map(count))).collect::<Vec<_>>()
        };
        for cgroup in [9, 8, 7] {
            table.take(&Head { cgroup, ..head(UDP, 0, &answered, 0) }, &answered, &mut names);
        }
        assert_eq!(told(&mut table), [(7, Some(1)), (8, Some(1)), (9, Some(1))]);
        assert_eq!(told(&mut table), []);
        udp(&mut table, &mut names, true, &question(1, "a.test", 1), 0);
        assert_eq!(told(&mut table), [], "nothing is counted of a question");
        table.hand_over(8, 7);
        table.forget(9);
        assert_eq!(told(&mut table), [(8, None), (9, None), (7, Some(2))]);
        table.was_not_kept(7);
        assert_eq!(told(&mut table), [(7, Some(2))]);
    }

    #[test]
    fn a_question_too_many_is_counted() {
        let (mut table, mut names) = (Table::default(), Names::new(Vec::new(), Vec::new(), Budget::default()));
        for id in 0..=u16::try_from(MAX_OPEN).unwrap() {
            assert_eq!(table.untimed(), 0);
            udp(&mut table, &mut names, true, &question(id, "a.test", 1), 1_000);
        }
        assert_eq!(table.untimed(), 1);
        let last = u16::try_from(MAX_OPEN).unwrap();
        for id in [0, last] {
            udp(&mut table, &mut names, false, &answer(id, "a.test", 1, 0, &[]), 2_000);
        }
        let (_, client) = table.clients().next().unwrap();
        assert_eq!(client.responses, [((Qtype::A, Rcode::NoError), 2)].into());
        assert_eq!(client.durations[&Rcode::NoError].buckets.iter().sum::<u64>(), 1, "the answer that was not timed");
        table.forget(7);
        assert_eq!(table.untimed(), 1, "a counter does not go back");
    }

    #[test]
    fn over_tcp_the_same() {
        let (mut table, mut names) = (Table::default(), Names::new(Vec::new(), Vec::new(), Budget::default()));
        let framed = |message: Vec<u8>| [&u16::try_from(message.len()).unwrap().to_be_bytes()[..], &message].concat();
        let asked = framed(question(1, "a.test", 16));
        let answered = framed(answer(1, "a.test", 16, 3, &[]));
        let mut give = |flags, sequence, bytes: &[u8], at| {
            table.take(&Head { sequence, ..head(TCP, flags, bytes, at) }, bytes, &mut names);
        };
        give(0, 1, &answered, 1);
        give(flags::EGRESS | flags::SYN, 0, &[], 10);
        give(flags::SYN, 0, &[], 20);
        give(flags::EGRESS, 1, &asked, 30);
        give(0, 1, &answered[..5], 40);
        give(0, 6, &answered[5..], 50);
        assert_eq!(table.unread(), Unread { received: 1, sent: 0 });
        let (_, client) = table.clients().next().unwrap();
        assert_eq!(client.responses, [((Qtype::Txt, Rcode::NxDomain), 1)].into());
        assert_eq!(client.durations[&Rcode::NxDomain].sum, 20);
    }
}
