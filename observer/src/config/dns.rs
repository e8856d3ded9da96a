//! Options of DNS, and of the names that come from it.

use std::{fmt, str::FromStr};

use clap::Args;
use observer_common::dns::{MAX_PORTS, pack_ports};

use crate::dns::Budget;

/// Options of DNS.
#[derive(Debug, Clone, Args)]
pub struct DnsOptions {
    /// The ports of resolvers, at most four, or `none`: then DNS is not observed.
    #[arg(
        id = "dns.ports", long = "dns.ports", value_name = "PORT,…", default_value = "53", help_heading = "DNS",
        value_parser = DnsPorts::from_str
    )]
    pub ports: DnsPorts,
    /// How many different names of external peers (peer_name) are shown on this node.
    ///
    /// A name is what the container asked for when it was given the address, in lower case. Peers beyond that have an empty
    /// name.
    #[arg(
        id = "traffic.peer-names", long = "traffic.peer-names", value_name = "N", help_heading = "Traffic",
        default_value_t = 500, value_parser = clap::value_parser!(u32).range(0..=10_000)
    )]
    pub peer_names: u32,
    /// The same for one container.
    #[arg(
        id = "traffic.peer-names-per-container", long = "traffic.peer-names-per-container", value_name = "N",
        default_value_t = 50, help_heading = "Traffic", value_parser = clap::value_parser!(u32).range(0..=10_000)
    )]
    pub peer_names_per_container: u32,
}

impl DnsOptions {
    /// How many names series may carry.
    #[must_use]
    pub const fn budget(&self) -> Budget {
        Budget { node: self.peer_names as usize, container: self.peer_names_per_container as usize }
    }
}

/// The ports of resolvers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsPorts(Vec<u16>);

impl DnsPorts {
    /// As the kernel programs take them; 0 for none.
    #[must_use]
    pub fn packed(&self) -> u64 {
        pack_ports(&self.0)
    }
}

impl FromStr for DnsPorts {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.trim() == "none" {
            return Ok(Self(Vec::new()));
        }
        let mut ports = Vec::new();
        for port in text.split(',') {
            match port.trim().parse() {
                Ok(port) if port != 0 => ports.push(port),
                _ => return Err(format!("{port:?} is no port; give ports from 1 to 65535, as in 53,5353, or none")),
            }
        }
        ports.sort_unstable();
        ports.dedup();
        if ports.len() > MAX_PORTS {
            return Err(format!("these are {} ports, and at most {MAX_PORTS} can be observed", ports.len()));
        }
        Ok(Self(ports))
    }
}

impl fmt::Display for DnsPorts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("none");
        }
        f.write_str(&self.0.iter().map(u16::to_string).collect::<Vec<_>>().join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_and_bounded() {
        for (text, shown) in [("53", "53"), ("5353, 53,53", "53,5353"), ("none", "none")] {
            assert_eq!(text.parse::<DnsPorts>().unwrap().to_string(), shown);
        }
        assert_eq!("none".parse::<DnsPorts>().unwrap().packed(), 0);
        for (text, message) in [("", "is no port"), ("0", "is no port"), ("53,x", "\"x\""), ("1,2,3,4,5", "at most 4")]
        {
            let error = text.parse::<DnsPorts>().unwrap_err();
            assert!(error.contains(message), "{error}");
        }
    }
}
