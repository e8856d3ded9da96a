//! Packs the guest: the lab as init, the agent, their libraries, the modules of the network.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::cpio::Archive;
use super::kernels::Kernel;
use super::libraries;
use crate::workspace::Workspace;

/// What the pods' network is made of; built into some kernels, modules in others.
const MODULES: [&str; 4] = ["veth", "bridge", "ipv6", "sch_ingress"];

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
    for (number, module) in module_order(&read_text(&kernel.modules.join("modules.dep"))?, &MODULES).iter().enumerate()
    {
        let name = Path::new(module).file_name().unwrap_or_default().to_string_lossy().into_owned();
        let name = name.trim_end_matches(".xz");
        // init loads them in the order of their names.
        archive.file(&format!("modules/{number:02}-{name}"), &module_content(&kernel.modules.join(module))?);
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

/// The files of these modules and of what they depend on, in the order of loading. A module that is not
/// listed is built in, or this kernel lacks it: whoever needs it will say so.
fn module_order(dep: &str, wanted: &[&str]) -> Vec<String> {
    let mut by_name: BTreeMap<&str, (&str, Vec<&str>)> = BTreeMap::new();
    for line in dep.lines() {
        if let Some((path, needs)) = line.split_once(':') {
            by_name.insert(module_name(path), (path, needs.split_whitespace().collect()));
        }
    }
    let mut order: Vec<String> = Vec::new();
    for name in wanted {
        if let Some((path, needs)) = by_name.get(name) {
            // modules.dep lists all that a module needs, the deepest last.
            for file in needs.iter().rev().chain([path]) {
                if !order.iter().any(|have| have == file) {
                    order.push((*file).to_owned());
                }
            }
        }
    }
    order
}

/// `kernel/net/bridge/bridge.ko.xz` is the module `bridge`.
fn module_name(path: &str) -> &str {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file)
}

fn module_content(path: &Path) -> Result<Vec<u8>> {
    if path.extension().is_none_or(|extension| extension != "xz") {
        return read(path);
    }
    let output = Command::new("xz").arg("-dc").arg(path).output().context("start xz")?;
    if !output.status.success() {
        bail!("xz -dc {} failed: {}", path.display(), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(output.stdout)
}

/// A path without its leading slash, as archives have it.
fn inside(path: &Path) -> String {
    path.to_string_lossy().trim_start_matches('/').to_owned()
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("read {}", path.display()))
}

fn read_text(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loads_what_a_module_needs_before_it() {
        let dep = "kernel/net/802/stp.ko.xz: kernel/net/llc/llc.ko.xz\nkernel/net/llc/llc.ko.xz:\n\
                   kernel/drivers/net/veth.ko:\nkernel/net/bridge/bridge.ko.xz: kernel/net/802/stp.ko.xz kernel/net/llc/llc.ko.xz\n";
        let order = module_order(dep, &["veth", "bridge", "ipv6"]);
        let names: Vec<_> = order.iter().map(|path| module_name(path)).collect();
        assert_eq!(names, ["veth", "llc", "stp", "bridge"]);
    }
}
