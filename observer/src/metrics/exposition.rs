//! Samples, written straight into the Prometheus text format (version 0.0.4).
//!
//! The `prometheus` crate's own way (a `MetricFamily` of `LabelPair`s, gathered, sorted, then encoded) takes two
//! strings for each label: 10,000 series with 14 labels took 36 ms and 15 MB that way against 2 ms here, and
//! a scrape has 10 ms. The crate's counters and histograms are used where values live, not where they are
//! written.
//!
//! Format: <https://prometheus.io/docs/instrumenting/exposition_formats/>.

use std::{collections::HashMap, fmt::Write};

use super::{
    family::{Family, Histogram, Kind, Scalar},
    label::{LabelText, push_help, push_value},
};
use crate::hash::FastMap;

/// The value of a sample. Whole numbers are written exactly.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value {
    /// A whole number.
    Whole(u64),
    /// Any number.
    Float(f64),
}

impl From<u64> for Value {
    fn from(value: u64) -> Self {
        Self::Whole(value)
    }
}

impl From<f64> for Value {
    fn from(value: f64) -> Self {
        Self::Float(value)
    }
}

/// The scrape being written: one buffer for each family. It begins with the room that the family took the last time,
/// and leaves with the scrape: a node's text is megabytes, and nobody needs them until the next scrape.
#[derive(Debug, Default)]
pub struct Exposition {
    families: FastMap<&'static str, Text>,
    lengths: HashMap<&'static str, usize>,
}

/// The text of one family.
#[derive(Debug, Default)]
struct Text {
    text: String,
    /// What stands before the value of each label: `name{first="`, `",second="`.
    before: Vec<String>,
}

impl Text {
    fn begin<K: Kind + 'static, const N: usize>(family: &Family<K, N>, length: usize) -> Self {
        let first = |label: &str| format!("{}{{{label}=\"", family.name);
        let next = |label: &str| format!("\",{label}=\"");
        let before = family.labels.iter().enumerate();
        Self {
            // Values grow by a digit now and then.
            text: String::with_capacity(length + length / 32),
            before: before.map(|(at, label)| if at == 0 { first(label) } else { next(label) }).collect(),
        }
    }
}

impl Exposition {
    /// Begins or continues a family. Nothing is written until its first sample.
    pub fn family<K: Kind + 'static, const N: usize>(&mut self, family: &'static Family<K, N>) -> Samples<'_, K, N> {
        let begin = || Text::begin(family, self.lengths.get(family.name).copied().unwrap_or(0));
        let Text { text, before } = self.families.entry(family.name).or_insert_with(begin);
        Samples { family, out: text, before }
    }

    /// Takes the families with their texts, sorted by name, those without a sample left out. Nothing is left for the
    /// next scrape.
    pub fn take_families(&mut self) -> impl Iterator<Item = (&'static str, Vec<u8>)> + use<> {
        let families = std::mem::take(&mut self.families);
        self.lengths = families.iter().map(|(name, family)| (*name, family.text.len())).collect();
        let written = families.into_iter().filter(|(_, family)| !family.text.is_empty());
        let mut written: Vec<_> = written.map(|(name, family)| (name, family.text.into_bytes())).collect();
        written.sort_unstable_by_key(|(name, _)| *name);
        written.into_iter()
    }

    /// Takes the whole text in parts that follow one another.
    pub fn take(&mut self) -> Vec<Vec<u8>> {
        self.take_families().map(|(_, text)| text).collect()
    }
}

/// Writes the samples of one family. No two samples of a family may have the same labels: that is the
/// collector's duty.
#[derive(Debug)]
pub struct Samples<'a, K: 'static, const N: usize> {
    family: &'static Family<K, N>,
    out: &'a mut String,
    before: &'a [String],
}

impl<K: Scalar + 'static, const N: usize> Samples<'_, K, N> {
    /// Adds a sample; `labels` are the values in the catalogue's order.
    pub fn sample(&mut self, labels: [&str; N], value: impl Into<Value>) {
        self.header();
        self.plain(&labels);
        self.end(value.into());
    }

