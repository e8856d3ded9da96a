//! Parsers of option values. Pure; their errors say what a good value looks like.

use std::net::SocketAddr;

use crate::metrics::compat::{CADVISOR_PATH, RESOURCE_PATH};

/// Paths that the web side needs for itself.
const RESERVED_PATHS: [&str; 5] = ["/", "/healthz", "/readyz", CADVISOR_PATH, RESOURCE_PATH];

/// Parses `IP:PORT`, `[IPv6]:PORT` or `:PORT`.
pub(crate) fn listen_address(text: &str) -> Result<SocketAddr, String> {
    let full = if text.starts_with(':') { format!("0.0.0.0{text}") } else { text.to_owned() };
    full.parse()
        .map_err(|_| "not an IP address with a port; write it like 127.0.0.1:10836, [::1]:10836 or :10836".to_owned())
}

/// Parses the path of the metrics: absolute, plain characters, not one that the web side needs for itself.
pub(super) fn telemetry_path(text: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/-_.~".contains(c);
    if !text.starts_with('/') || !text.chars().all(plain) {
        return Err("must begin with / and have only letters, digits and / - _ . ~, like /metrics".to_owned());
    }
    if RESERVED_PATHS.contains(&text) {
        return Err(format!(
            "{} are taken by the agent itself; choose another, like /metrics",
            RESERVED_PATHS.join(", ")
        ));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        assert_eq!(listen_address(":80").unwrap().to_string(), "0.0.0.0:80");
        assert_eq!(listen_address("[::1]:80").unwrap().to_string(), "[::1]:80");
        for bad in ["", "80", "localhost:80", "1.2.3.4", "1.2.3.4:70000", "::1:x"] {
            assert!(listen_address(bad).unwrap_err().contains("127.0.0.1:10836"), "{bad}");
        }
    }

    #[test]
    fn paths() {
        assert_eq!(telemetry_path("/a/b-c").unwrap(), "/a/b-c");
        for bad in [
            "",
            "metrics",
            "/",
            "/healthz",
            "/readyz",
            "/metrics/cadvisor",
            "/metrics/resource",
            "/{x}",
            "/a b",
            "/*",
            "/é",
            "/?x",
        ] {
            assert!(telemetry_path(bad).is_err(), "{bad}");
        }
    }
}
