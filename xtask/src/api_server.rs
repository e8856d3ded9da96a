//! `cargo xtask api-server`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::mirror::{Mirror, Suite};
use crate::steps::{Done, Steps, doing};
use crate::workspace::Workspace;
use crate::{apt, demo, machine, run, setup};

/// Run the agent against a real Kubernetes API server and etcd
///
/// Debian has the server (1.20) as a source package alone, so the first run builds it, which takes some minutes; the
/// binary is kept in target/xtask/api-server. It is run over Debian's etcd, on loopback: list and watch, owners,
/// bookmarks, a server that dies, 410 after a compaction, permissions that are taken away. `cargo xtask test` does the
/// same, every time, with a server that replays what a newer one said.
#[derive(clap::Args)]
pub struct Args {
    /// Only build the server
    #[arg(long)]
    build: bool,
}

/// Debian 12, whose Go is old enough for this server.
const SUITE: &str = "bookworm";
const GO: &str = "/usr/lib/go-1.19/bin";
/// What builds it and what it runs with.
const PACKAGES: [&str; 6] = ["golang-1.19-go", "dpkg-dev", "make", "rsync", "etcd-server", "etcd-client"];
/// Has `kubectl`, which the test speaks to the server with.
const KUBECTL: &str = "kubernetes-client";
/// The build takes six minutes on two processors.
const LIMIT: Duration = Duration::from_mins(40);

/// Runs the command.
pub fn command(args: &Args) -> Result<()> {
    machine::need_root("cargo xtask api-server", "the test loads kernel programs and makes pods")?;
    let workspace = Workspace::find()?;
    let steps = Steps::new("A real API server");
    steps.step("packages", || apt::ensure(&workspace, &packages(has_kubectl()), "a real API server"))?;
    let binary = workspace.own("api-server/kube-apiserver");
    steps.step("kube-apiserver", || build(&workspace, &binary))?;
    if args.build {
        println!("Built in {}: {}", steps.total(), binary.display());
        return Ok(());
    }
    setup::ensure(&workspace, &steps)?;
    steps.step("release build", || demo::build(&workspace).map(|()| Done::Now(String::new())))?;
    steps.step("test", || test(&workspace, &binary).map(|()| Done::Now(String::new())))?;
    println!("All passed in {}.", steps.total());
    Ok(())
}

/// Any kubectl will do, and Debian's cannot be installed beside another vendor's.
fn packages(has_kubectl: bool) -> Vec<&'static str> {
    PACKAGES.into_iter().chain((!has_kubectl).then_some(KUBECTL)).collect()
}

fn has_kubectl() -> bool {
    let mut kubectl = Command::new("kubectl");
    kubectl.args(["version", "--client"]).output().is_ok_and(|output| output.status.success())
}

fn build(workspace: &Workspace, binary: &Path) -> Result<Done> {
    if binary.is_file() {
        return Ok(Done::There(binary.display().to_string()));
    }
    let directory = workspace.own("api-server");
    // What an earlier run left half done is no beginning: the makefile takes empty files for programs.
    drop(fs::remove_dir_all(&directory));
    fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
    doing("fetching Debian's source package kubernetes");
    let source = directory.join("source");
    Suite::open(workspace, &Mirror::find()?, SUITE)?.source("kubernetes", &source)?;
    doing("building kube-apiserver (six minutes on two processors)");
    let packages = source.join(".go/src/k8s.io");
    fs::create_dir_all(&packages).with_context(|| format!("create {}", packages.display()))?;
    std::os::unix::fs::symlink(&source, packages.join("kubernetes")).context("link the sources into Go's path")?;
    let mut make = Command::new("make");
    make.args(["WHAT=cmd/kube-apiserver"]).current_dir(&source);
    make.envs([("HOME", directory.join("home")), ("GOPATH", source.join(".go")), ("GOCACHE", directory.join("cache"))]);
    make.envs([("GO111MODULE", "off"), ("CGO_ENABLED", "0"), ("PATH", &path())]);
    run::quietly(workspace, "kube-apiserver", &mut make, LIMIT).context("build kube-apiserver")?;
    let built = source.join("_output/bin/kube-apiserver");
    fs::rename(&built, binary).with_context(|| format!("rename {} to {}", built.display(), binary.display()))?;
    for rest in ["source", "cache", "home"] {
        drop(fs::remove_dir_all(directory.join(rest)));
    }
    Ok(Done::Now(binary.display().to_string()))
}

/// Debian's Go before all others.
fn path() -> String {
    format!("{GO}:{}", std::env::var("PATH").unwrap_or_default())
}

fn test(workspace: &Workspace, binary: &PathBuf) -> Result<()> {
    let mut command = run::cargo(workspace);
    command.args(["test", "--workspace", "--exclude", "observer-ebpf", "--release", "--test", "api_server_test"]);
    command.args(["--", "--include-ignored", "--test-threads=1"]);
    command.env("OBSERVER_KUBE_APISERVER", binary);
    command.env("OBSERVER_BIN", workspace.release("observer"));
    command.env("OBSERVER_LAB_BIN", workspace.release("observer-lab"));
    run::aloud(&mut command)
}
