//! An image made from local files, in the layout that containerd imports (OCI image layout 1.0.0).

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::files;

/// The image that every container of the node runs, pause containers too: a static busybox.
pub const IMAGE: &str = "localhost/observer-lab:1";

/// Tools that a container can call by their names.
const TOOLS: [&str; 12] =
    ["sh", "nc", "dd", "sleep", "cat", "echo", "httpd", "wget", "kill", "true", "touch", "timeout"];

/// Builds the image and gives it to containerd.
pub(super) fn import(directory: &Path, socket: &Path) -> Result<()> {
    let archive = directory.join("image.tar");
    std::fs::write(&archive, build()?).with_context(|| format!("writing {}", archive.display()))?;
    let output = Command::new(files::CTR)
        .arg("--address")
        .arg(socket)
        .args(["--namespace", "k8s.io", "images", "import"])
        .arg(&archive)
        .output()
        .with_context(|| format!("running {}", files::CTR))?;
    ensure!(output.status.success(), "importing the image: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

fn build() -> Result<Vec<u8>> {
    let layer = layer()?;
    let config = document(&json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        // As pid 1 it ignores what is not SIGKILL, which the runtime sends in the end.
        "config": { "Entrypoint": ["/bin/sleep", "2147483647"], "Env": ["PATH=/bin"] },
        "rootfs": { "type": "layers", "diff_ids": [digest(&layer)] },
    }));
    let manifest = document(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", &layer)],
    }));
    let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
    entry["annotations"] = json!({ "io.containerd.image.name": IMAGE });
    let index = document(&json!({ "schemaVersion": 2, "manifests": [entry] }));
    let mut archive = tar::Builder::new(Vec::new());
    file(&mut archive, "oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    file(&mut archive, "index.json", 0o644, &index)?;
    for blob in [&layer, &config, &manifest] {
        file(&mut archive, &format!("blobs/{}", digest(blob).replace(':', "/")), 0o644, blob)?;
    }
    archive.into_inner().context("writing the image")
}

/// The root file system of the image, as a tar archive.
pub(crate) fn layer() -> Result<Vec<u8>> {
    let busybox = std::fs::read(files::BUSYBOX).with_context(|| format!("reading {}", files::BUSYBOX))?;
    let mut layer = tar::Builder::new(Vec::new());
    for directory in ["bin", "dev", "etc", "proc", "sys", "tmp"] {
        let mut header = header(tar::EntryType::Directory, 0o755, 0);
        layer.append_data(&mut header, format!("{directory}/"), &[][..])?;
    }
    file(&mut layer, "bin/busybox", 0o755, &busybox)?;
    file(&mut layer, "etc/passwd", 0o644, b"root:x:0:0:root:/:/bin/sh\n")?;
    for tool in TOOLS {
        let mut header = header(tar::EntryType::Symlink, 0o777, 0);
        layer.append_link(&mut header, format!("bin/{tool}"), "busybox")?;
    }
    layer.into_inner().context("writing the image's layer")
}

fn file(archive: &mut tar::Builder<Vec<u8>>, path: &str, mode: u32, data: &[u8]) -> Result<()> {
    let mut header = header(tar::EntryType::Regular, mode, data.len() as u64);
    archive.append_data(&mut header, path, data).with_context(|| format!("adding {path} to the image"))
}

fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header
}

fn document(value: &Value) -> Vec<u8> {
    value.to_string().into_bytes()
}

fn descriptor(kind: &str, blob: &[u8]) -> Value {
    json!({ "mediaType": kind, "digest": digest(blob), "size": blob.len() })
}

fn digest(blob: &[u8]) -> String {
    let hex: String = Sha256::digest(blob).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_those_of_sha256sum() {
        assert_eq!(digest(b"abc"), "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
