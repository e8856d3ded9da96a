//! Comparing what was reported with what was sent and with what the kernel counted.

use std::net::IpAddr;
use std::ops::Add;

use anyhow::{Result, ensure};

use crate::actor::Traffic;
use crate::samples::Samples;
use crate::truth::{Interface, Truth};

/// Bytes and packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Bytes at IP level.
    pub bytes: u64,
    /// Packets.
    pub packets: u64,
}

impl Add for Count {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { bytes: self.bytes + other.bytes, packets: self.packets + other.packets }
    }
}

/// What a container (or with an empty name: the whole pod) sent or received, between two scrapes.
pub struct Counted<'a> {
    /// The earlier scrape.
    pub before: &'a Samples,
    /// The later one.
    pub after: &'a Samples,
}

impl Interface {
    /// What came in, at IP level; `link` is the length of a link header as this interface counts it.
    pub fn received(self, link: u64) -> Count {
        Count { bytes: self.rx_bytes - self.rx_packets * link, packets: self.rx_packets }
    }

    /// What went out, likewise.
    pub fn sent(self, link: u64) -> Count {
        Count { bytes: self.tx_bytes - self.tx_packets * link, packets: self.tx_packets }
    }
}

/// What the agent calls the directions.
pub const DIRECTIONS: [&str; 2] = ["transmit", "receive"];

impl Counted<'_> {
    /// The sum of all series that have these labels.
    pub fn of(&self, labels: &[(&str, &str)]) -> Count {
        let difference = |name: &str| {
            let sum = self.after.sum(name, labels) - self.before.sum(name, labels);
            // Counters below 2^53 are exact in a float, and one that went back is negative.
            sum as u64
        };
        Count {
            bytes: difference("observer_traffic_bytes_total"),
            packets: difference("observer_traffic_packets_total"),
        }
    }

    /// What a container sent.
    pub fn sent(&self, pod: &str, container: &str) -> Count {
        self.of(&[("pod", pod), ("container", container), ("direction", "transmit")])
    }

    /// What a container received.
    pub fn received(&self, pod: &str, container: &str) -> Count {
        self.of(&[("pod", pod), ("container", container), ("direction", "receive")])
    }

    /// What all containers of a pod sent or received.
    pub fn pod(&self, pod: &str, direction: &str) -> Count {
        self.of(&[("pod", pod), ("direction", direction)])
    }
}

/// The payload in TCP packets: without headers of 20 (IPv4) or 40 (IPv6) and 32 bytes (timestamps), and without the
/// 8 bytes more that the SYN or SYN-ACK of each connection has (maximum segment size, SACK permitted, window scale).
/// What was sent twice is in it twice, and so are the options that tell of it.
pub fn tcp_payload(count: Count, connections: u64, address: IpAddr) -> i128 {
    let header = ip_header(address) + 32;
    i128::from(count.bytes) - i128::from(count.packets * header) - i128::from(connections * 8)
}

/// What older kernels hide from every egress hook: the SYN-ACK of an IPv6 connection, one packet of 80 bytes. It leaves
/// with the listener's socket but belongs to a request's, and `BPF_CGROUP_RUN_PROG_INET_EGRESS` asked for both to be the
/// same (include/linux/bpf-cgroup.h). Seen on 5.10 and 6.1, not on 6.12. Gives what may be missing: nothing, and on such
/// kernels exactly one packet for each connection.
pub fn hidden_syn_acks(connections: u64, address: IpAddr) -> Vec<Count> {
    let mut allowed = vec![Count::default()];
    if address.is_ipv6() && super::kernel_older_than(6, 12) {
        allowed.push(Count { bytes: connections * 80, packets: connections });
    }
    allowed
}

/// Segments that the kernel itself says it sent again, or told of with further options.
pub fn sent_again<'a>(truths: impl Iterator<Item = &'a Truth>) -> i64 {
    let names = ["Tcp.RetransSegs", "TcpExt.TCPDSACKOldSent", "TcpExt.TCPDSACKOfoSent", "TcpExt.TCPOFOQueue"];
    truths.map(|truth| names.iter().map(|name| truth.protocol(name)).sum::<i64>()).sum()
}

