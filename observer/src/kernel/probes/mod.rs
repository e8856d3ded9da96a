//! Probes beside the traffic's own programs: each is an object by itself, that a kernel may refuse without harm to the
//! rest.
//!
//! A probe has a file here that loads it and reads its maps, a file in `observer-common` with what both sides agree on,
//! and a file in `observer-ebpf/src/bin`. It attaches to raw tracepoints, which need no tracing file system, and gets
//! the offsets of kernel fields from [`Btf`](super::btf::Btf).

pub mod drops;
mod misses;
pub mod oom;
pub mod runqueue;
mod sockets;
mod succession;
pub mod tcp;
pub mod unix;

use std::{io, path::PathBuf};

use aya::{Ebpf, EbpfError, EbpfLoader, maps::MapError, programs::ProgramError};

pub use misses::Misses;
use succession::Successor;

use super::{btf::BtfError, pins::Pins};

/// Why a probe does not run.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The build had no toolchain for kernel programs.
    #[error("this agent was built without its kernel programs; run `cargo xtask setup`, then build again")]
    NotBuilt,
    /// This kernel lacks what the probe reads.
    #[error(transparent)]
    Unsupported(#[from] BtfError),
    /// This kernel does not tell its types.
    #[error("{0}")]
    NoTypes(String),
    /// This host has no cgroup v2 tree, by whose ids the probe counts.
    #[error("this host has no cgroup v2 tree, by whose ids it counts; {instead}")]
    NoCgroupIds {
        /// What is there in its place.
        instead: &'static str,
    },
    /// The object was refused.
    #[error("loading its object failed: {0}")]
    Object(#[from] EbpfError),
    /// A program was refused, or could not be attached.
    #[error("the kernel refused the program {program}: {source}")]
    Program {
        /// The program.
        program: &'static str,
        /// What the kernel said.
        source: ProgramError,
    },
    /// A map is missing or of another kind.
    #[error("the map {map} cannot be used: {source}")]
    Map {
        /// The map.
        map: &'static str,
        /// What is wrong.
        source: MapError,
    },
    /// The link works but could not be pinned.
    #[error("cannot pin the link at {path}: {source}")]
    Pin {
        /// The pin.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A map cannot be mapped into memory.
    #[error("cannot map {map} into memory: {source}")]
    Mmap {
        /// The map.
        map: &'static str,
        /// What mmap(2) said.
        source: io::Error,
    },
    /// The number of CPUs is not known.
    #[error("cannot read how many CPUs this machine has: {0}")]
    Cpus(io::Error),
    /// No thread for what it tells.
    #[error("cannot make the probe's thread: {0}")]
    Thread(io::Error),
}

impl ProbeError {
    /// True when this kernel can never run the probe, false when something failed that might not have.
    #[must_use]
    pub const fn is_unsupported(&self) -> bool {
        // A program that names kernel types meets a kernel without them (`btf_trace_*` is there since 5.5) as it loads.
        matches!(
            self,
            Self::Unsupported(_)
                | Self::NoTypes(_)
                | Self::NoCgroupIds { .. }
                | Self::Program { source: ProgramError::Btf(_), .. }
        )
    }
}

/// Loads an object whose maps `pinned` outlive the agent; `configure` sets its constants and sizes.
pub(super) fn load<'a>(
    object: &'static [u8],
    pins: &Pins,
    pinned: &[&'a str],
    configure: impl FnOnce(&mut EbpfLoader<'a>),
) -> Result<Ebpf, ProbeError> {
    if object.is_empty() {
        return Err(ProbeError::NotBuilt);
    }
    let mut loader = EbpfLoader::new();
    for name in pinned {
        loader.map_pin_path(name, pins.map(name));
    }
    configure(&mut loader);
    Ok(loader.load(object)?)
}

/// Ends what an earlier agent left of programs that this one does not run.
pub fn forget(pins: &Pins, programs: &[(&str, &str)]) {
    succession::forget(pins, programs);
}

pub(super) fn take<T>(ebpf: &mut Ebpf, map: &'static str) -> Result<T, ProbeError>
where
    T: TryFrom<aya::maps::Map, Error = MapError>,
{
    let missing = || ProbeError::Map { map, source: MapError::InvalidName { name: map.to_owned() } };
    T::try_from(ebpf.take_map(map).ok_or_else(missing)?).map_err(|source| ProbeError::Map { map, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_without_a_type_is_not_a_failure() {
        let program = |source| ProbeError::Program { program: "p", source };
        let unknown = aya::BtfError::UnknownBtfTypeName { type_name: "btf_trace_sched_switch".into() };
        assert!(program(ProgramError::Btf(unknown)).is_unsupported());
        assert!(!program(ProgramError::NotLoaded).is_unsupported());
        assert!(ProbeError::NoCgroupIds { instead: "" }.is_unsupported());
    }
}
