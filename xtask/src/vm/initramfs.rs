//! Packs the guest: the lab as init, the agent, their libraries, the modules of the network.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::cpio::Archive;
use super::kernels::Kernel;
use super::{libraries, modules};
use crate::workspace::Workspace;

/// What the pods' network is made of; built into some kernels, modules in others.
const MODULES: [&str; 6] = ["veth", "loop", "bridge", "ipv6", "sch_ingress", "cls_bpf"];

/// Writes the initramfs of a kernel and gives its path.
pub fn build(workspace: &Workspace, kernel: &Kernel) -> Result<PathBuf> {
    let mut archive = Archive::default();
    for directory in ["proc", "sys", "dev", "tmp", "run", "root", "etc"] {
        archive.directory(directory);
    }
    // The console must be there before init can mount anything.
    archive.device("dev/console", 5, 1);
    archive.device("dev/null", 1, 3);
    let mut shared = Vec::new();
    for binary in ["observer-lab", "observer"] {
        let built = workspace.release(binary);
        shared.extend(libraries::of(&built).context("build it first: cargo build --release")?);
        archive.file(&format!("bin/{binary}"), &without_symbols(workspace, &built)?);
    }
    archive.link("init", "bin/observer-lab");
    shared.sort();
    shared.dedup();
    for library in shared {
        archive.file(&inside(&library), &read(&library)?);
    }
    for (number, module) in modules::load_order(&kernel.modules, &MODULES)?.iter().enumerate() {
        // init loads them in the order of their names.
        archive.file(&format!("modules/{number:02}-{}.ko", module.name), &module.content);
    }
    let path = workspace.own("vm").join(format!("initramfs-{}.cpio", kernel.version));
    fs::write(&path, archive.finish()).with_context(|| format!("write {}", path.display()))?;
    Ok(path)
}

/// A program without debug information, which is most of its size; as it is where there is no `strip`.
fn without_symbols(workspace: &Workspace, program: &Path) -> Result<Vec<u8>> {
    let stripped = workspace.own("vm/stripped");
    let strip = Command::new("strip").arg("--strip-debug").arg("-o").arg(&stripped).arg(program).output();
    read(if strip.is_ok_and(|output| output.status.success()) { &stripped } else { program })
}

/// A path without its leading slash, as archives have it.
fn inside(path: &Path) -> String {
    path.to_string_lossy().trim_start_matches('/').to_owned()
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("read {}", path.display()))
}
