//! Facts about the machine that more than one command needs.

use std::path::Path;
use std::{env, fs};

use anyhow::{Result, bail};

/// Whether this process is root.
pub fn is_root() -> bool {
    fs::read_to_string("/proc/self/status").is_ok_and(|status| effective_uid(&status) == Some(0))
}

/// Refuses to go on without root, and says what for.
pub fn need_root(command: &str, why: &str) -> Result<()> {
    if is_root() {
        return Ok(());
    }
    bail!(
        "`{command}` needs root: {why}. Run it in a root shell (`sudo -s`), or with `sudo -E env PATH=$PATH {command}`"
    )
}

/// Whether a program is in PATH.
pub fn has_program(name: &str) -> bool {
    env::var_os("PATH").is_some_and(|path| env::split_paths(&path).any(|dir| dir.join(name).is_file()))
}

/// Whether packages can be installed with apt here.
pub fn has_apt() -> bool {
    has_program("apt-get") && Path::new("/etc/debian_version").exists()
}

fn effective_uid(status: &str) -> Option<u32> {
    status.lines().find_map(|line| line.strip_prefix("Uid:"))?.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_effective_uid() {
        assert_eq!(effective_uid("Name:\tx\nUid:\t1000\t0\t0\t0\n"), Some(0));
        assert_eq!(effective_uid("Uid:\t1000\t1000\t1000\t1000\n"), Some(1000));
        assert_eq!(effective_uid("Name:\tx\n"), None);
    }
}
