//! Programs that follow those of an earlier agent.
//!
//! The earlier ones go on until the new ones count: no event may find neither. For a moment both run, so a map says whose
//! turn it is.

use std::{fs, io, path::PathBuf, sync::Arc};

use aya::{
    Ebpf,
    programs::{BtfTracePoint, ProgramError, RawTracePoint, links::FdLink},
};

use super::ProbeError;
use crate::kernel::{Program, pins::Pins};

/// A program that is attached beside that of an earlier agent.
#[must_use]
pub(super) struct Successor {
    /// The program.
    pub(super) program: Arc<Program>,
    pin: PathBuf,
    next: PathBuf,
}

impl Successor {
    /// Loads a program and attaches it to its raw tracepoint.
    pub(super) fn attach(
        ebpf: &mut Ebpf,
        pins: &Pins,
        (program, tracepoint): (&'static str, &str),
    ) -> Result<Self, ProbeError> {
        let refused = |source| ProbeError::Program { program, source };
        let running = loaded(ebpf, program)?;
        let point = raw_tracepoint(ebpf, program)?;
        let id = point.attach(tracepoint).map_err(refused)?;
        Self::pin(running, point.take_link(id).map_err(refused)?.into(), pins, program)
    }

    /// The same for a program that is loaded with the kernel's types.
    pub(super) fn attach_typed(
        ebpf: &mut Ebpf,
        pins: &Pins,
        (program, tracepoint): (&'static str, &str),
        types: &aya::Btf,
    ) -> Result<Self, ProbeError> {
        let refused = |source| ProbeError::Program { program, source };
        let missing = || refused(ProgramError::NotLoaded);
        let point: &mut BtfTracePoint = ebpf.program_mut(program).ok_or_else(missing)?.try_into().map_err(refused)?;
        point.load(tracepoint, types).map_err(refused)?;
        let id = point.attach().map_err(refused)?;
        let link = point.take_link(id).map_err(refused)?.into();
        let running = point.fd().and_then(|fd| Ok(Program::of(program, fd)?)).map_err(refused)?;
        Self::pin(running, link, pins, program)
    }

    fn pin(program: Arc<Program>, link: FdLink, pins: &Pins, name: &str) -> Result<Self, ProbeError> {
        let pin = pins.probe(name);
        let next = pins.probe(&next_of(name));
        // One that an agent left which was killed before `succeed`: it may be the one that counts.
        let _ = fs::rename(&next, &pin);
        match link.pin(&next) {
            Ok(_) => Ok(Self { program, pin, next }),
            Err(error) => Err(ProbeError::Pin { path: next, source: io::Error::other(error) }),
        }
    }

    /// This program counts now: the earlier one ends. It goes on when the agent ends.
    pub(super) fn succeed(self) -> Result<Arc<Program>, ProbeError> {
        let Self { program, pin, next } = self;
        fs::rename(&next, &pin).map_err(|source| ProbeError::Pin { path: pin, source })?;
        Ok(program)
    }
}

/// Ends what an earlier agent left of these programs.
pub(super) fn forget(pins: &Pins, programs: &[(&str, &str)]) {
    for (program, _) in programs {
        for pin in [(*program).to_owned(), next_of(program)] {
            let _ = fs::remove_file(pins.probe(&pin));
        }
    }
}

/// A program of a raw tracepoint, loaded if it is not yet.
pub(super) fn loaded(ebpf: &mut Ebpf, program: &'static str) -> Result<Arc<Program>, ProbeError> {
    let refused = |source| ProbeError::Program { program, source };
    let point = raw_tracepoint(ebpf, program)?;
    if point.fd().is_err() {
        point.load().map_err(refused)?;
    }
    point.fd().and_then(|fd| Ok(Program::of(program, fd)?)).map_err(refused)
}

/// The same as the object file has it.
pub(super) fn raw_tracepoint<'a>(
    ebpf: &'a mut Ebpf,
    program: &'static str,
) -> Result<&'a mut RawTracePoint, ProbeError> {
    let missing = || ProbeError::Program { program, source: ProgramError::NotLoaded };
    ebpf.program_mut(program).ok_or_else(missing)?.try_into().map_err(|source| ProbeError::Program { program, source })
}

/// Where a program is pinned until it is the one that counts. (The kernel allows no dots here.)
fn next_of(program: &str) -> String {
    format!("{program}-next")
}
