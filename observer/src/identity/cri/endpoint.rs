//! Where the container runtime listens.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

/// Where runtimes listen, the most usual first: containerd, CRI-O, cri-dockerd, the containerd that k3s brings.
pub const USUAL: [&str; 4] = [
    "/run/containerd/containerd.sock",
    "/run/crio/crio.sock",
    "/var/run/cri-dockerd.sock",
    "/run/k3s/containerd/containerd.sock",
];

/// The value of `--cri.endpoint`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// The first of [`USUAL`] that is there and answers.
    Auto,
    /// No runtime is asked.
    None,
    /// This socket.
    Unix(PathBuf),
}

impl Endpoint {
    /// The sockets to try, in this order: those of `usual` that are there, or the one that was said. `exists` says
    /// whether a path is there.
    ///
    /// A socket that is there need not be a runtime: Docker's containerd, which has this interface switched off, listens
    /// beside cri-dockerd and beside the containerd of k3s.
    pub fn sockets(&self, usual: &[PathBuf], exists: impl Fn(&Path) -> bool) -> Vec<PathBuf> {
        match self {
            Self::Auto => usual.iter().filter(|path| exists(path)).cloned().collect(),
            Self::None => Vec::new(),
            Self::Unix(path) => vec![path.clone()],
        }
    }
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "none" => Ok(Self::None),
            _ => match text.strip_prefix("unix://") {
                Some(path) if path.len() > 1 && path.starts_with('/') => Ok(Self::Unix(path.into())),
                _ => Err("must be auto, none, or a Unix socket like unix:///run/containerd/containerd.sock".to_owned()),
            },
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::None => f.write_str("none"),
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values() {
        for good in ["auto", "none", "unix:///a/b.sock"] {
            assert_eq!(good.parse::<Endpoint>().unwrap().to_string(), good);
        }
        for bad in ["", "Auto", "/run/x.sock", "unix://", "unix:///", "unix://x.sock", "tcp://1.2.3.4:5", "npipe:x"] {
            assert!(bad.parse::<Endpoint>().unwrap_err().contains("unix:///run"), "{bad}");
        }
    }

    #[test]
    fn those_that_are_there() {
        let usual = USUAL.map(PathBuf::from);
        assert_eq!(Endpoint::Auto.sockets(&usual, |_| true), usual);
        let containerds = |path: &Path| path.ends_with("containerd.sock");
        assert_eq!(Endpoint::Auto.sockets(&usual, containerds), [usual[0].clone(), usual[3].clone()]);
        assert!(Endpoint::Auto.sockets(&usual, |_| false).is_empty());
        assert!(Endpoint::None.sockets(&usual, |_| true).is_empty());
        assert_eq!(Endpoint::Unix("/x".into()).sockets(&usual, |_| false), [PathBuf::from("/x")], "said is said");
    }
}
