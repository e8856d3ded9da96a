//! Kernel modules and what they need, read from the modules themselves: the packages have no
//! `modules.dep`, which `depmod` makes where they are installed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

/// A module, decompressed.
#[derive(Debug, PartialEq, Eq)]
pub struct Module {
    /// Its name, as the kernel knows it.
    pub name: String,
    /// The object file.
    pub content: Vec<u8>,
}

/// These modules and what they depend on, in the order of loading. One that is not among the files is
/// built in, or this kernel lacks it: whoever needs it will say so.
pub fn load_order(directory: &Path, wanted: &[&str]) -> Result<Vec<Module>> {
    let mut files = BTreeMap::new();
    index(directory, &mut files)?;
    let mut order = Vec::new();
    for name in wanted {
        add(name, &files, &read, &mut order)?;
    }
    Ok(order)
}

type Reader = dyn Fn(&Path) -> Result<Vec<u8>>;

fn add(name: &str, files: &BTreeMap<String, PathBuf>, read: &Reader, order: &mut Vec<Module>) -> Result<()> {
    let Some(path) = files.get(name).filter(|_| !order.iter().any(|module| module.name == name)) else {
        return Ok(());
    };
    let content = read(path)?;
    for needed in depends(&content) {
        add(&needed, files, read, order)?;
    }
    order.push(Module { name: name.to_owned(), content });
    Ok(())
}

/// All modules below a directory, by name.
fn index(directory: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))? {
        let entry = entry.with_context(|| format!("list {}", directory.display()))?;
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            index(&path, files)?;
        } else if let Some((name, "" | ".xz")) = entry.file_name().to_string_lossy().split_once(".ko") {
            files.insert(name.replace('-', "_"), path);
        }
    }
    Ok(())
}

/// The names after `depends=` in the module's `.modinfo`.
fn depends(content: &[u8]) -> Vec<String> {
    let key = b"\0depends=";
    let Some(at) = content.windows(key.len()).position(|window| window == key) else { return Vec::new() };
    let value = content[at + key.len()..].split(|byte| *byte == 0).next().unwrap_or_default();
    let names = String::from_utf8_lossy(value).into_owned();
    names.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect()
}

fn read(path: &Path) -> Result<Vec<u8>> {
    if path.extension().is_none_or(|extension| extension != "xz") {
        return fs::read(path).with_context(|| format!("read {}", path.display()));
    }
    let output = Command::new("xz").arg("-dc").arg(path).output().context("start xz")?;
    if !output.status.success() {
        bail!("xz -dc {} failed: {}", path.display(), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loads_what_a_module_needs_before_it() {
        let module = |depends: &str| Ok(format!("\x7fELF\0license=GPL\0depends={depends}\0name=x\0").into_bytes());
        let read = move |path: &Path| match path.to_str() {
            Some("bridge.ko") => module("stp,llc"),
            Some("stp.ko") => module("llc"),
            _ => module(""),
        };
        let files = ["veth", "bridge", "stp", "llc"].map(|name| (name.to_owned(), PathBuf::from(format!("{name}.ko"))));
        let files = BTreeMap::from(files);
        let mut order = Vec::new();
        for name in ["veth", "bridge", "ipv6"] {
            add(name, &files, &read, &mut order).unwrap();
        }
        let names: Vec<_> = order.iter().map(|module| module.name.as_str()).collect();
        assert_eq!(names, ["veth", "llc", "stp", "bridge"]);
    }
}
