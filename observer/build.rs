//! Builds the kernel programs into `OUT_DIR`, an object for each binary of `observer-ebpf`, or writes empty stubs there.
//!
//! The stubs keep `cargo check`, clippy and editors working on a machine without an eBPF toolchain; the
//! loader refuses them. With the toolchain there, a build that fails is an error.

use std::path::PathBuf;
use std::{env, fs};

use anyhow::{Context as _, Result};
use aya_build::{Package, Toolchain};

#[path = "../observer-ebpf/toolchain.rs"]
#[allow(dead_code, reason = "shared with xtask, which uses the rest")]
mod toolchain;

const PROGRAMS: &str = "observer-ebpf";
/// The package's binaries: the traffic's, and one for each probe.
const OBJECTS: [&str; 8] = [PROGRAMS, "drops", "interface", "oom", "runqueue", "sockets", "tcp", "unix"];

/// What the outer cargo or its user says that is not meant for the inner one.
const OUTER_CARGO: [&str; 7] = [
    "CARGO",
    "RUSTDOC",
    "RUSTC_WRAPPER",
    "CARGO_BUILD_BUILD_DIR",
    "CARGO_BUILD_TARGET",
    // Does not go with the quiet mode that is set below.
    "CARGO_TERM_VERBOSE",
    "RUST_BACKTRACE",
];

fn main() -> Result<()> {
    rerun_on_changes();
    if env::var_os("AYA_BUILD_SKIP").is_some_and(|skip| skip == "1" || skip.eq_ignore_ascii_case("true")) {
        return stub("AYA_BUILD_SKIP is set");
    }
    match toolchain::Facts::gather().choose() {
        Ok(choice) => build(&choice),
        Err(missing) => {
            // Set-up puts the linker there last, and touches this file.
            if let Some(bin) = cargo_bin().filter(|bin| bin.is_dir()) {
                println!("cargo:rerun-if-changed={}", bin.display());
            }
            stub(&missing)
        }
    }
}

fn build(choice: &toolchain::Choice) -> Result<()> {
    // The cargo that runs this script tells its children about itself. The inner one must not listen:
    // it is another toolchain, another target, and has a target directory of its own.
    let mut path = vec![choice.linker.parent().map(PathBuf::from).unwrap_or_default()];
    path.extend(env::var_os("PATH").iter().flat_map(env::split_paths));
    let path = env::join_paths(path).context("put the directory of bpf-linker into PATH")?;
    // SAFETY: the script has one thread here; nothing reads the environment meanwhile.
    unsafe {
        env::set_var("PATH", path);
        for name in OUTER_CARGO {
            env::remove_var(name);
        }
        // Its progress would come out as warnings of this crate, in every build again; real warnings still do.
        env::set_var("CARGO_TERM_QUIET", "true");
        if choice.bootstrap {
            env::set_var("RUSTC_BOOTSTRAP", "1");
        } else {
            env::remove_var("RUSTC_BOOTSTRAP");
        }
    }
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("..").join(PROGRAMS);
    let package = Package {
        name: PROGRAMS,
        root_dir: root.to_str().context("the path of observer-ebpf is not UTF-8")?,
        ..Package::default()
    };
    aya_build::build_ebpf([package], Toolchain::Custom(&choice.toolchain)).with_context(|| {
        format!(
            "build {PROGRAMS} with the toolchain `{}` and {} (the lines above say why; `cargo xtask setup` shows \
             and repairs the toolchain, AYA_BUILD_SKIP=1 builds without kernel programs)",
            choice.toolchain,
            choice.linker.display()
        )
    })
}

fn stub(reason: &str) -> Result<()> {
    let directory = PathBuf::from(env::var_os("OUT_DIR").context("OUT_DIR is not set: run by cargo only")?);
    for object in OBJECTS {
        let file = directory.join(object);
        fs::write(&file, []).with_context(|| format!("write the empty stub {}", file.display()))?;
    }
    println!("cargo:warning=the kernel programs were not built ({reason}): this agent can load none");
    println!("cargo:warning=run `cargo xtask setup` once, then build again");
    Ok(())
}

fn rerun_on_changes() {
    for path in
        ["build.rs", "../observer-ebpf", "../observer-common/src", "../observer-common/Cargo.toml", "../Cargo.lock"]
    {
        println!("cargo:rerun-if-changed={path}");
    }
    for name in ["AYA_BUILD_SKIP", toolchain::OVERRIDE_ENV, "RUSTUP_HOME", "CARGO_HOME"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
}

fn cargo_bin() -> Option<PathBuf> {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    home.or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo"))).map(|home| home.join("bin"))
}