    /// Adds a sample whose labels are these, one part after the other. A number of labels that is not the family's does not
    /// build; other names than the family's are a fault that tests find.
    pub fn sample_of<const A: usize, const B: usize, const C: usize, const D: usize>(
        &mut self,
        first: &LabelText<A>,
        then: [&str; B],
        more: &LabelText<C>,
        last: [&str; D],
        value: impl Into<Value>,
    ) {
        const { assert!(A > 0 && A + B + C + D == N, "these are not the labels of the family") };
        debug_assert_eq!((first.names(), more.names()), (&self.family.labels[..A], &self.family.labels[A + B..N - D]));
        self.header();
        self.out.extend([self.family.name, "{", first.text()]);
        self.labels(A, then);
        if C > 0 {
            self.out.extend(["\",", more.text()]);
        }
        self.labels(N - D, last);
        self.out.push_str("\"} ");
        self.end(value.into());
    }

    /// Adds a sample that begins with these labels, unless there is no value.
    pub fn sample_own_if<const A: usize, const B: usize, V: Into<Value>>(
        &mut self,
        own: &LabelText<A>,
        rest: [&str; B],
        value: Option<V>,
    ) {
        if let Some(value) = value {
            self.sample_of(own, rest, &LabelText::default(), [], value);
        }
    }

    /// Appends labels that are not the first, from this one on.
    fn labels<const B: usize>(&mut self, from: usize, values: [&str; B]) {
        for (before, value) in self.before[from..].iter().zip(values) {
            self.out.push_str(before);
            push_value(self.out, value);
        }
    }

    /// Adds a sample unless there is no value: what cannot be read is absent, never 0.
    pub fn sample_if<V: Into<Value>>(&mut self, labels: [&str; N], value: Option<V>) {
        if let Some(value) = value {
            self.sample(labels, value);
        }
    }
}

/// The upper bounds of a histogram's buckets as they are written, the last one without a bound.
#[derive(Debug)]
pub struct Bounds(Vec<String>);

impl Bounds {
    /// Of these numbers, and infinity after them.
    pub fn new(bounds: impl IntoIterator<Item = f64>) -> Self {
        let text = |bound: f64| {
            let mut text = String::new();
            push_number(&mut text, Value::Float(bound));
            text
        };
        Self(bounds.into_iter().filter(|bound| bound.is_finite()).chain([f64::INFINITY]).map(text).collect())
    }
}

impl<const N: usize> Samples<'_, Histogram, N> {
    /// Adds the buckets, the sum and the count of a histogram.
    pub fn histogram(&mut self, labels: [&str; N], histogram: &prometheus::Histogram) {
        use prometheus::core::Metric;
        let metric = histogram.metric();
        let observed = metric.get_histogram();
        let buckets = || observed.get_bucket().iter().filter(|bucket| bucket.upper_bound().is_finite());
        let cumulative =
            buckets().map(prometheus::proto::Bucket::cumulative_count).chain([observed.get_sample_count()]);
        let bounds = Bounds::new(buckets().map(prometheus::proto::Bucket::upper_bound));
        self.cumulative(labels, &bounds, cumulative, observed.get_sample_sum());
    }

    /// The same from numbers: `observed` are the observations in each bucket alone, the one without a bound included.
    pub fn buckets(&mut self, labels: [&str; N], bounds: &Bounds, observed: &[u64], sum: f64) {
        let cumulative = observed.iter().scan(0, |total, observed| {
            *total += observed;
            Some(*total)
        });
        self.cumulative(labels, bounds, cumulative, sum);
    }

    fn cumulative(&mut self, labels: [&str; N], bounds: &Bounds, counts: impl Iterator<Item = u64>, sum: f64) {
        self.header();
        // Written once: every line of the histogram has them.
        let mut own = String::new();
        for (label, value) in self.family.labels.iter().zip(labels) {
            own.extend([if own.is_empty() { "" } else { "," }, label, "=\""]);
            push_value(&mut own, value);
            own.push('"');
        }
        let separator = if own.is_empty() { "" } else { "," };
        let mut count = 0;
        for (bound, cumulative) in bounds.0.iter().zip(counts) {
            count = cumulative;
            self.out.extend([self.family.name, "_bucket{", &own, separator, "le=\"", bound, "\"} "]);
            self.end(cumulative.into());
        }
        for (suffix, value) in [("_sum", Value::Float(sum)), ("_count", Value::Whole(count))] {
            self.out.extend([self.family.name, suffix]);
            if !own.is_empty() {
                self.out.extend(["{", &own, "}"]);
            }
            self.out.push(' ');
            self.end(value);
        }
    }
}

