//! The catalogue as text: a table for a terminal, and `docs/metrics.md`. Pure.

use std::fmt::Write;

use super::{Row, catalogue::ALL};

const INTRODUCTION: &str = "\
<!-- Generated: cargo run -p observer -- metrics --markdown > docs/metrics.md -->
# Metrics

Every family that the agent can expose, generated from its catalogue. A family without a sample is left out of the
scrape: what cannot be read is absent, never 0.

The observed side is `namespace`, `pod`, `container`, with the values that Kubernetes uses; where nobody tells a
pod's name, the pod's UID or the cgroup's name stands there. The other side is `peer_*`. `direction` is `transmit` or
`receive`, seen from the observed container. A label that does not apply is empty.

`peer_kind` says what the other side is:

| `peer_kind` | means | further labels filled |
|---|---|---|
| `container` | a container of the same pod, over the pod's loopback | `peer_container` |
| `pod` | a pod | `peer_namespace`, `peer_workload_kind`, `peer_workload`, `peer_pod` |
| `service` | a Service address before translation | `peer_namespace`, `peer_workload` |
| `node` | a node of the cluster, this one included | |
| `external` | outside of the cluster | `peer_name` when known: what the container asked for (not what that is an alias of), in lower case: some resolvers ask for one name in ever other cases (0x20), and each would be a series |
| `other` | what found no place in the table of edges, or an address not known yet | |

`port` is the server's port, `role` the observed container's part in it: `client`, `server` or `none`.
";

/// `docs/metrics.md`.
#[must_use]
pub fn markdown() -> String {
    format!("{INTRODUCTION}{}", chapters(ALL, "##"))
}

/// A table for each chapter, below a heading of this level.
pub(super) fn chapters(rows: &[Row], heading: &str) -> String {
    let mut out = String::new();
    let mut chapter = "";
    for row in rows {
        if row.chapter != chapter {
            chapter = row.chapter;
            let header = "| family | type | unit | labels | meaning |\n|---|---|---|---|---|\n";
            let _ = write!(out, "\n{heading} {chapter}\n\n{header}");
        }
        let labels = row.labels.iter().map(|l| format!("`{l}`")).collect::<Vec<_>>().join(", ");
        let help = row.help.replace('|', "\\|");
        let _ = writeln!(
            out,
            "| `{}` | {} | {} | {labels} | {help} |",
            row.name,
            row.family_type.as_str(),
            row.unit.as_str()
        );
    }
    out
}

/// The catalogue for a terminal: two lines and the labels for each family.
#[must_use]
pub fn table() -> String {
    let mut out = String::new();
    let mut chapter = "";
    for row in ALL {
        if row.chapter != chapter {
            chapter = row.chapter;
            let _ = writeln!(out, "{}{chapter}\n", if out.is_empty() { "" } else { "\n" });
        }
        let _ = writeln!(out, "  {} ({}, {})", row.name, row.family_type.as_str(), row.unit.as_str());
        if !row.labels.is_empty() {
            let _ = writeln!(out, "      {{{}}}", row.labels.join(", "));
        }
        let _ = writeln!(out, "      {}", row.help);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documentation_is_what_the_catalogue_says() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md");
        let command = "cargo run -p observer -- metrics --markdown > docs/metrics.md";
        let written = std::fs::read_to_string(path).unwrap_or_default();
        assert!(written == markdown(), "docs/metrics.md is not what the catalogue says; run: {command}");
    }

    #[test]
    fn the_table_lists_every_family() {
        let table = table();
        for row in ALL {
            assert!(table.contains(row.name) && table.contains(row.help), "{}", row.name);
        }
    }
}
