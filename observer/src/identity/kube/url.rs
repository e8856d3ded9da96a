//! Where a kubelet or an API server listens. Pure.

use std::{fmt, str::FromStr};

use hyper::Uri;

/// `https://host:port`, or `http://` for a port that asks for no token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KubeUrl {
    /// Whether it speaks TLS.
    pub tls: bool,
    /// A name or an address, IPv6 without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl KubeUrl {
    /// Over TLS.
    #[must_use]
    pub fn https(host: &str, port: u16) -> Self {
        Self { tls: true, host: host.trim_matches(['[', ']']).to_owned(), port }
    }

    /// `host:port`, as the header `Host` has it.
    #[must_use]
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl FromStr for KubeUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || "must be a URL without a path, like https://10.0.0.1:10250".to_owned();
        let uri: Uri = text.parse().map_err(|_| wrong())?;
        let (tls, usual) = match uri.scheme_str() {
            Some("https") => (true, 443),
            Some("http") => (false, 80),
            _ => return Err(wrong()),
        };
        let authority = uri.authority().ok_or_else(wrong)?;
        let host = authority.host().trim_matches(['[', ']']);
        let with_port = authority.as_str().rsplit_once(']').map_or(authority.as_str(), |(_, rest)| rest).contains(':');
        if host.is_empty()
            || authority.as_str().contains('@')
            || !matches!(uri.path(), "" | "/")
            || uri.query().is_some()
            || (with_port && authority.port_u16().is_none())
        {
            return Err(wrong());
        }
        Ok(Self { tls, host: host.to_owned(), port: authority.port_u16().unwrap_or(usual) })
    }
}

impl fmt::Display for KubeUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", if self.tls { "https" } else { "http" }, self.authority())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values() {
        for (text, shown) in [
            ("https://127.0.0.1:10250", "https://127.0.0.1:10250"),
            ("https://node.example/", "https://node.example:443"),
            ("http://[::1]:10255", "http://[::1]:10255"),
            ("https://[fd00::1]", "https://[fd00::1]:443"),
        ] {
            assert_eq!(text.parse::<KubeUrl>().unwrap().to_string(), shown);
        }
        assert_eq!("https://[::1]:1".parse::<KubeUrl>().unwrap().host, "::1");
        assert_eq!(KubeUrl::https("[::1]", 6443).to_string(), "https://[::1]:6443");
        for bad in [
            "",
            "auto",
            "127.0.0.1:10250",
            "ftp://x",
            "https://",
            "https://a/b",
            "https://a?x",
            "https://u:p@a",
            "https://a:b",
            "https://a:70000",
            "https://a:",
            "unix:///x",
        ] {
            assert!(bad.parse::<KubeUrl>().unwrap_err().contains("https://10.0.0.1:10250"), "{bad}");
        }
    }
}
