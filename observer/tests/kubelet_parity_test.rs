//! What a real kubelet (1.36, on a hybrid and on a pure v2 node) served: every family is served here too, with the same
//! type and labels, or stands in the table of what is missing.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use observer::metrics::{
    Row,
    compat::{CADVISOR_PATH, MISSING, RESOURCE_PATH, cadvisor, resource},
};

/// What dashboards, rules and alerts of kubernetes-mixin query of cAdvisor, besides its dashboards for Windows:
/// `container_` names in dashboards/, rules/apps.libsonnet and alerts/resource_alerts.libsonnet of
/// github.com/kubernetes-monitoring/kubernetes-mixin.
const OF_KUBERNETES_MIXIN: [&str; 18] = [
    "container_cpu_cfs_periods_total",
    "container_cpu_cfs_throttled_periods_total",
    "container_cpu_cfs_throttled_seconds_total",
    "container_cpu_usage_seconds_total",
    "container_fs_reads_bytes_total",
    "container_fs_reads_total",
    "container_fs_writes_bytes_total",
    "container_fs_writes_total",
    "container_memory_cache",
    "container_memory_rss",
    "container_memory_swap",
    "container_memory_working_set_bytes",
    "container_network_receive_bytes_total",
    "container_network_receive_packets_dropped_total",
    "container_network_receive_packets_total",
    "container_network_transmit_bytes_total",
    "container_network_transmit_packets_dropped_total",
    "container_network_transmit_packets_total",
];

/// Type and label names of a family.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Shape {
    family_type: String,
    labels: BTreeSet<String>,
}

/// Families of one exposition. Label values in the fixtures hold no quotes.
fn families(text: &str) -> BTreeMap<String, Shape> {
    let mut found: BTreeMap<String, Shape> = BTreeMap::new();
    for line in text.lines() {
        if let Some((name, family_type)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            found.entry(name.into()).or_default().family_type = family_type.into();
        } else if !line.starts_with('#') {
            let name = line.split(['{', ' ']).next().unwrap();
            let labels = line.split_once('{').map_or("", |(_, rest)| rest.rsplit_once('}').unwrap().0);
            let names = labels.split("\",").filter_map(|pair| Some(pair.split_once("=\"")?.0.to_owned()));
            found.get_mut(name).unwrap().labels.extend(names);
        }
    }
    found
}

fn fixture(name: &str) -> BTreeMap<String, Shape> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/kubelet").join(name);
    let found = families(&fs::read_to_string(&path).unwrap());
    assert!(found.len() > 10, "{} has hardly a family", path.display());
    found
}

fn served(rows: &[Row]) -> BTreeMap<String, Shape> {
    let shape = |row: &Row| Shape {
        family_type: row.family_type.as_str().into(),
        labels: row.labels.iter().map(ToString::to_string).collect(),
    };
    rows.iter().map(|row| (row.name.to_owned(), shape(row))).collect()
}

fn missing(path: &str) -> BTreeSet<String> {
    MISSING.iter().filter(|row| row.path == path).map(|row| row.name.to_owned()).collect()
}

fn compare(path: &str, rows: &[Row], fixtures: [&str; 2]) {
    let (served, missing) = (served(rows), missing(path));
    let mut theirs = BTreeMap::new();
    for name in fixtures {
        for (family, shape) in fixture(name) {
            match served.get(&family) {
                Some(ours) => assert_eq!(*ours, shape, "{family} of {name}"),
                None => assert!(missing.contains(&family), "{family} of {name} is neither served nor in MISSING"),
            }
            theirs.insert(family, shape);
        }
    }
    for family in served.keys() {
        assert!(!missing.contains(family), "{family} is in MISSING and is served");
        assert!(theirs.contains_key(family), "{family} is served and no kubelet has it");
    }
    for family in &missing {
        assert!(theirs.contains_key(family), "{family} is in MISSING and no kubelet has it");
    }
}

#[test]
fn cadvisor_s_families_are_served_or_missing_for_a_reason() {
    compare(CADVISOR_PATH, cadvisor::ALL, ["hybrid_cadvisor.prom", "v2_cadvisor.prom"]);
}

#[test]
fn the_resource_families_are_served_or_missing_for_a_reason() {
    compare(RESOURCE_PATH, resource::ALL, ["hybrid_resource.prom", "v2_resource.prom"]);
}

/// What a kubelet has may be missing for a reason; what is queried may not.
#[test]
fn what_kubernetes_mixin_queries_is_served() {
    let (served, missing) = (served(cadvisor::ALL), missing(CADVISOR_PATH));
    for name in OF_KUBERNETES_MIXIN {
        assert!(!missing.contains(name), "{name} is queried and in MISSING");
        let shape = served.get(name).unwrap_or_else(|| panic!("{name} is queried and not served"));
        // What its queries select and sum by.
        for label in ["namespace", "pod", "container", "image"] {
            assert!(shape.labels.contains(label), "{name} has no label {label}");
        }
    }
}

#[test]
fn every_missing_row_says_why_once() {
    let mut seen = BTreeSet::new();
    for row in MISSING {
        assert!(seen.insert((row.path, row.name)), "{} is there twice", row.name);
        assert!(row.reason.ends_with('.') && row.reason.len() > 20, "{}", row.name);
        assert!([CADVISOR_PATH, RESOURCE_PATH].contains(&row.path), "{}", row.path);
    }
}

/// What the golden tests wrote has the catalogue's families and no other.
#[test]
fn what_is_written_is_in_the_catalogue() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/compat");
    for (rows, names) in [
        (cadvisor::ALL, ["v2_cadvisor.prom", "hybrid_cadvisor.prom"]),
        (resource::ALL, ["v2_resource.prom", "hybrid_resource.prom"]),
    ] {
        let served = served(rows);
        let mut written = BTreeSet::new();
        for name in names {
            for (family, shape) in families(&fs::read_to_string(directory.join(name)).unwrap()) {
                assert_eq!(served.get(&family), Some(&shape), "{family} of {name}");
                written.insert(family);
            }
        }
        let never: Vec<_> = served.keys().filter(|family| !written.contains(*family)).collect();
        assert!(never.is_empty(), "in the catalogue and in no golden file: {never:?}");
    }
}
