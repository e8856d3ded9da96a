//! Debian's kernels, fetched once and kept.

use std::path::{Path, PathBuf};
use std::{fmt, fs};

use anyhow::{Context as _, Result, bail};

use crate::mirror::{Mirror, Suite};
use crate::steps::doing;
use crate::workspace::Workspace;

/// Debian's kernel for virtual machines: smaller than the usual one, the same network stack.
const PACKAGE: &str = "linux-image-cloud-amd64";

/// Which kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Release {
    /// Linux 5.10.
    Bullseye,
    /// Linux 6.1.
    Bookworm,
    /// Linux 6.12.
    Trixie,
    /// The newest of the mirror.
    Newest,
}

/// A kernel, unpacked.
pub struct Kernel {
    /// As `uname -r` says it.
    pub version: String,
    /// The kernel itself.
    pub image: PathBuf,
    /// Where its modules are.
    pub modules: PathBuf,
}

impl Release {
    /// The one that `cargo xtask test` boots: pure cgroup v2, and another branch than most machines run.
    pub const SMOKE: Self = Self::Bookworm;

    /// Suites of the archive that have it; the first that works is taken.
    pub fn suites(self) -> &'static [&'static str] {
        match self {
            Self::Bullseye => &["bullseye"],
            Self::Bookworm => &["bookworm"],
            Self::Trixie => &["trixie"],
            Self::Newest => &["sid", "trixie-backports"],
        }
    }
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Bullseye => "5.10",
            Self::Bookworm => "6.1",
            Self::Trixie => "6.12",
            Self::Newest => "newest",
        })
    }
}

/// The kernel of a release, and whether it had to be fetched.
///
/// One that is kept is used for good, so that runs compare; to have a newer one, remove its directory.
pub fn ensure(workspace: &Workspace, release: Release) -> Result<(Kernel, bool)> {
    let kernels = workspace.own("vm/kernels");
    let mut errors = Vec::new();
    for suite in release.suites() {
        let dir = kernels.join(suite);
        if let Ok(kernel) = open(&dir) {
            return Ok((kernel, false));
        }
        match fetch(workspace, suite, &dir) {
            Ok(()) => return Ok((open(&dir)?, true)),
            Err(error) => errors.push(format!("{error:#}")),
        }
    }
    bail!("no kernel {release}: {}", errors.join("; "))
}

fn fetch(workspace: &Workspace, suite: &str, dir: &Path) -> Result<()> {
    doing(&format!("fetching {PACKAGE} of {suite}"));
    let mirror = Mirror::find()?;
    let apt = Suite::open(workspace, &mirror, suite)?;
    let packages = kernel_packages(&apt.depends(PACKAGE)?);
    if packages.is_empty() {
        bail!("{PACKAGE} of {suite} depends on no kernel package");
    }
    let partial = dir.with_extension("partial");
    drop(fs::remove_dir_all(&partial));
    fs::create_dir_all(&partial).with_context(|| format!("create {}", partial.display()))?;
    apt.unpack(&packages, &partial)?;
    drop(fs::remove_dir_all(dir));
    fs::rename(&partial, dir).with_context(|| format!("rename {} to {}", partial.display(), dir.display()))
}

/// The packages that hold a kernel and its modules: one up to Debian 13, two in later ones.
fn kernel_packages(depends: &[String]) -> Vec<String> {
    let versioned = |name: &&String| {
        ["linux-image-", "linux-binary-", "linux-modules-"]
            .iter()
            .any(|prefix| name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit())))
    };
    depends.iter().filter(versioned).cloned().collect()
}

/// Finds image and modules below a directory, where either package layout puts them.
fn open(dir: &Path) -> Result<Kernel> {
    for modules in ["lib/modules", "usr/lib/modules"] {
        let versions = fs::read_dir(dir.join(modules)).into_iter().flatten().flatten();
        for version in versions.map(|entry| entry.file_name().to_string_lossy().into_owned()) {
            let modules = dir.join(modules).join(&version);
            let images = [dir.join(format!("boot/vmlinuz-{version}")), modules.join("vmlinuz")];
            if let Some(image) = images.into_iter().find(|image| image.is_file()) {
                return Ok(Kernel { version, image, modules });
            }
        }
    }
    bail!("no kernel with modules in {}", dir.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_kernel_packages_of_both_layouts() {
        let names = |list: &[&str]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
        let old = names(&["linux-image-cloud-amd64", "linux-image-6.1.0-50-cloud-amd64", "linux-base"]);
        assert_eq!(kernel_packages(&old), ["linux-image-6.1.0-50-cloud-amd64"]);
        let new = names(&[
            "linux-base-7.2.13+deb14-cloud-amd64",
            "linux-binary-7.2.13+deb14-cloud-amd64",
            "linux-modules-7.2.13+deb14-cloud-amd64",
        ]);
        assert_eq!(kernel_packages(&new).len(), 2);
    }
}
