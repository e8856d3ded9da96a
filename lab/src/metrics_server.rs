//! What metrics-server makes of `/metrics/resource`: what `decodeBatch` of its pkg/scraper/client/resource/decode.go takes
//! and leaves out, and what `resourceUsage` of its pkg/storage/types.go makes of two readings.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};

const CPU: &str = "cpu_usage_seconds_total";
const MEMORY: &str = "memory_working_set_bytes";
const SWAP: &str = "swap_usage_bytes";
const START: &str = "start_time_seconds";

/// A container or the node at one time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// When it started; the beginning of 1970 where nothing tells, as for the node.
    pub started: SystemTime,
    /// When this was measured.
    pub measured: SystemTime,
    /// CPU time since it started.
    pub cpu: Duration,
    /// Working set in bytes.
    pub memory: u64,
    /// Bytes swapped out.
    pub swap: u64,
}

impl Point {
    const NOTHING: Self = Self { started: UNIX_EPOCH, measured: UNIX_EPOCH, cpu: Duration::ZERO, memory: 0, swap: 0 };

    fn is_complete(&self) -> bool {
        !self.cpu.is_zero() && self.memory != 0
    }

    /// Cores in use since an earlier point.
    ///
    /// # Errors
    ///
    /// Where metrics-server has no usage for the two: something went back, or no time has passed.
    pub fn cores_since(&self, earlier: &Self) -> Result<f64> {
        ensure!(self.started >= earlier.started, "the start time went back: {earlier:?}, {self:?}");
        let used =
            self.cpu.checked_sub(earlier.cpu).with_context(|| format!("CPU went back: {earlier:?}, {self:?}"))?;
        let window = self.measured.duration_since(earlier.measured).unwrap_or_default();
        ensure!(!window.is_zero(), "no time has passed: {earlier:?}, {self:?}");
        Ok(used.as_secs_f64() / window.as_secs_f64())
    }
}

/// One reading.
#[derive(Debug, Default, PartialEq)]
pub struct Batch {
    /// The node; `None` without CPU or memory.
    pub node: Option<Point>,
    /// The containers of each pod, by its namespace and name; without pods of which a container has no CPU or no memory.
    pub pods: BTreeMap<(String, String), BTreeMap<String, Point>>,
}

/// Reads what was asked for at this time.
///
/// # Errors
///
/// When a line is no sample, or a container's lacks one of the labels.
pub fn decode(text: &str, asked: SystemTime) -> Result<Batch> {
    let mut node = Point::NOTHING;
    let mut batch = Batch::default();
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let no_sample = || format!("this is no sample: {line}");
        let end = line.rfind('}').map(|brace| brace + 1).or_else(|| line.find(' ')).with_context(no_sample)?;
        let (series, rest) = line.split_at(end);
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        let mut words = rest.split_whitespace();
        let value: f64 = words.next().and_then(|word| word.parse().ok()).with_context(no_sample)?;
        let measured = match words.next() {
            Some(word) => UNIX_EPOCH + Duration::from_millis(word.parse().with_context(no_sample)?),
            None => asked,
        };
        let (point, what) = match name.split_once('_') {
            Some(("node", what @ (CPU | MEMORY | SWAP))) => (&mut node, what),
            Some(("container", what @ (CPU | MEMORY | SWAP | START))) => {
                let label = |name| label(labels, name).with_context(|| format!("no label {name}: {line}"));
                let pod = batch.pods.entry((label("namespace")?, label("pod")?)).or_default();
                (pod.entry(label("container")?).or_insert(Point::NOTHING), what)
            }
            _ => continue,
        };
        let seconds = || Duration::try_from_secs_f64(value).with_context(no_sample);
        match what {
            CPU => point.cpu = seconds()?,
            MEMORY => point.memory = value as u64,
            SWAP => point.swap = value as u64,
            _ => point.started = UNIX_EPOCH + seconds()?,
        }
        if what != START {
            point.measured = measured;
        }
    }
    batch.node = Some(node).filter(Point::is_complete);
    batch.pods.retain(|_, containers| containers.values().all(Point::is_complete));
    Ok(batch)
}

/// The value of a label, which has no quote in it.
fn label(labels: &str, name: &str) -> Option<String> {
    let (_, rest) = labels.split_once(&format!("{name}=\""))?;
    Some(rest.split_once('"')?.0.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kubelet_s() -> String {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../observer/tests/fixtures/kubelet/v2_resource.prom");
        std::fs::read_to_string(path).unwrap()
    }

    fn pod(name: &str) -> (String, String) {
        ("demo".to_owned(), name.to_owned())
    }

    #[test]
    fn what_a_kubelet_serves_is_understood() {
        let batch = decode(&kubelet_s(), UNIX_EPOCH).unwrap();
        assert!(batch.node.is_some());
        let names: Vec<&String> = batch.pods[&pod("guaranteed-node1")].keys().collect();
        assert_eq!(names, ["burn", "idle", "sidecar"]);
        let burn = batch.pods[&pod("guaranteed-node1")]["burn"];
        assert_eq!((burn.measured, burn.memory), (UNIX_EPOCH + Duration::from_millis(1_795_229_259_429), 229_376));
        assert_eq!(burn.cpu, Duration::from_micros(7_889_975));
        let started = burn.started.duration_since(UNIX_EPOCH).unwrap();
        assert_eq!(started.as_micros(), 1_795_229_220_218_345);
    }

    #[test]
    fn without_a_timestamp_it_is_the_time_of_the_question() {
        let text: String = kubelet_s().lines().map(|line| format!("{}\n", without_timestamp(line))).collect();
        let asked = UNIX_EPOCH + Duration::from_secs(77);
        let batch = decode(&text, asked).unwrap();
        assert!(batch.pods.values().flat_map(BTreeMap::values).all(|point| point.measured == asked));
        assert_eq!(batch.pods.len(), decode(&kubelet_s(), asked).unwrap().pods.len());
    }

    fn without_timestamp(line: &str) -> &str {
        line.rsplit_once(' ').filter(|(_, last)| last.len() == 13).map_or(line, |(sample, _)| sample)
    }

    #[test]
    fn a_container_without_cpu_hides_its_pod() {
        let idle =
            "container_cpu_usage_seconds_total{container=\"burn\",namespace=\"demo\",pod=\"guaranteed-node1\"} 0\n";
        let batch = decode(&(kubelet_s() + idle), UNIX_EPOCH).unwrap();
        assert!(!batch.pods.contains_key(&pod("guaranteed-node1")) && batch.pods.contains_key(&pod("multi-node1")));
        assert!(decode("container_cpu_usage_seconds_total{container=\"c\",pod=\"p\"} 1\n", UNIX_EPOCH).is_err());
    }

    #[test]
    fn cores_are_cpu_time_by_time() {
        let at = |seconds, cpu| Point {
            measured: UNIX_EPOCH + Duration::from_secs(seconds),
            cpu: Duration::from_secs(cpu),
            ..Point::NOTHING
        };
        assert_eq!(at(14, 8).cores_since(&at(10, 2)).unwrap(), 1.5);
        assert!(at(14, 1).cores_since(&at(10, 2)).is_err());
        assert!(at(10, 2).cores_since(&at(10, 2)).is_err());
    }
}
