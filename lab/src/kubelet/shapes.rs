//! Which families there are of pods, with types and labels, whatever the values.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};

use crate::samples::{Sample, Samples};

/// Families of block devices. Which cgroups have any depends on what was in the page cache.
const OF_DEVICES: [&str; 2] = ["container_fs_", "container_blkio_"];

/// Whose series it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A container with a name.
    Container,
    /// The pause container.
    Pause,
    /// The pod's own cgroup.
    Pod,
    /// A cgroup above pods, such as `/kubepods`.
    Ancestor,
    /// The node: the root of the tree, or what has no cgroup.
    Node,
    /// A cgroup that has nothing to do with pods.
    Other,
}

impl Kind {
    fn of(sample: &Sample) -> Self {
        match ["pod", "container", "name"].map(|name| !sample.label(name).is_empty()) {
            [false, ..] => match sample.label("id") {
                "" | "/" => Self::Node,
                id if id.starts_with("/kubepods") => Self::Ancestor,
                _ => Self::Other,
            },
            [_, true, _] => Self::Container,
            [_, _, true] => Self::Pause,
            _ => Self::Pod,
        }
    }
}

/// One series without its values.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Shape {
    /// Whose it is.
    pub kind: Kind,
    /// The family's name.
    pub family: String,
    /// The family's type, as its TYPE line says it.
    pub family_type: String,
    /// The names of the labels.
    pub labels: BTreeSet<String>,
}

/// Those of an exposition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shapes(BTreeSet<Shape>);

impl Shapes {
    /// Reads an exposition; of series of pods only those that `wanted` takes, of others none but the node's and those above
    /// pods.
    pub fn parse(text: &str, wanted: impl Fn(&Sample) -> bool) -> Result<Self> {
        let types: BTreeMap<&str, &str> =
            text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect();
        let samples = Samples::parse(text)?;
        let taken = samples.iter().filter(|sample| match Kind::of(sample) {
            Kind::Node | Kind::Ancestor => true,
            Kind::Other => false,
            Kind::Container | Kind::Pause | Kind::Pod => wanted(sample),
        });
        let shape = |sample: &Sample| {
            let family_type =
                types.get(sample.name.as_str()).with_context(|| format!("{} has no type", sample.name))?;
            Ok(Shape {
                kind: Kind::of(sample),
                family: sample.name.clone(),
                family_type: (*family_type).to_owned(),
                labels: sample.labels.keys().cloned().collect(),
            })
        };
        taken.map(shape).collect::<Result<_>>().map(Self)
    }

    /// Those of pods.
    pub fn of_pods(&self) -> impl Iterator<Item = &Shape> {
        self.0.iter().filter(|shape| !matches!(shape.kind, Kind::Node | Kind::Ancestor))
    }

    /// Those of the node and of cgroups above pods.
    pub fn above_pods(&self) -> impl Iterator<Item = &Shape> {
        self.0.iter().filter(|shape| matches!(shape.kind, Kind::Node | Kind::Ancestor))
    }

    /// Whether this one is among them, of this very kind.
    pub fn has_exactly(&self, shape: &Shape) -> bool {
        self.0.contains(shape)
    }

    /// Whether this one is among them; of a family of block devices, for whatever cgroup.
    pub fn has(&self, shape: &Shape) -> bool {
        let of_device = OF_DEVICES.iter().any(|prefix| shape.family.starts_with(prefix));
        let same = |other: &Shape| Shape { kind: shape.kind, ..other.clone() } == *shape;
        self.0.contains(shape) || (of_device && self.0.iter().any(same))
    }

    /// Both together.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        Self(self.0.union(&other.0).cloned().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# TYPE a gauge\n\
        a{container=\"c\",name=\"x\",pod=\"p\"} 1\n\
        a{container=\"\",name=\"y\",pod=\"p\"} 1\n\
        a{container=\"\",name=\"\",pod=\"p\"} 1\n\
        a{container=\"c\",name=\"z\",pod=\"other\"} 1\n\
        # TYPE container_fs_x counter\n\
        container_fs_x{id=\"/\"} 1\n\
        container_fs_x{id=\"/system.slice\"} 1\n\
        container_fs_x{id=\"/kubepods\"} 1\n";

    #[test]
    fn kinds_types_and_labels() {
        let shapes = Shapes::parse(TEXT, |sample| sample.label("pod") == "p").unwrap();
        let kinds: Vec<Kind> = shapes.of_pods().map(|shape| shape.kind).collect();
        assert_eq!(kinds, [Kind::Container, Kind::Pause, Kind::Pod]);
        let above: Vec<Kind> = shapes.above_pods().map(|shape| shape.kind).collect();
        assert_eq!(above, [Kind::Ancestor, Kind::Node]);
        let first = shapes.of_pods().next().unwrap().clone();
        assert_eq!((first.family.as_str(), first.family_type.as_str(), first.labels.len()), ("a", "gauge", 3));
        assert!(shapes.has(&first) && !shapes.has(&Shape { family_type: "counter".into(), ..first.clone() }));
        let fewer = Shape { labels: BTreeSet::new(), ..first.clone() };
        assert!(!shapes.has(&fewer));
        let device = Shape {
            kind: Kind::Pod,
            family: "container_fs_x".into(),
            family_type: "counter".into(),
            labels: BTreeSet::from(["id".to_owned()]),
        };
        assert!(shapes.has(&device), "the kubelet had it for the node");
        assert!(Shapes::parse("untyped 1\n", |_| true).is_err());
    }
}
