//! What the kernel did not run a program for.
//!
//! From kernel 6.2 on a program at a raw tracepoint is not run inside of itself (`__bpf_trace_run` in
//! kernel/trace/bpf_trace.c): where an interrupt comes while it runs and leads to the same tracepoint on the same CPU,
//! that event is passed over, and the program's `recursion_misses` grows. Older kernels run it.

use std::io;

use aya::programs::{links::FdLink, links::PinnedLink, loaded_programs};

use crate::kernel::{Program, Programs, pins::Pins};

/// Programs whose passed-over events are counted.
#[derive(Debug, Default)]
pub struct Misses {
    programs: Programs,
    /// Of programs that ran before these.
    before: u64,
}

impl Misses {
    /// Of these programs, and so many of earlier ones.
    #[must_use]
    pub(super) const fn new(programs: Programs, before: u64) -> Self {
        Self { programs, before }
    }

    /// The programs that an earlier agent has left at these pins. They can be asked for as long as this lives, even when
    /// they are attached no more. One that cannot be found is left out.
    #[must_use]
    pub(super) fn pinned(pins: &Pins, names: &[(&'static str, &'static str)]) -> Self {
        let pinned = |name| Some(FdLink::from(PinnedLink::from_pin(pins.probe(name)).ok()?).info().ok()?.program_id());
        let ids: Vec<(u32, &'static str)> = names.iter().filter_map(|(name, _)| Some((pinned(name)?, *name))).collect();
        let named = loaded_programs().flatten().filter_map(|program| {
            let (_, name) = ids.iter().find(|(id, _)| *id == program.id())?;
            Program::of(name, &program.fd().ok()?).ok()
        });
        Self::new(named.collect(), 0)
    }

    /// How many events were passed over, whatever they were. `None` on a kernel that does not count them (before 5.12).
    ///
    /// # Errors
    ///
    /// When procfs cannot be read.
    pub fn total(&self) -> io::Result<Option<u64>> {
        let mut total = self.before;
        for program in &self.programs {
            let Some(misses) = program.told()?.misses else { return Ok(None) };
            total += misses;
        }
        Ok(Some(total))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_of_earlier_programs_are_among_them() {
        assert_eq!(Misses::new(Vec::new(), 3).total().unwrap(), Some(3));
    }
}
