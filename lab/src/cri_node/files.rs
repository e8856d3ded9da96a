//! What containerd reads, and where its programs are.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// containerd.
pub(super) const CONTAINERD: &str = "/usr/bin/containerd";
/// containerd's own client, which imports images.
pub(super) const CTR: &str = "/usr/bin/ctr";
/// Enters a namespace (util-linux).
pub(super) const NSENTER: &str = "/usr/bin/nsenter";
/// A shell and its tools in one static binary.
pub(super) const BUSYBOX: &str = "/bin/busybox";
/// Another handler, which runs pods as the default one does.
pub const HANDLER: &str = "second";
const RUNC: &str = "/usr/sbin/runc";
const PLUGINS: &str = "/usr/lib/cni";

/// Says which package is missing.
pub(super) fn check_packages() -> Result<()> {
    let plugin = format!("{PLUGINS}/bridge");
    for (path, package) in [
        (CONTAINERD, "containerd"),
        (CTR, "containerd"),
        (RUNC, "runc"),
        (plugin.as_str(), "containernetworking-plugins"),
        (BUSYBOX, "busybox-static"),
        (NSENTER, "util-linux"),
    ] {
        ensure!(
            Path::new(path).exists(),
            "{path} is not there: apt-get install --no-install-recommends {package} (`cargo xtask test` does it)"
        );
    }
    Ok(())
}

/// Where containerd listens.
pub(super) fn socket(directory: &Path) -> PathBuf {
    directory.join("containerd.sock")
}

/// containerd's configuration.
pub(super) fn config(directory: &Path) -> PathBuf {
    directory.join("containerd.toml")
}

/// Writes the configuration of containerd and of the pods' network, which has this range of addresses.
pub(super) fn write(directory: &Path, subnet: &str) -> Result<()> {
    let network = directory.join("cni");
    std::fs::create_dir_all(&network).with_context(|| format!("making {}", network.display()))?;
    put(&network.join("10-lab.conflist"), &conflist(directory, subnet))?;
    put(&config(directory), &containerd(directory))
}

fn put(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

/// Everything below one directory, so that removing it removes all. OOM scores cannot be lowered where
/// CAP_SYS_RESOURCE is missing.
fn containerd(directory: &Path) -> String {
    let at = directory.display();
    let pause = super::IMAGE;
    format!(
        r#"version = 2
root = "{at}/root"
state = "{at}/state"
oom_score = 0
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.internal.v1.tracing", "io.containerd.internal.v1.opt"]
[grpc]
  address = "{at}/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  disable_apparmor = true
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  disable_tcp_service = true
  stream_server_address = "127.0.0.1"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.{HANDLER}]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.{HANDLER}.options]
        SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{PLUGINS}"
    conf_dir = "{at}/cni"
"#
    )
}

fn conflist(directory: &Path, subnet: &str) -> String {
    serde_json::json!({
        "cniVersion": "0.4.0",
        "name": "lab",
        "plugins": [{
            "type": "bridge",
            "bridge": "lab0",
            "isGateway": true,
            "ipMasq": false,
            "hairpinMode": true,
            "ipam": {
                "type": "host-local",
                "dataDir": directory.join("addresses"),
                "ranges": [[{ "subnet": subnet }]],
                "routes": [{ "dst": "0.0.0.0/0" }],
            },
        }],
    })
    .to_string()
}
