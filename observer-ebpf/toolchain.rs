// Which toolchain builds the kernel programs: the one answer for `observer/build.rs`, which builds them,
// and for `cargo xtask setup`, which installs what is missing. Both include this file with `#[path]`.
// Facts are gathered by `Facts::gather`, decisions are taken by `Facts::choose`. The standard library only.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// The nightly that set-up installs where rustup can fetch it. Its LLVM is the one of [`BPF_LINKER_LLVM`].
pub const PINNED_NIGHTLY: &str = "nightly-2026-05-20";
/// The name under which set-up links a distribution's Rust, which has the library source.
pub const LINKED: &str = "bpf";
/// Any nightly a person keeps; used when it has the library source and nothing better is there.
pub const ANY_NIGHTLY: &str = "nightly";
/// Names a rustup toolchain that goes before all others.
pub const OVERRIDE_ENV: &str = "OBSERVER_EBPF_TOOLCHAIN";

/// What the machine has of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// The toolchain named by [`OVERRIDE_ENV`].
    pub wanted: Option<String>,
    /// Installed rustup toolchains that have the library source, without the host triple.
    pub with_source: Vec<String>,
    /// Installed rustup toolchains that lack it.
    pub without_source: Vec<String>,
    /// The linker, if found.
    pub linker: Option<PathBuf>,
}

/// What to build the kernel programs with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// The rustup toolchain's name.
    pub toolchain: String,
    /// Where bpf-linker is.
    pub linker: PathBuf,
    /// A stable compiler needs `RUSTC_BOOTSTRAP=1` to build `core`.
    pub bootstrap: bool,
}

impl Facts {
    /// Looks at rustup's toolchains and for bpf-linker. Runs no process: this happens in every build.
    pub fn gather() -> Self {
        let home = env::var_os("HOME").map(PathBuf::from);
        let dir = |var, default: &str| {
            env::var_os(var).map(PathBuf::from).or_else(|| home.as_ref().map(|home| home.join(default)))
        };
        let wanted = env::var(OVERRIDE_ENV).ok().filter(|name| !name.is_empty());
        Self::gather_from(
            wanted,
            dir("RUSTUP_HOME", ".rustup").as_deref(),
            dir("CARGO_HOME", ".cargo").as_deref(),
            env::var_os("PATH").as_deref(),
        )
    }

    /// As [`Facts::gather`], from given places.
    pub fn gather_from(
        wanted: Option<String>,
        rustup_home: Option<&Path>,
        cargo_home: Option<&Path>,
        path: Option<&OsStr>,
    ) -> Self {
        let mut facts = Self { wanted, ..Self::default() };
        let entries = rustup_home.and_then(|home| home.join("toolchains").read_dir().ok());
        for entry in entries.into_iter().flatten().flatten() {
            let name = short_name(&entry.file_name().to_string_lossy());
            if has_source(&entry.path()) {
                facts.with_source.push(name);
            } else {
                facts.without_source.push(name);
            }
        }
        facts.with_source.sort();
        facts.without_source.sort();
        let mut dirs: Vec<PathBuf> = path.into_iter().flat_map(env::split_paths).collect();
        dirs.extend(cargo_home.map(|home| home.join("bin")));
        facts.linker = dirs.iter().map(|dir| dir.join("bpf-linker")).find(|file| file.is_file());
        facts
    }

    /// The toolchain to use among those that are there: the one asked for, the pinned nightly, the
    /// distribution's, any nightly.
    pub fn toolchain(&self) -> Result<&str, String> {
        let has = |name: &str| self.with_source.iter().any(|have| have == name);
        if let Some(wanted) = &self.wanted {
            return if has(wanted) {
                Ok(wanted)
            } else {
                Err(format!(
                    "{OVERRIDE_ENV} names the toolchain `{wanted}`, and rustup has none of that name with rust-src"
                ))
            };
        }
        [PINNED_NIGHTLY, LINKED, ANY_NIGHTLY].into_iter().find(|name| has(name)).ok_or_else(|| {
            format!("no rustup toolchain with rust-src: neither `{PINNED_NIGHTLY}` nor `{LINKED}` nor `{ANY_NIGHTLY}`")
        })
    }

    /// Toolchain and linker together, or what is missing.
    pub fn choose(&self) -> Result<Choice, String> {
        let toolchain = self.toolchain()?.to_owned();
        let linker = self.linker.clone().ok_or("bpf-linker is not in PATH")?;
        let bootstrap = !toolchain.starts_with("nightly");
        Ok(Choice { toolchain, linker, bootstrap })
    }
}

/// `nightly-2026-05-20-x86_64-unknown-linux-gnu` is `nightly-2026-05-20` to everyone.
fn short_name(dir: &str) -> String {
    let triple = ["-x86_64-", "-aarch64-", "-riscv64gc-", "-powerpc64le-", "-s390x-", "-loongarch64-"];
    let end = triple.iter().filter_map(|arch| dir.find(arch)).min().unwrap_or(dir.len());
    dir[..end].to_owned()
}

fn has_source(toolchain: &Path) -> bool {
    toolchain.join("lib/rustlib/src/rust/library/core/src/lib.rs").is_file() && toolchain.join("bin/rustc").is_file()
}
