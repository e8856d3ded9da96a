//! `cargo xtask test`.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;

use crate::steps::{Done, Steps};
use crate::vm::{self, Release};
use crate::workspace::Workspace;
use crate::{apt, demo, deny, fuzz, machine, run, setup};

/// Everything that proves the project; what is missing on the machine is installed first
///
/// unit: without root, of every crate. fuzz: parsers of bytes from outside, for some seconds. kernel: programs loaded and attached on this kernel. e2e: the agent
/// on real pods, its numbers compared with independent truth and read by a real Prometheus. vm: the accuracy
/// cases on another kernel, in QEMU. lint: format, clippy, licences of the dependencies (on request only; CI
/// runs it too).
///
/// A step that fails does not stop the ones after it; the exit status is 1 if any failed.
#[derive(clap::Args)]
pub struct Args {
    /// Only this part; may be given more than once
    #[arg(long, value_enum, value_name = "PART")]
    only: Vec<Part>,
    /// Only tests whose name has this in it (for cases in a VM: `cargo xtask vm --case`)
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Tests without root
    Unit,
    /// Kernel programs on this kernel; needs root
    Kernel,
    /// The agent on real pods; needs root
    E2e,
    /// The accuracy cases on one other kernel, in QEMU
    Vm,
    /// Parsers against input that libFuzzer makes up, a few seconds each
    Fuzz,
    /// cargo fmt, clippy, deny
    Lint,
}

/// Container runtimes, network plugins, what runs in the containers, and what the tests themselves run on a node: `nft` and
/// `ip`, which nothing brings along where recommended packages are left out.
const NODE_PACKAGES: [&str; 7] =
    ["containerd", "runc", "containernetworking-plugins", "busybox-static", "podman", "nftables", "iproute2"];

const BY_DEFAULT: [Part; 5] = [Part::Unit, Part::Fuzz, Part::Kernel, Part::E2e, Part::Vm];

/// Runs the command.
pub fn command(args: &Args) -> Result<()> {
    let parts = if args.only.is_empty() { &BY_DEFAULT[..] } else { &args.only };
    if parts.iter().any(|part| matches!(part, Part::Kernel | Part::E2e)) {
        let why = "kernel and e2e tests load kernel programs and make pods (without root: --only unit)";
        machine::need_root("cargo xtask test", why)?;
    }
    let workspace = Workspace::find()?;
    let steps = Steps::new("Testing");
    setup::ensure(&workspace, &steps)?;
    if parts.iter().any(|part| matches!(part, Part::Kernel | Part::E2e | Part::Vm)) {
        steps.step("release build", || demo::build(&workspace).map(|()| Done::Now(String::new())))?;
    }
    if parts.contains(&Part::E2e) {
        steps.step("Prometheus", || prometheus(&workspace))?;
        steps.step("resolver", || resolver(&workspace))?;
        steps.step("clock", || apt::ensure(&workspace, &["libfaketime"], "testing with a wall clock that is set"))?;
    }
    let mut failed = Vec::new();
    for part in parts {
        let name = part.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
        let result = steps.step(&name, || run_part(&workspace, *part, args.filter.as_deref()).map(Done::Now));
        if let Err(error) = result {
            eprintln!("error: {name}: {error:#}");
            failed.push(name);
        }
    }
    if failed.is_empty() {
        println!("All passed in {}.", steps.total());
        return Ok(());
    }
    bail!("failed after {}: {}", steps.total(), failed.join(", "))
}

/// A real Prometheus reads the agent in the end-to-end tests, and promtool checks what it reads. On a machine that runs
/// systemd Debian's package starts a service of its own, which the tests have no use for.
fn prometheus(workspace: &Workspace) -> Result<Done> {
    if ["prometheus", "promtool"].into_iter().all(machine::has_program) {
        return Ok(Done::There("prometheus, promtool".into()));
    }
    apt::ensure(workspace, &["prometheus"], "testing with a real Prometheus")
}

/// A real resolver answers pods in the end-to-end tests. The package has the program alone and starts nothing.
fn resolver(workspace: &Workspace) -> Result<Done> {
    if machine::has_program("dnsmasq") {
        return Ok(Done::There("dnsmasq".into()));
    }
    apt::ensure(workspace, &["dnsmasq-base"], "testing with a real resolver")
}