/// Bytes of an IP header without options.
pub fn ip_header(address: IpAddr) -> u64 {
    if address.is_ipv4() { 20 } else { 40 }
}

/// Checks a TCP exchange, each end in each direction, against the payload that was sent. Where the kernel itself says
/// that it sent something again (its own counters of retransmitted segments and of duplicates told by SACK, in the
/// namespaces of both ends), at least
/// the payload must be there; that nothing was counted twice is then said by the interface alone.
pub fn check_tcp(
    counted: &Counted<'_>,
    (client_pod, client): (&str, &str),
    (server_pod, server): (&str, &str),
    address: IpAddr,
    sent: Traffic,
    truths: &[&Truth],
) -> Result<()> {
    let again = sent_again(truths.iter().copied());
    let ends = [
        ("the client's transmit", counted.sent(client_pod, client), sent.sent_bytes),
        ("the server's receive", counted.received(server_pod, server), sent.sent_bytes),
        ("the server's transmit", counted.sent(server_pod, server), sent.received_bytes),
        ("the client's receive", counted.received(client_pod, client), sent.received_bytes),
    ];
    for (what, count, payload) in ends {
        let hidden = if what == "the server's transmit" { sent.connections } else { 0 };
        let right = hidden_syn_acks(hidden, address).into_iter().any(|hidden| {
            let more = tcp_payload(count + hidden, sent.connections, address) - i128::from(payload);
            // The jumbogram's option of IPv6, see `check_loopback`.
            let options = more % 8 == 0 && more <= i128::from(count.packets * 8) && address.is_ipv6();
            more == 0 || (more > 0 && (again > 0 || options))
        });
        ensure!(
            right,
            "{what}: {count:?} hold {} bytes of payload in {} connections, {payload} were sent ({again} segments again)",
            tcp_payload(count, sent.connections, address),
            sent.connections
        );
    }
    Ok(())
}

/// Checks datagrams in one direction.
pub fn check_udp(what: &str, count: Count, datagrams: u64, payload: u64, address: IpAddr) -> Result<()> {
    let expected = Count { bytes: payload + datagrams * (ip_header(address) + 8), packets: datagrams };
    ensure!(count == expected, "{what}: reported {count:?}, sent {expected:?}");
    Ok(())
}

/// How many packets may have met no socket, so that no program of a cgroup saw them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unmet {
    /// A segment that is sent again because its acknowledgement was late may find its connection ended: for one in TIME_WAIT, and
    /// for one that is gone, the kernel itself answers, with an ACK or a reset of nobody's (`tcp_v4_timewait_ack` and
    /// `tcp_v4_send_reset` in net/ipv4/tcp_ipv4.c), and that may meet no socket either.
    again: u64,
    /// Such a reset, which the kernel counts, may be sent though nothing was sent again: each CPU receives what it has sent over
    /// loopback, and so an ACK may come late, when its connection has ended by others that another CPU has received. It meets no
    /// socket, and the reset that answers it, which has no options, may not either.
    resets: u64,
}

impl Unmet {
    /// Of what the kernel says that it has sent again, and reset: mostly nothing.
    pub fn of<'a>(truths: impl Iterator<Item = &'a Truth>) -> Self {
        let mut unmet = Self { again: 0, resets: 0 };
        for truth in truths {
            let count = |name| u64::try_from(truth.protocol(name)).unwrap_or(0);
            unmet.again += 3 * count("Tcp.RetransSegs");
            unmet.resets += count("Tcp.OutRsts");
        }
        unmet
    }

    fn none(self) -> bool {
        self.again == 0 && self.resets == 0
    }

    /// Whether so many bytes in so many packets may be these.
    fn may_be(self, packets: u64, bytes: u64) -> bool {
        /// A reset of IPv4 and of IPv6, and an ACK with as many options as fit.
        const SHORTEST: u64 = 40;
        const RESET: u64 = 60;
        const ACK: u64 = 100;
        const LONGEST: u64 = 1 << 17;
        let again = packets.min(self.again);
        let resets = (packets - again).min(self.resets);
        let acks = packets - again - resets;
        let most = again * LONGEST + resets * RESET + acks * ACK;
        acks <= resets && (packets * SHORTEST..=most).contains(&bytes)
    }
}

