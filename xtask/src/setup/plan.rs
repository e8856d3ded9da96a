//! Decides from the facts which toolchain to use or how to get one. Pure.

use anyhow::{Result, bail};

use super::facts::Facts;
use super::toolchain::{self, PINNED_NIGHTLY};
use super::{BPF_LINKER_VERSION, LLVM_MAJOR};

/// A way of getting a compiler with its library source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Way {
    /// The pinned nightly with rust-src, by rustup
    Nightly,
    /// Debian's Rust with its source, linked into rustup
    Debian,
}

impl Way {
    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nightly => "nightly by rustup",
            Self::Debian => "Debian's packages",
        }
    }

    /// The log of what it runs.
    pub fn log(self) -> &'static str {
        match self {
            Self::Nightly => "rustup-nightly",
            Self::Debian => "apt-install",
        }
    }
}

/// What to do about the compiler.
#[derive(Debug, PartialEq, Eq)]
pub enum Compiler {
    /// Nothing: this toolchain is there.
    There(String),
    /// Get one: the first way that works. With the reasons against the others.
    Get(Vec<Way>, Vec<String>),
}

/// What to do about bpf-linker.
#[derive(Debug, PartialEq, Eq)]
pub enum Linker {
    /// Nothing; with what to say of its version.
    There(String),
    /// Compile it, after installing LLVM's development files if they are missing.
    Compile {
        /// Whether LLVM's development files are missing.
        llvm_first: bool,
    },
}

/// Decides about the compiler.
pub fn compiler(facts: &Facts, only: Option<Way>) -> Result<Compiler> {
    match facts.ebpf.toolchain() {
        Ok(name) if only.is_none() => return Ok(Compiler::There(name.to_owned())),
        Err(reason) if facts.ebpf.wanted.is_some() => {
            bail!("{reason}: unset {} or install it", toolchain::OVERRIDE_ENV)
        }
        _ => {}
    }
    if !facts.rustup {
        bail!(
            "rustup is not in PATH, and the kernel programs need a second toolchain beside the stable one: install \
             it from https://rustup.rs and run this again"
        );
    }
    let against = |way| match way {
        Way::Nightly if !facts.rustup_server => Some("rustup's server does not answer"),
        Way::Debian if !facts.apt => Some("this is not Debian: there is no apt"),
        Way::Debian if !facts.root => Some("apt needs root: run this as root"),
        Way::Debian if !facts.debian_rust => Some("apt's sources here have no rustc-web with rust-web-src"),
        _ => None,
    };
    let (mut ways, mut reasons) = (Vec::new(), Vec::new());
    for way in [Way::Nightly, Way::Debian] {
        match against(way) {
            _ if only.is_some_and(|only| only != way) => {}
            None => ways.push(way),
            Some(reason) => reasons.push(format!("{}: {reason}", way.name())),
        }
    }
    if ways.is_empty() {
        bail!(
            "no toolchain with rust-src is here, and none can be had ({}). Where a network allows it: rustup toolchain \
             install {PINNED_NIGHTLY} --profile minimal --component rust-src",
            reasons.join("; ")
        );
    }
    Ok(Compiler::Get(ways, reasons))
}

