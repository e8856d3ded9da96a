//! The shared libraries that a program needs, to be packed with it.
//!
//! The guest runs the very binaries that were built for this machine, libraries and all: a static build of
//! the same would cost minutes more for every run of the tests and prove less.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::run;

/// The libraries and the loader, by absolute path; none for a static program.
pub fn of(program: &Path) -> Result<Vec<PathBuf>> {
    let output =
        Command::new("ldd").arg(program).output().with_context(|| format!("run ldd on {}", program.display()))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    if errors.contains("not a dynamic executable") || text.contains("statically linked") {
        return Ok(Vec::new());
    }
    if !output.status.success() {
        bail!("{} failed: {}", run::shown(Command::new("ldd").arg(program)), errors.trim());
    }
    parse(&text).with_context(|| format!("find the libraries of {}", program.display()))
}

fn parse(ldd: &str) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for line in ldd.lines() {
        if line.contains("not found") {
            bail!("a library is missing: {}", line.trim());
        }
        let target = line.split_once("=>").map_or(line, |(_, target)| target);
        if let Some(path) = target.split_whitespace().find(|word| word.starts_with('/')) {
            paths.push(PathBuf::from(path));
        }
    }
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_ldd_prints() {
        let text = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let paths: Vec<_> =
            ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"].map(PathBuf::from).into();
        assert_eq!(parse(text).unwrap(), paths);
        assert!(parse("\tlibx.so => not found\n").is_err());
    }
}
