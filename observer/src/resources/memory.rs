//! Memory and pressure of the node. The procfs crate reads these files too, but a line that is cut short or from another
//! kernel makes it panic, refuse the whole file (the CPU has no line `full` before 5.13) or tell a wrong number.

use std::{fs, path::Path};

use anyhow::Context;

use super::{PressureFacts, Waited, parse};

/// What `/proc/meminfo` (proc_meminfo(5)) says, in bytes; `None` for what it does not say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NodeMemory {
    /// `MemTotal`: what the kernel manages.
    pub total: Option<u64>,
    /// `MemFree`: what nobody uses.
    pub free: Option<u64>,
    /// `MemAvailable`: what could be had without swapping.
    pub available: Option<u64>,
    /// `Buffers`: block devices in the page cache.
    pub buffers: Option<u64>,
    /// `Cached`: files in the page cache.
    pub cached: Option<u64>,
    /// `SwapTotal`.
    pub swap_total: Option<u64>,
    /// `SwapFree`.
    pub swap_free: Option<u64>,
}

impl NodeMemory {
    /// Reads it.
    ///
    /// # Errors
    /// When the file cannot be read or says nothing; it is named.
    pub fn read(procfs: &Path) -> anyhow::Result<Self> {
        let path = procfs.join("meminfo");
        let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let memory = Self::parse(&String::from_utf8_lossy(&bytes));
        anyhow::ensure!(memory != Self::default(), "{} tells nothing of memory", path.display());
        Ok(memory)
    }

    /// What this text says.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut memory = Self::default();
        for (name, bytes) in parse::meminfo(text) {
            let field = match name {
                "MemTotal" => &mut memory.total,
                "MemFree" => &mut memory.free,
                "MemAvailable" => &mut memory.available,
                "Buffers" => &mut memory.buffers,
                "Cached" => &mut memory.cached,
                "SwapTotal" => &mut memory.swap_total,
                "SwapFree" => &mut memory.swap_free,
                _ => continue,
            };
            *field = Some(bytes);
        }
        memory
    }
}

/// How long tasks of the node waited for `cpu`, `memory` or `io` (Documentation/accounting/psi.rst). Nothing of it on a
/// kernel without pressure accounting.
#[must_use]
pub fn node_pressure(procfs: &Path, resource: &str) -> Waited {
    let bytes = fs::read(procfs.join("pressure").join(resource)).unwrap_or_default();
    let (some, full) = parse::pressure(&String::from_utf8_lossy(&bytes));
    PressureFacts { some, full }.into()
}
