//! What the kernel itself counted in a network namespace: independent of every probe.

use std::collections::BTreeMap;
use std::ops::Sub;

use anyhow::{Context, Result, bail};

/// Readings before the counters are said to move all the time.
const TRIES: usize = 200;

/// The counters of an interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// Bytes received, with link headers (14 bytes for each packet on a veth, none on `lo`).
    pub rx_bytes: u64,
    /// Packets received.
    pub rx_packets: u64,
    /// Packets received and dropped.
    pub rx_dropped: u64,
    /// Bytes sent, with link headers.
    pub tx_bytes: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Packets to send that were dropped.
    pub tx_dropped: u64,
}

/// All counters of a network namespace at a time, or what was added to them between two times.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Truth {
    /// Interfaces by name.
    pub interfaces: BTreeMap<String, Interface>,
    /// Protocol counters: `Ip.InReceives`, `Tcp.ActiveOpens`, `Udp.RcvbufErrors`, `Ip6.InOctets`…
    pub protocols: BTreeMap<String, i64>,
}

impl Truth {
    /// Reads the counters of the network namespace that a process is in.
    pub fn of_process(pid: u32) -> Result<Self> {
        let read = |file: &str| {
            let path = format!("/proc/{pid}/net/{file}");
            std::fs::read_to_string(&path).with_context(|| format!("reading the counters in {path}"))
        };
        // The files are read one after another. What comes in meanwhile would be in some and not in others: read again
        // until the interfaces are the same before and after.
        let mut interfaces = parse_dev(&read("dev")?);
        for _ in 0..TRIES {
            let mut protocols = parse_snmp(&read("snmp")?);
            protocols.extend(parse_snmp(&read("netstat")?));
            // Absent when the kernel has no IPv6.
            protocols.extend(parse_snmp6(&read("snmp6").unwrap_or_default()));
            let after = parse_dev(&read("dev")?);
            if after == interfaces {
                return Ok(Self { interfaces, protocols });
            }
            interfaces = after;
        }
        bail!("the counters of process {pid} did not stand still for {TRIES} readings: something still sends")
    }

    /// The counters of an interface; zero when there is none of this name.
    pub fn interface(&self, name: &str) -> Interface {
        self.interfaces.get(name).copied().unwrap_or_default()
    }

    /// An interface without the IPv6 multicast that came in and went out, which is the kernel's own talk
    /// (group memberships); right when all of that passed this interface.
    pub fn without_multicast(&self, name: &str) -> Interface {
        const HEADER: u64 = 14;
        let count = |name: &str| u64::try_from(self.protocol(name)).unwrap_or(0);
        let (rx, tx) = (count("Ip6.InMcastPkts"), count("Ip6.OutMcastPkts"));
        let all = self.interface(name);
        Interface {
            rx_packets: all.rx_packets.saturating_sub(rx),
            rx_bytes: all.rx_bytes.saturating_sub(count("Ip6.InMcastOctets") + rx * HEADER),
            tx_packets: all.tx_packets.saturating_sub(tx),
            tx_bytes: all.tx_bytes.saturating_sub(count("Ip6.OutMcastOctets") + tx * HEADER),
            ..all
        }
    }

    /// A protocol counter; zero when there is none of this name.
    pub fn protocol(&self, name: &str) -> i64 {
        self.protocols.get(name).copied().unwrap_or_default()
    }
}

impl Sub for &Truth {
    type Output = Truth;

    /// What was counted since `earlier`.
    fn sub(self, earlier: &Truth) -> Truth {
        let interfaces = self
            .interfaces
            .iter()
            .map(|(name, now)| {
                let then = earlier.interface(name);
                (
                    name.clone(),
                    Interface {
                        rx_bytes: now.rx_bytes - then.rx_bytes,
                        rx_packets: now.rx_packets - then.rx_packets,
                        rx_dropped: now.rx_dropped - then.rx_dropped,
                        tx_bytes: now.tx_bytes - then.tx_bytes,
                        tx_packets: now.tx_packets - then.tx_packets,
                        tx_dropped: now.tx_dropped - then.tx_dropped,
                    },
                )
            })
            .collect();
        let protocols = self.protocols.iter().map(|(name, now)| (name.clone(), now - earlier.protocol(name))).collect();
        Truth { interfaces, protocols }
    }
}

