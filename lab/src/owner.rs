//! Who made a thing: a process, told from a later one with the same pid by its start time.

use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

/// A process of this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Owner {
    /// The process id.
    pub pid: u32,
    /// Clock ticks from boot to the start of the process.
    pub start: u64,
}

impl Owner {
    /// The calling process.
    pub fn me() -> Self {
        static ME: OnceLock<Owner> = OnceLock::new();
        *ME.get_or_init(|| {
            let pid = std::process::id();
            Self { pid, start: start_time(pid).unwrap_or(0) }
        })
    }

    /// Whether that very process still runs.
    pub fn is_alive(self) -> bool {
        start_time(self.pid) == Some(self.start)
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.pid, self.start)
    }
}

impl FromStr for Owner {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (pid, start) = text.split_once('-').ok_or_else(|| anyhow::anyhow!("{text:?} is not <pid>-<start time>"))?;
        Ok(Self { pid: pid.parse()?, start: start.parse()? })
    }
}

/// The start time of a running process. A zombie no longer runs.
fn start_time(pid: u32) -> Option<u64> {
    parse_start_time(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Field 22 of `/proc/<pid>/stat`; the name (field 2) may hold spaces and parentheses.
fn parse_start_time(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_whitespace();
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_time_is_read_behind_an_odd_name() {
        let stat = "7 (a) b)) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4242 1 2";
        assert_eq!(parse_start_time(stat), Some(4242));
        assert_eq!(parse_start_time(&stat.replace(" S ", " Z ")), None);
    }

    #[test]
    fn an_owner_lives_until_it_ends() {
        let me = Owner::me();
        assert!(me.is_alive());
        assert_eq!(me.to_string().parse::<Owner>().unwrap(), me);
        assert!(!Owner { pid: me.pid, start: me.start + 1 }.is_alive());
    }
}
