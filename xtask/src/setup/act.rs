//! Installs what the plan says.

use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail};

use super::plan::{Compiler, Linker, Way};
use super::toolchain::{LINKED, PINNED_NIGHTLY};
use super::{BPF_LINKER_VERSION, LLVM_MAJOR};
use crate::steps::{Done, doing};
use crate::workspace::Workspace;
use crate::{apt, run};

/// Debian's Rust, complete with the library source.
pub const DEBIAN_RUST: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];
/// Where those packages put it.
const DEBIAN_PREFIX: &str = "/usr";
/// The packages' own source of the standard library, from their prefix.
const DEBIAN_SOURCE: &str = "lib/rustlib/src/rust/library/core/src/lib.rs";

/// LLVM where Debian puts it, unless `LLVM_PREFIX` says otherwise.
pub fn llvm_prefix() -> String {
    std::env::var("LLVM_PREFIX").unwrap_or_else(|_| format!("/usr/lib/llvm-{LLVM_MAJOR}"))
}

/// Gets the compiler.
pub fn compiler(workspace: &Workspace, plan: &Compiler) -> Result<Done> {
    let (ways, against) = match plan {
        Compiler::There(name) => return Ok(Done::There(format!("rustup's toolchain `{name}` has rust-src"))),
        Compiler::Get(ways, against) => (ways, against),
    };
    let mut reasons = against.clone();
    let mut errors = Vec::new();
    for way in ways {
        let done = match way {
            Way::Nightly => nightly(workspace),
            Way::Debian => debian(workspace),
        };
        match done {
            Ok(what) if reasons.is_empty() => return Ok(Done::Now(what)),
            Ok(what) => return Ok(Done::Now(format!("{what} ({})", reasons.join("; ")))),
            Err(error) => {
                let log = run::log_path(workspace, way.log());
                reasons.push(format!("{}: failed, see {}", way.name(), log.display()));
                errors.push(format!("{}: {error:#}", way.name()));
            }
        }
    }
    errors.extend(against.iter().cloned());
    bail!("no way of getting a toolchain with rust-src worked:\n  {}", errors.join("\n  "))
}

fn nightly(workspace: &Workspace) -> Result<String> {
    doing(&format!("rustup toolchain install {PINNED_NIGHTLY} with rust-src"));
    let mut command = Command::new("rustup");
    command.args(["toolchain", "install", PINNED_NIGHTLY, "--profile", "minimal", "--component", "rust-src"]);
    command.arg("--no-self-update").env("RUSTUP_MAX_RETRIES", "1");
    run::quietly(workspace, Way::Nightly.log(), &mut command, Duration::from_mins(5))?;
    Ok(format!("installed {PINNED_NIGHTLY} with rust-src by rustup"))
}

fn debian(workspace: &Workspace) -> Result<String> {
    apt::ensure(workspace, &DEBIAN_RUST, "compiling the kernel programs")?;
    let source = Path::new(DEBIAN_PREFIX).join(DEBIAN_SOURCE);
    if !source.is_file() {
        bail!("Debian's packages {DEBIAN_RUST:?} are installed, but {} is not there", source.display());
    }
    run::output(Command::new("rustup").args(["toolchain", "link", LINKED, DEBIAN_PREFIX]))?;
    let version = run::output(Command::new("rustup").args(["run", LINKED, "rustc", "--version"]))?;
    Ok(format!("linked Debian's {version} into rustup as `{LINKED}`"))
}

/// Gets bpf-linker.
pub fn linker(workspace: &Workspace, plan: &Linker) -> Result<Done> {
    let llvm_first = match plan {
        Linker::There(version) => return Ok(Done::There(version.clone())),
        Linker::Compile { llvm_first } => *llvm_first,
    };
    if llvm_first {
        apt::ensure(workspace, &[&format!("llvm-{LLVM_MAJOR}-dev")], "compiling bpf-linker")?;
    }
    doing(&format!("cargo install bpf-linker {BPF_LINKER_VERSION} (about a minute)"));
    let mut command = run::cargo(workspace);
    command.args(["install", "bpf-linker", "--version", BPF_LINKER_VERSION, "--locked", "--no-default-features"]);
    command.args(["--features", &format!("llvm-{LLVM_MAJOR}")]).env("LLVM_PREFIX", llvm_prefix());
    command.env_remove("CARGO_TARGET_DIR");
    run::quietly(workspace, "bpf-linker", &mut command, Duration::from_mins(20)).context("compile bpf-linker")?;
    Ok(Done::Now(format!("compiled {BPF_LINKER_VERSION} for LLVM {LLVM_MAJOR}")))
}

/// Builds made before had an empty stub in place of the kernel programs: the next one looks again.
pub fn rebuild_the_stub(workspace: &Workspace) -> Result<()> {
    let script = workspace.root.join("observer/build.rs");
    let file = File::options().append(true).open(&script);
    file.and_then(|file| file.set_modified(SystemTime::now()))
        .with_context(|| format!("touch {}, so that the next build makes the kernel programs", script.display()))
}