fn run_part(workspace: &Workspace, part: Part, filter: Option<&str>) -> Result<String> {
    match part {
        Part::Unit => {
            let mut command = cargo_test(workspace, &["--workspace", "--exclude", "observer-ebpf"]);
            command.args(["--lib", "--bins"]);
            for krate in ["observer", "observer-common", "xtask"] {
                add_tests(&mut command, &test_files(&workspace.root.join(krate))?);
            }
            run::aloud(command.args(filter)).map(|()| String::new())
        }
        Part::Kernel => lab_tests(workspace, filter, |name| name.starts_with("kernel")),
        Part::E2e => apt::ensure(workspace, &NODE_PACKAGES, "a container node for the tests")
            .and_then(|_| lab_tests(workspace, filter, |name| !name.starts_with("kernel"))),
        Part::Vm => vm::boot(workspace, &[Release::SMOKE]),
        Part::Fuzz => fuzz::shortly(workspace),
        Part::Lint => lint(workspace),
    }
}

/// The lab's integration tests: `kernel*.rs` are kernel tests, the others end to end. They share one
/// kernel, so one at a time; in release mode, because they drive known amounts through real sockets.
fn lab_tests(workspace: &Workspace, filter: Option<&str>, wanted: impl Fn(&str) -> bool) -> Result<String> {
    let mut names = test_files(&workspace.root.join("lab"))?;
    names.retain(|name| wanted(name));
    if names.is_empty() {
        return Ok("no tests".into());
    }
    let mut command = cargo_test(workspace, &["--package", "observer-lab"]);
    command.arg("--release");
    add_tests(&mut command, &names);
    command.args(filter).args(["--", "--test-threads=1"]);
    command.env("OBSERVER_BIN", workspace.release("observer"));
    command.env("OBSERVER_LAB_BIN", workspace.release("observer-lab"));
    run::aloud(&mut command).map(|()| String::new())
}

/// Which packages are selected decides the features of all that is compiled. The lab alone, which needs the agent, has those
/// of the release build: with the others' tests the agent would be compiled once more.
fn cargo_test(workspace: &Workspace, packages: &[&str]) -> Command {
    let mut command = run::cargo(workspace);
    command.args(["test", "--no-fail-fast"]).args(packages);
    command
}

fn add_tests(command: &mut Command, names: &[String]) {
    for name in names {
        command.args(["--test", name]);
    }
}

/// The integration tests of a crate: `tests/NAME.rs` and `tests/NAME/main.rs`.
fn test_files(krate: &Path) -> Result<Vec<String>> {
    let dir = krate.join("tests");
    if !dir.is_dir() {
        return Ok(Vec::new());
    }
    let mut names = Vec::new();
    for entry in fs::read_dir(&dir).with_context(|| format!("list {}", dir.display()))? {
        let path = entry.with_context(|| format!("list {}", dir.display()))?.path();
        let is_test = path.extension().is_some_and(|extension| extension == "rs") || path.join("main.rs").is_file();
        if let Some(stem) = path.file_stem().filter(|_| is_test) {
            names.push(stem.to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// All three, so that one run tells everything.
fn lint(workspace: &Workspace) -> Result<String> {
    let clippy = ["clippy", "--workspace", "--exclude", "observer-ebpf", "--all-targets", "--", "-D", "warnings"];
    let results = [
        run::aloud(run::cargo(workspace).args(["fmt", "--all", "--check"]))
            .map(|()| "format".to_owned())
            .context("format (`cargo fmt --all` repairs it)"),
        run::aloud(run::cargo(workspace).args(clippy)).map(|()| "clippy".to_owned()).context("clippy"),
        deny::check(workspace).context("dependencies"),
    ];
    let errors: Vec<String> =
        results.iter().filter_map(|result| Some(format!("{:#}", result.as_ref().err()?))).collect();
    if !errors.is_empty() {
        bail!("{}", errors.join("; "));
    }
    Ok(results.into_iter().flatten().collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_integration_tests() {
        let dir = std::env::temp_dir().join(format!("observer-xtask-tests-{}", std::process::id()));
        fs::create_dir_all(dir.join("tests/e2e")).unwrap();
        fs::create_dir_all(dir.join("tests/fixtures")).unwrap();
        for file in ["tests/kernel_load.rs", "tests/e2e/main.rs", "tests/fixtures/pods.json", "tests/readme.md"] {
            fs::write(dir.join(file), "").unwrap();
        }
        let names = test_files(&dir).unwrap();
        fs::remove_dir_all(&dir).unwrap();
        assert_eq!(names, ["e2e", "kernel_load"]);
    }

    #[test]
    fn a_crate_without_tests_has_none() {
        assert!(test_files(Path::new("/nonexistent")).unwrap().is_empty());
    }
}