impl<K: Kind + 'static, const N: usize> Samples<'_, K, N> {
    fn header(&mut self) {
        if self.out.is_empty() {
            self.out.push_str("# HELP ");
            self.out.push_str(self.family.name);
            self.out.push(' ');
            push_help(self.out, self.family.help);
            self.out.push_str("\n# TYPE ");
            self.out.push_str(self.family.name);
            self.out.push(' ');
            self.out.push_str(K::TYPE.as_str());
            self.out.push('\n');
        }
    }

    /// Begins the line of a sample that has the family's own name.
    fn plain(&mut self, labels: &[&str; N]) {
        for (before, value) in self.before.iter().zip(labels) {
            self.out.push_str(before);
            push_value(self.out, value);
        }
        if N == 0 {
            self.out.push_str(self.family.name);
            self.out.push(' ');
        } else {
            self.out.push_str("\"} ");
        }
    }

    fn end(&mut self, value: Value) {
        push_number(self.out, value);
        self.out.push('\n');
    }
}

/// Below this every whole number is a float, and is written as one.
const WHOLE: f64 = (1_u64 << 53) as f64;

fn push_number(out: &mut String, value: Value) {
    // Times that nobody waited for, and much else, are whole: their text needs no search for the shortest one.
    let value = match value {
        Value::Float(number) if number.is_sign_positive() && number < WHOLE && number.trunc() == number => {
            Value::Whole(number as u64)
        }
        value => value,
    };
    // Writing to a String cannot fail.
    let _ = match value {
        Value::Whole(number) => out.write_str(itoa::Buffer::new().format(number)),
        Value::Float(number) if number.is_infinite() => out.write_str(if number > 0.0 { "+Inf" } else { "-Inf" }),
        Value::Float(number) => write!(out, "{number}"),
    };
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::metrics::catalogue;

    fn text(mut out: Exposition) -> String {
        String::from_utf8(out.take().concat()).unwrap()
    }

    #[test]
    fn families_are_sorted_complete_and_never_empty() {
        let mut out = Exposition::default();
        assert!(out.take().is_empty());
        let _ = out.family(&catalogue::THREADS);
        out.family(&catalogue::PROCESSES).sample(["n", "p", "c\"\n"], u64::MAX);
        out.family(&catalogue::AGENT_PODS).sample([], 3u64);
        out.family(&catalogue::AGENT_PODS).sample_if([], None::<u64>);
        assert_eq!(
            text(out),
            "# HELP observer_agent_pods Pods that the agent observes now.\n\
             # TYPE observer_agent_pods gauge\n\
             observer_agent_pods 3\n\
             # HELP observer_processes Processes in the container.\n\
             # TYPE observer_processes gauge\n\
             observer_processes{namespace=\"n\",pod=\"p\",container=\"c\\\"\u{FFFD}\"} 18446744073709551615\n"
        );
    }

    #[test]
    fn labels_that_were_written_before_are_the_same_text() {
        let labels = ["n\"", "p", "c", "transmit", "tcp", "pod", "pc", "pn", "pp", "k", "w", "\n", "1", "client"];
        let own = LabelText::of(&catalogue::THREADS, 0, ["n\"", "p", "c"]);
        let peer = LabelText::of(&catalogue::TRAFFIC_PACKETS, 5, ["pod", "pc", "pn", "pp", "k", "w", "\n", "1"]);
        let (mut whole, mut parts) = (Exposition::default(), Exposition::default());
        whole.family(&catalogue::TRAFFIC_BYTES).sample(labels, 5u64);
        let mut family = parts.family(&catalogue::TRAFFIC_BYTES);
        family.sample_of(&own, ["transmit", "tcp"], &peer, ["client"], 5u64);
        whole.family(&catalogue::CPU_USAGE).sample(["n\"", "p", "c", "user"], 0.5);
        parts.family(&catalogue::CPU_USAGE).sample_own_if(&own, ["user"], Some(0.5));
        whole.family(&catalogue::THREADS).sample(["n\"", "p", "c"], 1u64);
        let mut family = parts.family(&catalogue::THREADS);
        family.sample_own_if(&own, [], Some(1u64));
        family.sample_own_if(&own, [], None::<u64>);
        assert_eq!(text(parts), text(whole));
    }

    #[test]
    #[cfg(debug_assertions)]
    #[should_panic(expected = "assertion")]
    fn labels_of_another_family_are_found_by_tests() {
        let own = LabelText::of(&catalogue::NODE_PRESSURE, 0, ["cpu", "some"]);
        Exposition::default().family(&catalogue::THREADS).sample_own_if(&own, ["x"], Some(1u64));
    }

    #[test]
    fn nothing_of_a_scrape_is_in_the_next_but_the_room() {
        let mut out = Exposition::default();
        for value in 0..3u64 {
            out.family(&catalogue::AGENT_PODS).sample([], value);
            let room = out.families[catalogue::AGENT_PODS.name].text.capacity();
            let text = out.take().concat();
            assert!(text.ends_with(format!(" {value}\n").as_bytes()) && !text.is_empty());
            assert!(value == 0 || (text.len()..text.len() * 2).contains(&room));
        }
    }

    #[test]
    fn floats_are_written_as_the_format_wants() {
        let text = |value: f64| {
            let mut out = String::new();
            push_number(&mut out, value.into());
            out
        };
        for (value, expected) in
            [(0.1, "0.1"), (f64::INFINITY, "+Inf"), (f64::NEG_INFINITY, "-Inf"), (f64::NAN, "NaN"), (1e-5, "0.00001")]
        {
            assert_eq!(text(value), expected);
        }
        for whole in
            [0.0, -0.0, 1.0, -1.0, 12_345.0, WHOLE - 1.0, WHOLE, WHOLE + 2.0, 1e18, 1e20, 0.5, WHOLE / 4.0 + 0.5]
        {
            assert_eq!(text(whole), whole.to_string());
        }
    }

    #[test]
    fn histograms_have_cumulative_buckets_and_an_infinite_one() {
        let options = prometheus::HistogramOpts::new("x", "x").buckets(vec![0.1, 1.0]);
        let histogram = prometheus::Histogram::with_opts(options).unwrap();
        for value in [0.05, 0.5, 5.0] {
            histogram.observe(value);
        }
        let mut out = Exposition::default();
        out.family(&catalogue::AGENT_SCRAPE_DURATION).histogram([], &histogram);
        let text = text(out);
        let name = catalogue::AGENT_SCRAPE_DURATION.name;
        for line in ["_bucket{le=\"0.1\"} 1", "_bucket{le=\"1\"} 2", "_bucket{le=\"+Inf\"} 3", "_sum 5.55", "_count 3"]
        {
            assert!(text.contains(&format!("\n{name}{line}\n")), "{line} not in {text}");
        }
    }

    #[test]
    fn buckets_are_summed_up() {
        let mut out = Exposition::default();
        out.family(&catalogue::TCP_RTT).buckets(["n", "p", "c", "pod"], &Bounds::new([0.1, 1.0]), &[2, 0, 1], 5.5);
        let text = text(out);
        let labels = "namespace=\"n\",pod=\"p\",container=\"c\",peer_kind=\"pod\"";
        for (suffix, le, value) in [
            ("_bucket", ",le=\"0.1\"", "2"),
            ("_bucket", ",le=\"1\"", "2"),
            ("_bucket", ",le=\"+Inf\"", "3"),
            ("_sum", "", "5.5"),
            ("_count", "", "3"),
        ] {
            let line = format!("\n{}{suffix}{{{labels}{le}}} {value}\n", catalogue::TCP_RTT.name);
            assert!(text.contains(&line), "{line} not in {text}");
        }
    }

    /// Prints how long a scrape of 10,000 traffic series takes to write; run with `--release -- --nocapture`.
    #[test]
    fn time_to_write_ten_thousand_series() {
        let names: Vec<(String, String)> =
            (0..10_000).map(|i| (format!("payments-api-7d9f8b6c5d-{:05}", i / 100), (i % 100).to_string())).collect();
        let mut out = Exposition::default();
        for round in 0..3 {
            let start = Instant::now();
            let mut family = out.family(&catalogue::TRAFFIC_BYTES);
            for (pod, port) in &names {
                family.sample(
                    [
                        "payments",
                        pod,
                        "app",
                        "transmit",
                        "tcp",
                        "pod",
                        "",
                        "database",
                        "",
                        "StatefulSet",
                        "postgres",
                        "",
                        port,
                        "client",
                    ],
                    123_456_789u64,
                );
            }
            let bytes = out.take().concat().len();
            println!("round {round}: 10000 series, {bytes} bytes, {:?}", start.elapsed());
        }
    }
}
