//! From question to answer.

use std::collections::HashMap;

use super::{codes::Qtype, parse::Question};

/// Questions of a container that wait for their answer at a time.
pub(super) const MAX_OPEN: usize = 4096;
/// When a question will not be answered any more, in nanoseconds: longer than resolvers of C libraries try.
const PATIENCE: u64 = 30_000_000_000;

/// Upper bounds of the buckets, in seconds: from a cache on the node to a resolver's timeouts.
pub const BOUNDS: [f64; 14] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// The same in nanoseconds.
const NANOSECONDS: [u64; BOUNDS.len()] = [
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    5_000_000_000,
    10_000_000_000,
];

/// How long answers took, in buckets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Durations {
    /// Answers in each bucket alone; the last one is above all [`BOUNDS`].
    pub buckets: [u64; BOUNDS.len() + 1],
    /// All together, in nanoseconds.
    pub sum: u64,
}

impl Durations {
    /// Adds one, in nanoseconds.
    pub fn observe(&mut self, duration: u64) {
        self.buckets[NANOSECONDS.partition_point(|bound| *bound < duration)] += 1;
        self.sum += duration;
    }

    /// Adds those of another cgroup of the same container.
    pub fn add(&mut self, other: &Self) {
        self.buckets.iter_mut().zip(other.buckets).for_each(|(mine, theirs)| *mine += theirs);
        self.sum += other.sum;
    }
}

/// What joins a question and its answer. The resolver's address is not in it: on the host network a Service's address
/// is translated for the one and not for the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Exchange {
    /// The IP protocol number.
    pub protocol: u8,
    /// The container's port.
    pub port: u16,
    /// The number in the message.
    pub id: u16,
}

/// A question without an answer.
#[derive(Debug, Clone, Copy)]
struct Asked {
    digest: u64,
    qtype: Qtype,
    at: u64,
}

/// What is known of an answer by its question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Answered {
    /// The type that was asked for.
    pub qtype: Qtype,
    /// How long it took, in nanoseconds.
    pub duration: u64,
}

/// A container's questions that wait for their answers.
#[derive(Debug, Default)]
pub(super) struct Questions {
    open: HashMap<Exchange, Asked>,
}

impl Questions {
    /// True when none waits.
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// A question was sent. One that is sent again counts from its first time. False when too many wait for their answers:
    /// the answer is counted, its time is not.
    pub fn ask(&mut self, exchange: Exchange, question: &Question, at: u64) -> bool {
        let waits = |asked: &Asked| at.saturating_sub(asked.at) < PATIENCE;
        if self.open.get(&exchange).is_some_and(|asked| asked.digest == question.digest && waits(asked)) {
            return true;
        }
        if self.open.len() >= MAX_OPEN {
            self.open.retain(|_, asked| waits(asked));
        }
        // One whose number is used again gives way.
        let room = self.open.len() < MAX_OPEN || self.open.contains_key(&exchange);
        if room {
            self.open.insert(exchange, Asked { digest: question.digest, qtype: question.qtype, at });
        }
        room
    }

    /// An answer came. `None` when nobody asked, or it was answered before. Some servers leave the question out of an
    /// error.
    pub fn answer(&mut self, exchange: Exchange, question: Option<&Question>, at: u64) -> Option<Answered> {
        let asked = *self.open.get(&exchange)?;
        if question.is_some_and(|question| question.digest != asked.digest) {
            return None;
        }
        self.open.remove(&exchange);
        let duration = at.saturating_sub(asked.at);
        (duration < PATIENCE).then_some(Answered { qtype: asked.qtype, duration })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(digest: u64) -> Question {
        Question { name: String::new(), qtype: Qtype::A, digest }
    }

    fn exchange(id: u16) -> Exchange {
        Exchange { protocol: 17, port: 40_000, id }
    }

    #[test]
    fn bounds_are_the_same_in_both_units_and_inclusive() {
        for (at, (seconds, nanoseconds)) in BOUNDS.into_iter().zip(NANOSECONDS).enumerate() {
            assert_eq!((seconds * 1e9).round() as u64, nanoseconds);
            let mut durations = Durations::default();
            durations.observe(nanoseconds);
            durations.observe(nanoseconds + 1);
            assert_eq!((durations.buckets[at], durations.buckets[at + 1]), (1, 1));
            assert_eq!(durations.sum, 2 * nanoseconds + 1);
        }
    }

    #[test]
    fn an_answer_is_timed_once_from_the_first_try() {
        let mut questions = Questions::default();
        questions.ask(exchange(1), &question(7), 100);
        questions.ask(exchange(1), &question(7), 5_000);
        assert_eq!(questions.answer(exchange(2), Some(&question(7)), 5_100), None, "another number");
        assert_eq!(questions.answer(exchange(1), Some(&question(8)), 5_100), None, "another question");
        let answered = Some(Answered { qtype: Qtype::A, duration: 5_000 });
        assert_eq!(questions.answer(exchange(1), None, 5_100), answered);
        assert_eq!(questions.answer(exchange(1), None, 5_200), None, "a second answer");
    }

    #[test]
    fn old_questions_give_way_and_are_not_timed() {
        let mut questions = Questions::default();
        questions.ask(exchange(1), &question(7), 0);
        questions.ask(exchange(1), &question(7), PATIENCE);
        assert_eq!(questions.answer(exchange(1), None, PATIENCE + 3).unwrap().duration, 3, "the number was used again");
        for id in 0..u16::try_from(MAX_OPEN).unwrap() {
            assert!(questions.ask(exchange(id), &question(1), 0));
        }
        assert!(questions.ask(exchange(0), &question(1), 1), "sent again");
        assert!(questions.ask(exchange(1), &question(2), 1), "in the place of the one before");
        assert_eq!(questions.answer(exchange(1), Some(&question(2)), 3).unwrap().duration, 2);
        assert!(questions.ask(exchange(1), &question(1), 0));
        assert!(!questions.ask(exchange(u16::MAX), &question(1), 1));
        assert_eq!(questions.answer(exchange(u16::MAX), None, 2), None, "full");
        assert!(questions.ask(exchange(u16::MAX), &question(1), PATIENCE));
        assert_eq!(questions.open.len(), 1);
        questions.ask(exchange(3), &question(1), 0);
        assert_eq!(questions.answer(exchange(3), None, PATIENCE), None);
    }
}
