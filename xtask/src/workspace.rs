//! Where things are: the repository and its target directory.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

/// The repository, found when the command runs.
#[derive(Debug, Clone)]
pub struct Workspace {
    /// The repository's root.
    pub root: PathBuf,
    /// Cargo's target directory.
    pub target: PathBuf,
}

impl Workspace {
    /// Finds the repository from cargo's environment, or from the current directory upwards.
    pub fn find() -> Result<Self> {
        let start = match env::var_os("CARGO_MANIFEST_DIR") {
            Some(dir) => PathBuf::from(dir),
            None => env::current_dir().context("find the current directory")?,
        };
        let Some(root) = start.ancestors().find(|dir| dir.join("xtask/Cargo.toml").is_file()) else {
            bail!("no xtask/Cargo.toml in {} or above it: run `cargo xtask` inside the repository", start.display());
        };
        let target = match env::var_os("CARGO_TARGET_DIR") {
            Some(dir) => env::current_dir().context("find the current directory")?.join(dir),
            None => root.join("target"),
        };
        Ok(Self { root: root.to_owned(), target })
    }

    /// A file or directory of xtask's own, under the target directory.
    pub fn own(&self, name: impl AsRef<Path>) -> PathBuf {
        self.target.join("xtask").join(name)
    }

    /// A binary of the release build.
    pub fn release(&self, binary: &str) -> PathBuf {
        self.target.join("release").join(binary)
    }
}