/// A counter in the text of `/proc/<pid>/net/snmp` or `netstat`; zero when there is none of this name.
pub fn counter(text: &str, name: &str) -> i64 {
    parse_snmp(text).get(name).copied().unwrap_or_default()
}

fn parse_dev(text: &str) -> BTreeMap<String, Interface> {
    let mut found = BTreeMap::new();
    for line in text.lines().skip(2) {
        let Some((name, values)) = line.split_once(':') else { continue };
        let values: Vec<u64> = values.split_whitespace().flat_map(str::parse).collect();
        let &[rx_bytes, rx_packets, _, rx_dropped, _, _, _, _, tx_bytes, tx_packets, _, tx_dropped, ..] = &values[..]
        else {
            continue;
        };
        let interface = Interface { rx_bytes, rx_packets, rx_dropped, tx_bytes, tx_packets, tx_dropped };
        found.insert(name.trim().to_owned(), interface);
    }
    found
}

/// Pairs of lines: names, then values, both behind the protocol.
fn parse_snmp(text: &str) -> BTreeMap<String, i64> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = BTreeMap::new();
    for pair in lines.chunks_exact(2) {
        let (Some((protocol, names)), Some((_, values))) = (pair[0].split_once(':'), pair[1].split_once(':')) else {
            continue;
        };
        for (name, value) in names.split_whitespace().zip(values.split_whitespace()) {
            if let Ok(value) = value.parse() {
                found.insert(format!("{protocol}.{name}"), value);
            }
        }
    }
    found
}

/// A name and a value on each line; `Udp6InDatagrams` becomes `Udp6.InDatagrams`.
fn parse_snmp6(text: &str) -> BTreeMap<String, i64> {
    text.lines()
        .filter_map(|line| {
            let (name, value) = line.split_once(char::is_whitespace)?;
            let (protocol, rest) = name.split_once('6')?;
            Some((format!("{protocol}6.{rest}"), value.trim().parse().ok()?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read_and_subtracted() {
        let dev =
            "Inter-|   Receive |  Transmit\n face |bytes packets\n    lo:  100 2 0 1 0 0 0 0  300 4 0 5 0 0 0 0\n";
        let lo = parse_dev(dev)["lo"];
        assert_eq!((lo.rx_bytes, lo.rx_packets, lo.rx_dropped), (100, 2, 1));
        assert_eq!((lo.tx_bytes, lo.tx_packets, lo.tx_dropped), (300, 4, 5));
        let snmp = parse_snmp("Tcp: MaxConn ActiveOpens\nTcp: -1 7\nUdp: InDatagrams\nUdp: 3\n");
        assert_eq!((snmp["Tcp.MaxConn"], snmp["Tcp.ActiveOpens"], snmp["Udp.InDatagrams"]), (-1, 7, 3));
        assert_eq!(parse_snmp6("Udp6InDatagrams  \t9\n")["Udp6.InDatagrams"], 9);
        let now = Truth { interfaces: [("lo".to_owned(), lo)].into(), protocols: snmp };
        let added = &now - &Truth::default();
        assert_eq!(added, now);
        let talk = [("Ip6.InMcastPkts", 1), ("Ip6.InMcastOctets", 36)];
        let protocols = talk.map(|(name, value)| (name.to_owned(), value)).into();
        let quiet = Truth { protocols, ..now.clone() }.without_multicast("lo");
        assert_eq!((quiet.rx_packets, quiet.rx_bytes, quiet.tx_packets), (1, 50, 4));
        assert_eq!((&now - &now).interface("lo"), Interface::default());
    }
}
