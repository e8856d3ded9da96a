//! The demo's summary: nothing but what stands in the agent's `/metrics`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, Table};

use crate::samples::{Sample, Samples};

const BYTES: &str = "observer_traffic_bytes_total";
const PACKETS: &str = "observer_traffic_packets_total";
const CONNECTIONS: &str = "observer_tcp_connections_opened_total";
const CPU: &str = "observer_cpu_usage_seconds_total";
const MEMORY: &str = "observer_memory_working_set_bytes";
const NONE: &str = "–";

/// The labels that say who talks to whom.
const EDGE: [&str; 13] = [
    "namespace",
    "pod",
    "container",
    "protocol",
    "peer_kind",
    "peer_container",
    "peer_namespace",
    "peer_pod",
    "peer_workload_kind",
    "peer_workload",
    "peer_name",
    "port",
    "role",
];

/// A container's conversation with one peer, seen from the container.
#[derive(Debug, Default)]
struct Edge {
    labels: BTreeMap<&'static str, String>,
    sent: f64,
    received: f64,
    packets_sent: f64,
    packets_received: f64,
    connections: Option<f64>,
}

impl Edge {
    fn label(&self, name: &str) -> &str {
        self.labels.get(name).map_or("", String::as_str)
    }
}

/// Renders a scrape; with an earlier one and the time between them, also what changes in a second.
pub fn render(now: &Samples, before: Option<(&Samples, Duration)>) -> String {
    let edges = edges(now);
    let mut text = String::new();
    let mut section = |title: &str, table: Option<Table>| {
        // Writing to a string does not fail.
        let _ = match table {
            Some(table) => writeln!(text, "{title}\n{table}\n"),
            None => writeln!(text, "{title}\n  nothing yet\n"),
        };
    };
    section("Inside the pods, over localhost", localhost(&edges));
    section("Between pods, and to the outside", beyond(&edges));
    section("CPU and memory", resources(now, before));
    text
}

fn edges(samples: &Samples) -> Vec<Edge> {
    let mut edges: BTreeMap<Vec<&str>, Edge> = BTreeMap::new();
    for sample in samples.iter() {
        if ![BYTES, PACKETS, CONNECTIONS].contains(&sample.name.as_str()) {
            continue;
        }
        let protocol = if sample.name == CONNECTIONS { "tcp" } else { sample.label("protocol") };
        let key: Vec<&str> =
            EDGE.iter().map(|name| if *name == "protocol" { protocol } else { sample.label(name) }).collect();
        let edge = edges.entry(key.clone()).or_insert_with(|| Edge {
            labels: EDGE.iter().copied().zip(key.iter().map(|&value| value.to_owned())).collect(),
            ..Edge::default()
        });
        let transmit = sample.label("direction") == "transmit";
        match (sample.name.as_str(), transmit) {
            (BYTES, true) => edge.sent += sample.value,
            (BYTES, false) => edge.received += sample.value,
            (PACKETS, true) => edge.packets_sent += sample.value,
            (PACKETS, false) => edge.packets_received += sample.value,
            _ => *edge.connections.get_or_insert(0.0) += sample.value,
        }
    }
    edges.into_values().collect()
}

/// Both ends of a localhost conversation are in the pod: the client's side tells it all.
fn localhost(edges: &[Edge]) -> Option<Table> {
    let local: Vec<&Edge> = edges.iter().filter(|edge| edge.label("peer_kind") == "container").collect();
    let mirrored = |edge: &Edge| {
        edge.label("role") == "server"
            && local.iter().any(|other| {
                other.label("role") != "server"
                    && other.label("container") == edge.label("peer_container")
                    && other.label("peer_container") == edge.label("container")
                    && ["namespace", "pod", "protocol", "port"].iter().all(|name| other.label(name) == edge.label(name))
            })
    };
    let header = ["pod", "from", "to", "over", "sent", "received", "packets", "connections"];
    let rows = local.iter().filter(|edge| !mirrored(edge)).map(|edge| {
        let (from, to) = (edge.label("container"), edge.label("peer_container"));
        let own = format!("{}/{}", edge.label("namespace"), edge.label("pod"));
        [own, from.to_owned(), to.to_owned()].into_iter().chain(figures(edge)).collect()
    });
    table(&header, 4, rows)
}

fn beyond(edges: &[Edge]) -> Option<Table> {
    let header = ["pod", "container", "peer", "role", "over", "sent", "received", "packets", "connections"];
    let rows = edges.iter().filter(|edge| edge.label("peer_kind") != "container").map(|edge| {
        let own = format!("{}/{}", edge.label("namespace"), edge.label("pod"));
        [own, edge.label("container").to_owned(), peer(edge), edge.label("role").to_owned()]
            .into_iter()
            .chain(figures(edge))
            .collect()
    });
    table(&header, 5, rows)
}