/// Decides about bpf-linker.
pub fn linker(facts: &Facts) -> Result<Linker> {
    match (&facts.ebpf.linker, &facts.linker_version) {
        (Some(_), Some(version)) if version == BPF_LINKER_VERSION => return Ok(Linker::There(version.clone())),
        (Some(path), Some(version)) => {
            return Ok(Linker::There(format!(
                "{version} in {}, used as it is; {BPF_LINKER_VERSION} is what this project is tried with",
                path.display()
            )));
        }
        _ => {}
    }
    if facts.llvm {
        return Ok(Linker::Compile { llvm_first: false });
    }
    if facts.apt && facts.root && facts.debian_llvm {
        return Ok(Linker::Compile { llvm_first: true });
    }
    let why = if !facts.apt {
        "this is not Debian: there is no apt"
    } else if !facts.root {
        "apt needs root: run this as root"
    } else {
        "apt's sources here do not have it"
    };
    bail!(
        "bpf-linker {BPF_LINKER_VERSION} is not here, and compiling it needs llvm-{LLVM_MAJOR}-dev ({why}). Put a binary \
         of https://github.com/aya-rs/bpf-linker/releases/tag/v{BPF_LINKER_VERSION} into a directory of PATH (or: \
         cargo binstall bpf-linker@{BPF_LINKER_VERSION}), and run this again"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::setup::toolchain::{ANY_NIGHTLY, LINKED};

    fn ebpf(with: &[&str], linker: bool) -> toolchain::Facts {
        toolchain::Facts {
            with_source: with.iter().map(ToString::to_string).collect(),
            linker: linker.then(|| "/somewhere/bpf-linker".into()),
            ..Default::default()
        }
    }

    fn fresh() -> Facts {
        Facts {
            rustup: true,
            rustup_server: true,
            root: true,
            apt: true,
            debian_rust: true,
            debian_llvm: true,
            ..Facts::default()
        }
    }

    #[test]
    fn uses_what_is_there_in_order() {
        let there = |with: &[&str]| compiler(&Facts { ebpf: ebpf(with, false), ..fresh() }, None).unwrap();
        assert_eq!(there(&[ANY_NIGHTLY, LINKED, PINNED_NIGHTLY]), Compiler::There(PINNED_NIGHTLY.into()));
        assert_eq!(there(&[ANY_NIGHTLY, LINKED]), Compiler::There(LINKED.into()));
        assert_eq!(there(&[ANY_NIGHTLY]), Compiler::There(ANY_NIGHTLY.into()));
    }

    #[test]
    fn a_fresh_machine_tries_nightly_then_debian() {
        assert_eq!(compiler(&fresh(), None).unwrap(), Compiler::Get(vec![Way::Nightly, Way::Debian], vec![]));
        let offline = Facts { rustup_server: false, ..fresh() };
        let Compiler::Get(ways, reasons) = compiler(&offline, None).unwrap() else { panic!("nothing is there") };
        assert_eq!(ways, [Way::Debian]);
        assert!(reasons[0].contains("does not answer"), "{reasons:?}");
    }

    #[test]
    fn says_what_to_install_when_nothing_works() {
        let facts = Facts { rustup_server: false, apt: false, ..fresh() };
        let error = compiler(&facts, None).unwrap_err().to_string();
        assert!(error.contains("not Debian") && error.contains(PINNED_NIGHTLY), "{error}");
        let facts = Facts { rustup_server: false, root: false, ..fresh() };
        let error = compiler(&facts, None).unwrap_err().to_string();
        assert!(error.contains("as root"), "{error}");
        let error = compiler(&Facts { rustup: false, ..fresh() }, None).unwrap_err().to_string();
        assert!(error.contains("rustup.rs"), "{error}");
    }

    #[test]
    fn a_wanted_toolchain_that_lacks_is_an_error() {
        let mut facts = fresh();
        facts.ebpf.wanted = Some("mine".into());
        assert!(compiler(&facts, None).unwrap_err().to_string().contains("`mine`"));
    }

    #[test]
    fn the_linker_is_compiled_with_llvm_or_explained() {
        assert_eq!(linker(&fresh()).unwrap(), Linker::Compile { llvm_first: true });
        assert_eq!(linker(&Facts { llvm: true, ..fresh() }).unwrap(), Linker::Compile { llvm_first: false });
        let error = linker(&Facts { apt: false, ..fresh() }).unwrap_err().to_string();
        assert!(error.contains("releases/tag/v0.13.0"), "{error}");
        let there = Facts { ebpf: ebpf(&[], true), linker_version: Some("0.13.0".into()), ..fresh() };
        assert_eq!(linker(&there).unwrap(), Linker::There("0.13.0".into()));
        let other = Facts { linker_version: Some("0.9.15".into()), ..there };
        assert!(matches!(linker(&other).unwrap(), Linker::There(text) if text.contains("tried with")));
    }
}
