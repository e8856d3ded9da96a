//! What the machine has and allows, as far as the toolchain of the kernel programs is concerned.

use std::net::{TcpStream, ToSocketAddrs as _};
use std::path::Path;
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;
use std::{env, thread};

use super::{LLVM_MAJOR, act, toolchain};
use crate::workspace::Workspace;
use crate::{apt, machine, run};

/// Where rustup fetches toolchains from.
const RUST_HOST: &str = "static.rust-lang.org:443";
/// Longer than this, and the network is as good as not there.
const REACH: Duration = Duration::from_secs(4);

/// The facts.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// Toolchains and linker that are there.
    pub ebpf: toolchain::Facts,
    /// rustup is in PATH.
    pub rustup: bool,
    /// rustup's server answers; looked at only when no toolchain is there.
    pub rustup_server: bool,
    /// This process is root.
    pub root: bool,
    /// apt installs packages here.
    pub apt: bool,
    /// apt offers Debian's Rust with its source (or has installed it); looked at like `rustup_server`.
    pub debian_rust: bool,
    /// What the linker says of its version.
    pub linker_version: Option<String>,
    /// LLVM's development files are there.
    pub llvm: bool,
    /// apt offers them.
    pub debian_llvm: bool,
}

/// Looks at the machine; asks the network and apt only for what is missing.
pub fn gather(workspace: &Workspace) -> Facts {
    // Lists that are older than the mirror do not name what came since: before a package is said not to be there, they are
    // fetched anew.
    let debian_offers = |packages: &[&str]| {
        let renewed = || machine::is_root() && apt::update(workspace).is_ok();
        machine::has_apt() && (apt::offers(packages) || renewed() && apt::offers(packages))
    };
    let ebpf = toolchain::Facts::gather();
    let rustup = machine::has_program("rustup");
    let compiler = ebpf.toolchain().is_ok();
    let linker_version = ebpf.linker.as_ref().and_then(|linker| {
        let text = run::output(Command::new(linker).arg("--version")).ok()?;
        text.strip_prefix("bpf-linker ").map(str::to_owned)
    });
    let llvm = Path::new(&act::llvm_prefix()).join("bin/llvm-config").exists();
    Facts {
        rustup,
        rustup_server: !compiler && rustup && reaches_rustup_server(),
        root: machine::is_root(),
        apt: machine::has_apt(),
        debian_rust: !compiler && debian_offers(&act::DEBIAN_RUST),
        debian_llvm: linker_version.is_none() && !llvm && debian_offers(&[&format!("llvm-{LLVM_MAJOR}-dev")]),
        linker_version,
        llvm,
        ebpf,
    }
}

fn reaches_rustup_server() -> bool {
    // Behind a proxy or with a mirror, only rustup itself can tell.
    let indirect = ["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "RUSTUP_DIST_SERVER"];
    if indirect.iter().any(|name| env::var_os(name).is_some()) {
        return true;
    }
    // Name resolution has no time limit of its own.
    let (send, receive) = mpsc::channel();
    thread::spawn(move || {
        let mut addresses = RUST_HOST.to_socket_addrs().into_iter().flatten();
        let answers = addresses.next().is_some_and(|address| TcpStream::connect_timeout(&address, REACH).is_ok());
        // Whoever asked may have stopped waiting.
        let _ = send.send(answers);
    });
    receive.recv_timeout(REACH * 2).unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::fs;

    use crate::setup::toolchain::{Facts, LINKED, PINNED_NIGHTLY};

    /// A rustup directory with toolchains; those whose name ends with `+src` have the library source.
    fn fake(toolchains: &[&str]) -> tempdir::Dir {
        let root = tempdir::Dir::new();
        for name in toolchains {
            let (name, source) = name.strip_suffix("+src").map_or((*name, false), |name| (name, true));
            let dir = root.path().join("rustup/toolchains").join(name);
            fs::create_dir_all(dir.join("bin")).unwrap();
            fs::write(dir.join("bin/rustc"), "").unwrap();
            if source {
                fs::create_dir_all(dir.join("lib/rustlib/src/rust/library/core/src")).unwrap();
                fs::write(dir.join("lib/rustlib/src/rust/library/core/src/lib.rs"), "").unwrap();
            }
        }
        root
    }

    fn gather(root: &tempdir::Dir, wanted: Option<&str>) -> Facts {
        let [rustup, cargo, bin] = ["rustup", "cargo", "path-bin"].map(|name| root.path().join(name));
        let path: Option<&OsStr> = Some(bin.as_os_str());
        Facts::gather_from(wanted.map(str::to_owned), Some(&rustup), Some(&cargo), path)
    }

    #[test]
    fn an_empty_machine_has_nothing() {
        let facts = gather(&fake(&[]), None);
        assert_eq!(facts, Facts::default());
        assert!(facts.choose().is_err());
        assert_eq!(Facts::gather_from(None, None, None, None), Facts::default());
    }

    #[test]
    fn finds_toolchains_with_source_and_the_linker() {
        let root =
            fake(&["stable-x86_64-unknown-linux-gnu", "nightly-2026-05-20-x86_64-unknown-linux-gnu+src", "bpf+src"]);
        let facts = gather(&root, None);
        assert_eq!(facts.with_source, [LINKED, PINNED_NIGHTLY]);
        assert_eq!(facts.without_source, ["stable"]);
        assert!(facts.choose().unwrap_err().contains("bpf-linker"));
        fs::create_dir_all(root.path().join("cargo/bin")).unwrap();
        fs::write(root.path().join("cargo/bin/bpf-linker"), "").unwrap();
        let choice = gather(&root, None).choose().unwrap();
        assert_eq!((choice.toolchain.as_str(), choice.bootstrap), (PINNED_NIGHTLY, false));
        let choice = gather(&root, Some(LINKED)).choose().unwrap();
        assert_eq!((choice.toolchain.as_str(), choice.bootstrap), (LINKED, true));
    }

    #[test]
    fn a_nightly_without_source_does_not_do() {
        let facts = gather(&fake(&["nightly-aarch64-unknown-linux-gnu"]), None);
        assert_eq!(facts.without_source, ["nightly"]);
        assert!(facts.toolchain().unwrap_err().contains("rust-src"));
    }

    mod tempdir {
        use std::path::{Path, PathBuf};
        use std::sync::atomic::{AtomicU32, Ordering};

        /// A directory that goes with its test.
        pub struct Dir(PathBuf);

        impl Dir {
            pub fn new() -> Self {
                static NEXT: AtomicU32 = AtomicU32::new(0);
                let name = format!("observer-xtask-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
                let path = std::env::temp_dir().join(name);
                std::fs::create_dir_all(&path).unwrap();
                Self(path)
            }

            pub fn path(&self) -> &Path {
                &self.0
            }
        }

        impl Drop for Dir {
            fn drop(&mut self) {
                std::fs::remove_dir_all(&self.0).unwrap();
            }
        }
    }
}
