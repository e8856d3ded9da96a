//! Who tells of the addresses beyond this node.

use std::{fmt, path::PathBuf, str::FromStr};

use super::ResolverOptions;
use crate::identity::KubeUrl;

/// The value of `--kubernetes.peers`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PeerSource {
    /// The API server, in a cluster that is not too large for that.
    Auto,
    /// The API server.
    Watch,
    /// A resolver, which watches the cluster for all agents.
    Resolver(KubeUrl),
    /// Nobody.
    None,
}

impl FromStr for PeerSource {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "watch" => Ok(Self::Watch),
            "none" => Ok(Self::None),
            _ => text.strip_prefix("resolver=").and_then(|url| url.parse().ok()).map(Self::Resolver).ok_or_else(|| {
                "must be auto, watch, none, or resolver=URL, like resolver=http://10.96.0.7:10837".to_owned()
            }),
        }
    }
}

impl fmt::Display for PeerSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Watch => f.write_str("watch"),
            Self::Resolver(url) => write!(f, "resolver={url}"),
            Self::None => f.write_str("none"),
        }
    }
}

/// How the addresses beyond this node are learned.
#[derive(Debug, Clone)]
pub struct PeerOptions {
    /// Who tells.
    pub source: PeerSource,
    /// With more nodes than this, [`PeerSource::Auto`] asks nobody.
    pub max_nodes: u64,
    /// Whom the resolver's certificate is signed by.
    pub resolver_ca_file: PathBuf,
    /// What the resolver is shown.
    pub resolver_token_file: Option<PathBuf>,
}

impl PeerOptions {
    /// How the resolver is reached; `None` when none is asked.
    pub(in crate::identity) fn resolver(&self) -> Option<ResolverOptions> {
        let PeerSource::Resolver(url) = &self.source else { return None };
        let (ca_file, token_file) = (self.resolver_ca_file.clone(), self.resolver_token_file.clone());
        Some(ResolverOptions { url: url.clone(), ca_file, token_file })
    }

    /// The most nodes that a cluster may have whose API server is watched; `None` for any number.
    pub(super) fn most_nodes(&self) -> Option<u64> {
        (self.source == PeerSource::Auto).then_some(self.max_nodes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values() {
        for text in ["auto", "watch", "none", "resolver=https://r:10837"] {
            let source: PeerSource = text.parse().unwrap();
            assert_eq!(source.to_string(), text);
            let options =
                PeerOptions { source, max_nodes: 7, resolver_ca_file: "/ca".into(), resolver_token_file: None };
            assert_eq!(options.most_nodes(), (text == "auto").then_some(7));
            let resolver = options.resolver().map(|resolver| format!("resolver={}", resolver.url));
            assert_eq!(resolver.as_deref(), text.contains('=').then_some(text));
        }
        for bad in ["yes", "resolver", "resolver=", "resolver=10.0.0.1"] {
            assert!(bad.parse::<PeerSource>().unwrap_err().contains("auto, watch, none, or resolver=URL"), "{bad}");
        }
    }
}