fn peer(edge: &Edge) -> String {
    let namespace = edge.label("peer_namespace");
    let name = [edge.label("peer_pod"), edge.label("peer_workload"), edge.label("peer_name")]
        .into_iter()
        .find(|name| !name.is_empty());
    match name {
        Some(name) if namespace.is_empty() => format!("{} {name}", edge.label("peer_kind")),
        Some(name) => format!("{namespace}/{name}"),
        None => edge.label("peer_kind").to_owned(),
    }
}

/// Protocol and port, then the numbers.
fn figures(edge: &Edge) -> [String; 5] {
    let port = edge.label("port");
    let over = match port {
        "" | "0" => edge.label("protocol").to_owned(),
        _ => format!("{} {port}", edge.label("protocol")),
    };
    [
        over,
        bytes(edge.sent),
        bytes(edge.received),
        format!("{} / {}", edge.packets_sent, edge.packets_received),
        edge.connections.map_or_else(|| NONE.to_owned(), |count| count.to_string()),
    ]
}

fn resources(now: &Samples, before: Option<(&Samples, Duration)>) -> Option<Table> {
    let mut containers: BTreeMap<[&str; 3], ()> = BTreeMap::new();
    for sample in now.iter().filter(|sample| [CPU, MEMORY].contains(&sample.name.as_str())) {
        containers.insert(identity(sample), ());
    }
    let header = ["pod", "container", "CPU used", "CPU now", "memory"];
    let rows = containers.keys().map(|identity| {
        let labels = [("namespace", identity[0]), ("pod", identity[1]), ("container", identity[2])];
        let used = now.sum(CPU, &labels);
        let rate = before
            .filter(|(_, time)| !time.is_zero())
            .map(|(before, time)| (used - before.sum(CPU, &labels)).max(0.0) / time.as_secs_f64());
        let memory = now.get(MEMORY, &labels);
        vec![
            format!("{}/{}", identity[0], identity[1]),
            identity[2].to_owned(),
            format!("{used:.2} s"),
            rate.map_or_else(|| NONE.to_owned(), |rate| format!("{:.1} %", rate * 100.0)),
            memory.map_or_else(|| NONE.to_owned(), bytes),
        ]
    });
    table(&header, 2, rows)
}

fn identity(sample: &Sample) -> [&str; 3] {
    [sample.label("namespace"), sample.label("pod"), sample.label("container")]
}

/// A table whose columns from `numbers` on are aligned to the right; none without rows.
fn table(header: &[&str], numbers: usize, rows: impl Iterator<Item = Vec<String>>) -> Option<Table> {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_header(header.to_vec());
    let mut empty = true;
    for row in rows {
        table.add_row(row);
        empty = false;
    }
    for column in table.column_iter_mut().skip(numbers) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    (!empty).then_some(table)
}

/// Bytes for people.
fn bytes(value: f64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = value;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{value} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCRAPE: &str = include_str!("testdata/metrics.prom");

    fn line<'a>(text: &'a str, parts: &[&str]) -> &'a str {
        text.lines()
            .find(|line| parts.iter().all(|part| line.contains(part)))
            .unwrap_or_else(|| panic!("no line with {parts:?} in:\n{text}"))
    }

    #[test]
    fn localhost_traffic_is_shown_once_from_the_client_s_side() {
        let text = render(&Samples::parse(SCRAPE).unwrap(), None);
        let (inside, rest) = text.split_once("Between pods").unwrap();
        let row = line(inside, &["proxy", "app", "tcp 8080"]);
        assert!(row.contains("2.0 KiB") && row.contains("20.0 KiB"), "{row}");
        assert!(row.contains("10 / 12") && row.contains('3'), "{row}");
        assert_eq!(inside.lines().filter(|line| line.contains("tcp 8080")).count(), 1, "{inside}");
        line(inside, &["app", "log-shipper", "udp 5140"]);
        line(rest, &["shop/frontend-1", "shop/web-1", "client", "tcp 8000"]);
    }

    #[test]
    fn cpu_is_shown_as_a_rate_once_there_are_two_scrapes() {
        let now = Samples::parse(SCRAPE).unwrap();
        let before = Samples::default();
        let text = render(&now, Some((&before, Duration::from_secs(10))));
        let row = line(&text, &["web-1", "app", "1.50 s"]);
        assert!(row.contains("15.0 %") && row.contains("33.0 MiB"), "{row}");
    }

    #[test]
    fn an_empty_scrape_is_no_failure() {
        assert!(render(&Samples::default(), None).contains("nothing yet"));
    }
}
