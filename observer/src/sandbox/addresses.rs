//! The addresses of a network namespace, read without entering it.

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    io::Read,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
    time::{Duration, Instant},
};

/// Addresses that one namespace may have; more are left out.
const MAX_ADDRESSES: usize = 1024;

/// Addresses of a namespace that was seen for less are still being given: one by one, v4 before v6.
const YOUNG: Duration = Duration::from_secs(10);
/// How long the others are taken for granted.
const FRESH: Duration = Duration::from_secs(30);
/// What is read of one file: a node that knows every route of the Internet has hundreds of megabytes.
const MAX_BYTES: u64 = 8 << 20;

/// The addresses of the namespace that a process is in, without loopback and link-local ones.
#[must_use]
pub fn of_process(procfs: &Path, pid: i32) -> BTreeSet<IpAddr> {
    let read = |file| {
        // Kernel text, but interface names in it are bytes that somebody chose.
        let mut bytes = Vec::new();
        if let Ok(file) = fs::File::open(procfs.join(pid.to_string()).join("net").join(file)) {
            // What was read before an error is as good as the rest.
            let _ = file.take(MAX_BYTES).read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let v4 = local_v4(&read("fib_trie"));
    let v6 = local_v6(&read("if_inet6"));
    v4.into_iter().map(IpAddr::V4).chain(v6.into_iter().map(IpAddr::V6)).take(MAX_ADDRESSES).collect()
}

/// Addresses that were read before, by the inode of the network namespace.
#[derive(Debug, Default)]
pub struct AddressCache {
    by_netns: HashMap<u64, Known>,
}

#[derive(Debug)]
struct Known {
    /// The process that it was read of: the kernel gives a namespace's inode to the next one soon, but not both.
    pid: i32,
    since: Instant,
    read: Instant,
    addresses: BTreeSet<IpAddr>,
}

impl AddressCache {
    /// Reads the addresses of these namespaces, each with a process in it; of those that had addresses a moment ago not
    /// again. Forgets all others.
    pub fn refresh(&mut self, procfs: &Path, holders: impl Iterator<Item = (u64, i32)>) {
        let mut before = std::mem::take(&mut self.by_netns);
        let now = Instant::now();
        for (netns, pid) in holders {
            let old = before.remove(&netns).filter(|known| known.pid == pid);
            let since = old.as_ref().map_or(now, |known| known.since);
            let fresh = |known: &Known| {
                let settled = now.saturating_duration_since(since) > YOUNG;
                settled && !known.addresses.is_empty() && now.saturating_duration_since(known.read) < FRESH
            };
            let read = || Known { pid, since, read: now, addresses: of_process(procfs, pid) };
            let known = old.filter(fresh).unwrap_or_else(read);
            self.by_netns.insert(netns, known);
        }
    }

    /// The addresses of a namespace.
    #[must_use]
    pub fn get(&self, netns: u64) -> BTreeSet<IpAddr> {
        self.by_netns.get(&netns).map(|known| known.addresses.clone()).unwrap_or_default()
    }
}

/// Reads `/proc/net/fib_trie` (`fib_trie_seq_show` in net/ipv4/fib_trie.c): a leaf `|-- ADDRESS` is followed by lines
/// for its routes, and the one that says `/32 host LOCAL` makes it an address of this host.
fn local_v4(text: &str) -> BTreeSet<Ipv4Addr> {
    let mut found = BTreeSet::new();
    let mut leaf = None;
    for line in text.lines() {
        let line = line.trim();
        if let Some(address) = line.strip_prefix("|-- ") {
            leaf = address.parse::<Ipv4Addr>().ok();
        } else if line.starts_with("/32 host LOCAL")
            && let Some(address) = leaf
            && !address.is_loopback()
            && !address.is_link_local()
        {
            found.insert(address);
        }
    }
    found
}

/// Reads `/proc/net/if_inet6` (`if6_seq_show` in net/ipv6/addrconf.c): 32 hexadecimal digits come first.
fn local_v6(text: &str) -> BTreeSet<Ipv6Addr> {
    text.lines()
        .filter_map(|line| line.split_whitespace().next().filter(|digits| digits.len() == 32))
        .filter_map(|digits| u128::from_str_radix(digits, 16).ok())
        .map(Ipv6Addr::from)
        .filter(|address| !address.is_loopback() && !address.is_unicast_link_local() && !address.is_unspecified())
        .collect()
}

/// What the fuzz target calls: reads `text` as both tables.
#[cfg(fuzzing)]
pub fn fuzz(text: &str) {
    let found = local_v4(text).len() + local_v6(text).len();
    assert!(found <= text.lines().count(), "more addresses than lines");
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIB: &str = "\
Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
     +-- 10.88.0.0/16 2 0 2
        |-- 10.88.0.0
           /16 link UNICAST
        |-- 10.88.0.9
           /32 host LOCAL
        |-- 10.88.255.255
           /32 link BROADCAST
     +-- 127.0.0.0/8 2 0 2
        |-- 127.0.0.1
           /32 host LOCAL
        |-- 169.254.1.1
           /32 host LOCAL
Local:
        |-- 10.88.0.9
           /32 host LOCAL
";

    #[test]
    fn addresses_of_a_pod() {
        assert_eq!(local_v4(FIB).into_iter().collect::<Vec<_>>(), [Ipv4Addr::new(10, 88, 0, 9)]);
        let v6 = "00000000000000000000000000000001 01 80 10 80       lo\n\
                  fe80000000000000a8bbccfffeddee00 02 40 20 80     eth0\n\
                  fd000088000000000000000000000009 02 40 00 80     eth0\n";
        assert_eq!(local_v6(v6).into_iter().collect::<Vec<_>>(), ["fd00:88::9".parse::<Ipv6Addr>().unwrap()]);
    }

    #[test]
    fn nonsense_is_no_address() {
        assert!(local_v4("/32 host LOCAL\n|-- 1.2.3\n /32 host LOCAL\n|-- x\n\u{0}").is_empty());
        assert!(local_v6("zz\n\nfd00 01\nggggggggggggggggggggggggggggggg1 01\n").is_empty());
    }
}
