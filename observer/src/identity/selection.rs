//! Which pods are observed. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    str::FromStr,
    time::Duration,
};

use super::selector::Selector;

/// How long a pod that nobody has named yet is waited for. After that it is judged as one without a namespace, labels
/// and annotations.
const PATIENCE: Duration = Duration::from_secs(2);

/// Names, as `a,b,c`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NameSet(BTreeSet<String>);

impl FromStr for NameSet {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        let names = text.split(',').map(str::trim).filter(|name| !name.is_empty());
        Ok(Self(names.map(str::to_owned).collect()))
    }
}

/// What to observe; by default everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selection {
    /// Pods of these namespaces alone, unless there is none in it.
    pub namespaces: NameSet,
    /// No pods of these.
    pub exclude_namespaces: NameSet,
    /// Pods with these labels.
    pub labels: Selector,
    /// Pods with these annotations.
    pub annotations: Selector,
}

/// What is known of a pod.
#[derive(Debug, Clone, Copy)]
pub struct PodFacts<'a> {
    /// Its namespace; empty while nobody has told it, and its labels and annotations neither.
    pub namespace: &'a str,
    /// Its labels.
    pub labels: &'a BTreeMap<String, String>,
    /// Its annotations.
    pub annotations: &'a BTreeMap<String, String>,
}

/// What becomes of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is observed.
    Observe,
    /// It is not.
    LeaveOut,
    /// Nobody has told enough of it yet.
    Wait,
}

impl Selection {
    /// True when everything is observed, whatever it is.
    #[must_use]
    pub fn is_all(&self) -> bool {
        *self == Self::default()
    }

    /// What becomes of a pod that was first seen so long ago.
    #[must_use]
    pub fn judge(&self, pod: PodFacts<'_>, seen: Duration) -> Verdict {
        if self.is_all() {
            return Verdict::Observe;
        }
        if pod.namespace.is_empty() && seen < PATIENCE {
            return Verdict::Wait;
        }
        let named = self.namespaces.0.is_empty() || self.namespaces.0.contains(pod.namespace);
        let selected = named
            && !self.exclude_namespaces.0.contains(pod.namespace)
            && self.labels.matches(pod.labels)
            && self.annotations.matches(pod.annotations);
        if selected { Verdict::Observe } else { Verdict::LeaveOut }
    }
}

impl Selection {
    /// Whether a pod that is gone already, and of which no more than this was told, would have been observed.
    #[must_use]
    pub fn allows(&self, namespace: &str) -> bool {
        let named = self.namespaces.0.is_empty() || self.namespaces.0.contains(namespace);
        namespace.is_empty() || (named && !self.exclude_namespaces.0.contains(namespace))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selection(namespaces: &str, exclude: &str, labels: &str, annotations: &str) -> Selection {
        Selection {
            namespaces: namespaces.parse().unwrap(),
            exclude_namespaces: exclude.parse().unwrap(),
            labels: labels.parse().unwrap(),
            annotations: annotations.parse().unwrap(),
        }
    }

    fn pairs(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn all_must_agree() {
        let (labels, annotations) = (pairs(&[("app", "web")]), pairs(&[("observe", "true")]));
        let pod = PodFacts { namespace: "shop", labels: &labels, annotations: &annotations };
        for (what, expected) in [
            (selection("", "", "", ""), Verdict::Observe),
            (selection("shop, bank", "", "", ""), Verdict::Observe),
            (selection("bank", "", "", ""), Verdict::LeaveOut),
            (selection("", "kube-system,shop", "", ""), Verdict::LeaveOut),
            (selection("shop", "kube-system", "app=web", "observe=true"), Verdict::Observe),
            (selection("shop", "", "app=db", ""), Verdict::LeaveOut),
            (selection("shop", "", "", "observe!=true"), Verdict::LeaveOut),
        ] {
            assert_eq!(what.judge(pod, Duration::ZERO), expected, "{what:?}");
        }
    }

    #[test]
    fn who_is_not_named_is_waited_for_and_then_judged_as_it_is() {
        let nothing = BTreeMap::new();
        let pod = PodFacts { namespace: "", labels: &nothing, annotations: &nothing };
        assert_eq!(selection("", "", "", "").judge(pod, Duration::ZERO), Verdict::Observe);
        for (what, expected) in [
            (selection("", "kube-system", "", ""), Verdict::Observe),
            (selection("shop", "", "", ""), Verdict::LeaveOut),
            (selection("", "", "app", ""), Verdict::LeaveOut),
            (selection("", "", "!app", ""), Verdict::Observe),
        ] {
            assert_eq!(what.judge(pod, PATIENCE - Duration::from_millis(1)), Verdict::Wait, "{what:?}");
            assert_eq!(what.judge(pod, PATIENCE), expected, "{what:?}");
        }
    }
}