/// Whether `count` is `truth`, but for what met no socket.
pub fn is_all(count: Count, truth: Count, unmet: Unmet) -> bool {
    let (Some(packets), Some(bytes)) = (truth.packets.checked_sub(count.packets), truth.bytes.checked_sub(count.bytes))
    else {
        return false;
    };
    unmet.may_be(packets, bytes)
}

/// Everything that came in over an interface was counted once, but for what met no socket. `truth` is what the
/// interface counted, at IP level.
pub fn check_interface(what: &str, count: Count, truth: Count, unmet: Unmet) -> Result<()> {
    ensure!(
        is_all(count, truth, unmet),
        "{what}: the agent reported {count:?}, the interface counted {truth:?}; at most these met no socket: {unmet:?}"
    );
    Ok(())
}

/// What loopback counted as received is what all sockets of the pod received over it. What they sent is the same, but
/// for headers: a large segment that was counted as one when it was sent can come in as several, each with headers of
/// its own. (IPv6 segments above 64 KiB have 8 bytes more when they are sent, a jumbogram's option, which go when they
/// are split: `ip6_xmit` in net/ipv6/ip6_output.c.)
pub fn check_loopback(
    counted: &Counted<'_>,
    pod: &str,
    truth: &Truth,
    connections: u64,
    address: IpAddr,
) -> Result<()> {
    let [sent, received] = DIRECTIONS.map(|direction| counted.pod(pod, direction));
    let lo = truth.interface("lo").received(0);
    let unmet = Unmet::of(std::iter::once(truth));
    check_interface("received over lo", received, lo, unmet)?;
    let right = hidden_syn_acks(connections, address).into_iter().any(|hidden| {
        let extra = i128::from(lo.packets) - i128::from(sent.packets + hidden.packets);
        let bytes = i128::from(lo.bytes) - i128::from(sent.bytes + hidden.bytes);
        // Headers with timestamps alone, up to headers with all the options that fit (SACK). Resets of nobody's have none.
        let (least, most) = if address.is_ipv4() { (52, 80) } else { (64, 100) };
        let least = if unmet.none() { least } else { least - 12 };
        (extra * least..=extra * most).contains(&bytes) && bytes % 4 == 0
    });
    ensure!(right, "sent over lo: {sent:?}, received: {lo:?}; {connections} connections to {address}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_that_met_no_socket_is_forgiven_only_where_the_kernel_tells_of_one() {
        let truth = Count { bytes: 1_000, packets: 10 };
        let without = |bytes: u64, packets: u64| Count { bytes: 1_000 - bytes, packets: 10 - packets };
        let [none, reset, again] = [(0, 0), (0, 1), (3, 0)].map(|(again, resets)| Unmet { again, resets });
        assert!(is_all(truth, truth, none) && !is_all(without(40, 1), truth, none));
        assert!(is_all(without(40, 1), truth, reset) && is_all(without(60, 1), truth, reset));
        assert!(!is_all(without(61, 1), truth, reset) && !is_all(without(120, 3), truth, reset));
        assert!(is_all(without(92, 2), truth, reset) && !is_all(without(161, 2), truth, reset), "an ACK and its reset");
        assert!(!is_all(without(0, 1), truth, reset) && !is_all(without(40, 0), truth, reset));
        assert!(is_all(without(300, 3), truth, again) && !is_all(without(300, 4), truth, again));
        assert!(!is_all(Count { bytes: 1_040, packets: 11 }, truth, again), "counted twice");
    }
}
