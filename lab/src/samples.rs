//! Scraped metrics.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use prometheus_parse::{Scrape, Value};

/// A sample: what stands on a line of an exposition.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// The name of the series.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its value.
    pub value: f64,
}

impl Sample {
    /// A label's value; a label that is absent is the empty string, as in Prometheus.
    pub fn label(&self, name: &str) -> &str {
        self.labels.get(name).map_or("", String::as_str)
    }

    /// Whether all these labels have these values.
    pub fn matches(&self, labels: &[(&str, &str)]) -> bool {
        labels.iter().all(|(name, value)| self.label(name) == *value)
    }
}

/// What a scrape returned. Histograms and summaries are left out.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Samples(Vec<Sample>);

impl Samples {
    /// Reads a text exposition.
    pub fn parse(text: &str) -> Result<Self> {
        let scrape = Scrape::parse(text.lines().map(|line| Ok(line.to_owned())))
            .context("reading a Prometheus text exposition")?;
        let samples = scrape.samples.into_iter().filter_map(|sample| {
            let value = match sample.value {
                Value::Counter(value) | Value::Gauge(value) | Value::Untyped(value) => value,
                Value::Histogram(_) | Value::Summary(_) => return None,
            };
            let labels = sample.labels.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
            Some(Sample { name: sample.metric, labels, value })
        });
        Ok(Self(samples.collect()))
    }

    /// All samples, in the order in which they stand.
    pub fn iter(&self) -> impl Iterator<Item = &Sample> {
        self.0.iter()
    }

    /// Those whose `pod` label is this name.
    pub fn of_pod(&self, name: &str) -> Self {
        Self(self.0.iter().filter(|sample| sample.label("pod") == name).cloned().collect())
    }

    /// The samples of a family that have these labels.
    pub fn select<'a>(&'a self, name: &'a str, labels: &'a [(&'a str, &'a str)]) -> impl Iterator<Item = &'a Sample> {
        self.0.iter().filter(move |sample| sample.name == name && sample.matches(labels))
    }

    /// The sum of the samples of a family that have these labels; 0 when there is none.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.select(name, labels).map(|sample| sample.value).sum()
    }

    /// The value of the only sample of a family that has these labels.
    pub fn get(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let mut found = self.select(name, labels);
        let first = found.next()?;
        found.next().is_none().then_some(first.value)
    }
}

/// How many observations of a histogram are at most as large as each of its bounds, all series together that have these
/// labels. Reads the text of an exposition.
pub fn buckets(text: &str, family: &str, labels: &[(&str, &str)]) -> Result<Vec<(f64, u64)>> {
    let lines = text.lines().map(|line| Ok(line.to_owned()));
    let scrape = Scrape::parse(lines).context("reading a Prometheus text exposition")?;
    let mut sums: Vec<(f64, u64)> = Vec::new();
    for sample in scrape.samples.iter().filter(|sample| sample.metric == family) {
        let Value::Histogram(counts) = &sample.value else { continue };
        if labels.iter().any(|(name, value)| sample.labels.get(name).unwrap_or_default() != *value) {
            continue;
        }
        for bucket in counts {
            // Counters below 2^53 are exact in a float.
            let count = bucket.count as u64;
            match sums.iter_mut().find(|(bound, _)| *bound == bucket.less_than) {
                Some((_, sum)) => *sum += count,
                None => sums.push((bucket.less_than, count)),
            }
        }
    }
    sums.sort_by(|one, other| one.0.total_cmp(&other.0));
    Ok(sums)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_selected_by_label() {
        let samples =
            Samples::parse("# TYPE a_total counter\na_total{x=\"1\",y=\"p\"} 3\na_total{x=\"2\",y=\"p\"} 4\nb 5\n")
                .unwrap();
        assert_eq!(samples.sum("a_total", &[("y", "p")]), 7.0);
        assert_eq!(samples.sum("a_total", &[("z", "")]), 7.0);
        assert_eq!(samples.get("a_total", &[("x", "2")]), Some(4.0));
        assert_eq!(samples.get("a_total", &[("y", "p")]), None);
        assert_eq!(samples.get("b", &[]), Some(5.0));
        assert_eq!(samples.sum("c", &[]), 0.0);
    }

    #[test]
    fn buckets_are_added_by_bound() {
        let series = |labels: &str, counts: [u64; 2]| {
            let [some, all] = counts;
            format!("h_bucket{{{labels},le=\"0.1\"}} {some}\nh_bucket{{{labels},le=\"+Inf\"}} {all}\n")
        };
        let text = ["# TYPE h histogram\n".to_owned(), series("x=\"1\"", [2, 3]), series("x=\"2\"", [4, 8])].concat();
        assert_eq!(buckets(&text, "h", &[]).unwrap(), [(0.1, 6), (f64::INFINITY, 11)]);
        assert_eq!(buckets(&text, "h", &[("x", "2")]).unwrap(), [(0.1, 4), (f64::INFINITY, 8)]);
        assert_eq!(buckets(&text, "i", &[]).unwrap(), []);
    }
}
