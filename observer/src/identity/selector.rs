//! Selectors of labels, as `kubectl --selector` takes them. Pure.
//!
//! The grammar is that of the Kubernetes documentation ("Labels and Selectors"; `Parse` in
//! staging/src/k8s.io/apimachinery/pkg/labels/selector.go), without the comparison of numbers (`<`, `>`).

use std::{collections::BTreeMap, fmt, str::FromStr};

/// Requirements that must all be met. None at all selects everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selector {
    requirements: Vec<Requirement>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Requirement {
    key: String,
    test: Test,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Test {
    /// `key`
    Exists,
    /// `!key`
    Missing,
    /// `key=value`, `key==value`, `key in (a, b)`
    In(Vec<String>),
    /// `key!=value`, `key notin (a, b)`: also when the key is not there.
    NotIn(Vec<String>),
}

/// Why a selector cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{part}` {problem}; write it like app=web,tier!=cache,env in (prod,test),canary,!legacy")]
pub struct SelectorError {
    part: String,
    problem: &'static str,
}

impl Selector {
    /// True when it selects everything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }

    /// Whether these labels meet all requirements.
    #[must_use]
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.requirements.iter().all(|requirement| {
            let value = labels.get(&requirement.key);
            match &requirement.test {
                Test::Exists => value.is_some(),
                Test::Missing => value.is_none(),
                Test::In(values) => value.is_some_and(|value| values.contains(value)),
                Test::NotIn(values) => value.is_none_or(|value| !values.contains(value)),
            }
        })
    }
}

impl FromStr for Selector {
    type Err = SelectorError;

    fn from_str(text: &str) -> Result<Self, SelectorError> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        Ok(Self { requirements: parts(text).into_iter().map(requirement).collect::<Result<_, _>>()? })
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, Requirement { key, test }) in self.requirements.iter().enumerate() {
            f.write_str(if at == 0 { "" } else { "," })?;
            match test {
                Test::Exists => write!(f, "{key}")?,
                Test::Missing => write!(f, "!{key}")?,
                Test::In(values) => write!(f, "{key} in ({})", values.join(","))?,
                Test::NotIn(values) => write!(f, "{key} notin ({})", values.join(","))?,
            }
        }
        Ok(())
    }
}

/// What stands between commas that are in no parentheses.
fn parts(text: &str) -> Vec<&str> {
    let mut inside = false;
    text.split(|c| {
        inside = match c {
            '(' => true,
            ')' => false,
            _ => inside,
        };
        c == ',' && !inside
    })
    .map(str::trim)
    .collect()
}

fn requirement(part: &str) -> Result<Requirement, SelectorError> {
    let wrong = |problem| SelectorError { part: part.to_owned(), problem };
    let make = |key: &str, test| {
        let key = key.trim();
        if is_key(key) { Ok(Requirement { key: key.to_owned(), test }) } else { Err(wrong("has no valid key")) }
    };
    if let Some(key) = part.strip_prefix('!') {
        return make(key, Test::Missing);
    }
    if let Some(rest) = part.strip_suffix(')') {
        let (before, values) = rest.split_once('(').ok_or_else(|| wrong("has no opening parenthesis"))?;
        let values = values.split(',').map(value).collect::<Option<Vec<_>>>();
        let values = values.ok_or_else(|| wrong("has a value that no label can have"))?;
        return match before.trim().rsplit_once(char::is_whitespace) {
            Some((key, "in")) => make(key, Test::In(values)),
            Some((key, "notin")) => make(key, Test::NotIn(values)),
            _ => Err(wrong("has neither `in` nor `notin` before its values")),
        };
    }
    let Some((key, rest)) = part.split_once('=') else { return make(part, Test::Exists) };
    let (key, negated) = key.strip_suffix('!').map_or((key, false), |key| (key, true));
    let rest = if negated { rest } else { rest.strip_prefix('=').unwrap_or(rest) };
    let values = vec![value(rest).ok_or_else(|| wrong("has a value that no label can have"))?];
    make(key, if negated { Test::NotIn(values) } else { Test::In(values) })
}

/// A name, with a DNS name and a slash before it or not.
fn is_key(key: &str) -> bool {
    let (prefix, name) = key.rsplit_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    let plain = |text: &str, longest| {
        (1..=longest).contains(&text.len()) && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    plain(name, 63) && prefix.is_none_or(|prefix| plain(prefix, 253))
}

/// A value without the blanks around it; annotations may have more characters than labels, but none that the grammar
/// needs.
fn value(text: &str) -> Option<String> {
    let text = text.trim();
    let bad = |c: char| c.is_control() || c.is_whitespace() || "()=!,".contains(c);
    (!text.contains(bad) && text.len() <= 253).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selects(selector: &str, labels: &[(&str, &str)]) -> bool {
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        selector.parse::<Selector>().unwrap().matches(&labels)
    }

    #[test]
    fn what_the_documentation_of_kubernetes_says() {
        let web = [("app", "web"), ("env", "prod"), ("example.com/canary", "")];
        for (selector, expected) in [
            ("", true),
            ("app=web", true),
            ("app==web", true),
            ("app=db", false),
            ("app = web , env != test", true),
            ("env!=prod", false),
            ("tier!=cache", true),
            ("env in (prod, test)", true),
            ("env in (dev)", false),
            ("tier in (cache)", false),
            ("env notin (dev,test),app", true),
            ("env notin(prod)", false),
            ("env in(prod)", true),
            ("tier notin (cache)", true),
            ("app", true),
            ("!app", false),
            ("! tier", true),
            ("tier", false),
            ("example.com/canary", true),
            ("example.com/canary=", true),
            ("example.com/canary in (,x)", true),
            ("app=", false),
            ("app=web,env=test", false),
        ] {
            assert_eq!(selects(selector, &web), expected, "{selector}");
        }
    }

    #[test]
    fn nonsense_is_refused_with_an_example() {
        for bad in [
            ",",
            "app,",
            "=web",
            "!",
            "!app=x",
            "app=web=x",
            "app in prod",
            "app in (a",
            "app (a)",
            "in (a)",
            "a b",
            "app in a)",
            "app<5",
            "a/b/c/=",
            "app=a b",
            "app in ((a))",
            "/x",
            "x/",
            "app in (a)b",
        ] {
            let error = bad.parse::<Selector>().unwrap_err().to_string();
            assert!(error.contains("write it like app=web"), "{bad}: {error}");
        }
        assert!(format!("{}=x", "k".repeat(64)).parse::<Selector>().is_err());
    }

    #[test]
    fn what_is_written_can_be_read() {
        for text in ["", "app in (web)", "a,!b,c notin (d,e),x.io/y in ()"] {
            let selector: Selector = text.parse().unwrap();
            assert_eq!(selector.to_string(), text);
            assert_eq!(selector.to_string().parse::<Selector>().unwrap(), selector);
        }
    }
}
