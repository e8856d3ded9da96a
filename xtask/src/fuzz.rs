//! `cargo xtask fuzz`.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::steps::{Done, Steps};
use crate::workspace::Workspace;
use crate::{apt, machine, run};

/// Let libFuzzer try the parsers of bytes from outside
///
/// Each target of fuzz/ begins with its committed corpus, fuzz/corpus, and then goes on for a bounded time. What it
/// finds on the way is kept in target/fuzz/corpus for the next run; input that fails is in target/fuzz/artifacts.
#[derive(clap::Args)]
pub struct Args {
    /// Only these targets
    targets: Vec<String>,
    /// How long each one runs
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    seconds: u32,
}

/// Seconds for each target when all tests are run.
const IN_TESTS: u32 = 10;

/// What cargo-fuzz passes too, without a sanitizer, which would need a nightly toolchain: Rust that is not `unsafe` fails
/// by panics, and these the fuzzer sees.
const INSTRUMENTATION: [&str; 8] = [
    "--cfg=fuzzing",
    "--check-cfg=cfg(fuzzing)",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Ccodegen-units=1",
];

/// Runs the command.
pub fn command(args: &Args) -> Result<()> {
    let workspace = Workspace::find()?;
    let steps = Steps::new("Fuzzing");
    let targets = chosen(&workspace, &args.targets)?;
    steps.step("build", || build(&workspace).map(|()| Done::Now(String::new())))?;
    for target in &targets {
        steps.step(target, || fuzz(&workspace, target, args.seconds).map(Done::Now))?;
    }
    println!("Nothing failed in {}.", steps.total());
    Ok(())
}

/// All targets, as a part of the tests.
pub fn shortly(workspace: &Workspace) -> Result<String> {
    build(workspace)?;
    let targets = chosen(workspace, &[])?;
    for target in &targets {
        fuzz(workspace, target, IN_TESTS).with_context(|| format!("target {target}"))?;
    }
    Ok(format!("{} for {IN_TESTS} s each", targets.join(", ")))
}

/// The targets that were asked for, or all: the files in `fuzz/targets`.
fn chosen(workspace: &Workspace, asked: &[String]) -> Result<Vec<String>> {
    let directory = workspace.root.join("fuzz/targets");
    let entries = fs::read_dir(&directory).with_context(|| format!("list {}", directory.display()))?;
    let mut all: Vec<String> =
        entries.flatten().filter_map(|entry| Some(entry.path().file_stem()?.to_string_lossy().into_owned())).collect();
    all.sort();
    if let Some(unknown) = asked.iter().find(|name| !all.contains(name)) {
        bail!("there is no fuzz target {unknown:?}; there are {}", all.join(", "));
    }
    Ok(if asked.is_empty() { all } else { asked.to_vec() })
}

fn build(workspace: &Workspace) -> Result<()> {
    if !machine::has_program("c++") {
        apt::ensure(workspace, &["g++"], "building libFuzzer")?;
    }
    let mut cargo = run::cargo(workspace);
    // With a target, build scripts and macros are built without the instrumentation.
    cargo.args(["build", "--release", "--manifest-path", "fuzz/Cargo.toml", "--target", &triple()]);
    cargo.env("CARGO_TARGET_DIR", own(workspace, "build"));
    cargo.env("CARGO_ENCODED_RUSTFLAGS", INSTRUMENTATION.join("\u{1f}"));
    // The parsers need no kernel programs.
    cargo.env("AYA_BUILD_SKIP", "1");
    run::aloud(&mut cargo)
}

fn fuzz(workspace: &Workspace, target: &str, seconds: u32) -> Result<String> {
    let found = own(workspace, "corpus").join(target);
    let artifacts = own(workspace, "artifacts").join(target);
    for directory in [&found, &artifacts] {
        fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
    }
    let mut command = Command::new(own(workspace, "build").join(triple()).join("release").join(target));
    command
        .arg(format!("-max_total_time={seconds}"))
        .args(["-max_len=8192", "-timeout=5", "-rss_limit_mb=1024", "-print_final_stats=1"])
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .args([found, workspace.root.join("fuzz/corpus").join(target)]);
    let log = format!("fuzz-{target}");
    let limit = std::time::Duration::from_secs(u64::from(seconds) + 120);
    run::quietly(workspace, &log, &mut command, limit)
        .with_context(|| format!("the input that failed is in {}", artifacts.display()))?;
    let text = fs::read_to_string(run::log_path(workspace, &log)).unwrap_or_default();
    let runs = text.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
    Ok(runs.map(|runs| format!("{} inputs", runs.trim())).unwrap_or_default())
}

fn own(workspace: &Workspace, name: &str) -> PathBuf {
    workspace.target.join("fuzz").join(name)
}

fn triple() -> String {
    format!("{}-unknown-linux-gnu", std::env::consts::ARCH)
}
