//! Answers that came, answers that are shown, and how long they took.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};

use crate::actor::DnsAnswers;
use crate::agent::Agent;
use crate::samples::Samples;

/// Answers by type and outcome.
pub type Counts = BTreeMap<(String, String), u64>;

/// Adds what a client was answered, with the names that the numbers have at IANA.
pub fn add(counts: &mut Counts, answers: &DnsAnswers) {
    for (qtype, rcode, count) in &answers.answers {
        let qtype = match qtype {
            1 => "A",
            2 => "NS",
            5 => "CNAME",
            6 => "SOA",
            12 => "PTR",
            15 => "MX",
            16 => "TXT",
            28 => "AAAA",
            33 => "SRV",
            64 => "SVCB",
            65 => "HTTPS",
            255 => "ANY",
            _ => "other",
        };
        let rcode = match rcode {
            0 => "NOERROR",
            1 => "FORMERR",
            2 => "SERVFAIL",
            3 => "NXDOMAIN",
            4 => "NOTIMP",
            5 => "REFUSED",
            _ => "other",
        };
        *counts.entry((qtype.to_owned(), rcode.to_owned())).or_default() += count;
    }
}

/// What is shown of a container.
///
/// # Errors
///
/// When a series stands there twice.
pub fn shown(samples: &Samples, container: &str) -> Result<Counts> {
    let labels = [("container", container), ("namespace", "cases")];
    let mut counts = Counts::new();
    for sample in samples.select("observer_dns_responses_total", &labels) {
        let labels = (sample.label("qtype").to_owned(), sample.label("rcode").to_owned());
        ensure!(counts.insert(labels, sample.value as u64).is_none(), "a series stands there twice: {sample:?}");
    }
    Ok(counts)
}

/// Each outcome has as many durations as answers. Samples leave histograms out: this reads the text.
pub fn check_durations(agent: &Agent, container: &str, wanted: &Counts) -> Result<()> {
    let mut by_rcode: BTreeMap<&str, u64> = BTreeMap::new();
    for ((_, rcode), count) in wanted {
        *by_rcode.entry(rcode).or_default() += count;
    }
    let text = agent.fetch("/metrics")?;
    let value = |suffix: &str, rcode: &str, le: &str| -> Result<f64> {
        let series = format!(
            "observer_dns_duration_seconds{suffix}{{namespace=\"cases\",pod=\"{}\",container=\"{container}\",rcode=\"{rcode}\"{le}}} ",
            if container == "c" { "client" } else { "server" }
        );
        let line = text.lines().find_map(|line| line.strip_prefix(&series));
        Ok(line.with_context(|| format!("there is no {series}"))?.parse()?)
    };
    for (rcode, count) in by_rcode {
        ensure!(value("_count", rcode, "")? == count as f64, "{rcode}: not {count} durations");
        ensure!(value("_bucket", rcode, ",le=\"+Inf\"")? == count as f64, "{rcode}: not {count} in buckets");
        ensure!(value("_sum", rcode, "")? > 0.0, "{rcode}: no time has passed");
    }
    Ok(())
}
