//! Whether the agent's programs run for a pod: what it has pinned, and what the kernel says.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use aya::programs::links::{FdLink, PinnedLink};

use crate::cases::Stage;
use crate::cgroup::{EGRESS, INGRESS, effective_programs};
use crate::pod::Pod;

const DIRECTIONS: [(&str, u32); 2] = [("ingress", INGRESS), ("egress", EGRESS)];

/// Ids of the programs of this case's agents. Others may be attached by whoever else looks at the machine's pods.
#[derive(Default)]
pub(super) struct Programs(BTreeSet<u32>);

impl Programs {
    /// The pod has a link for each direction, and the kernel runs its program, once. Remembers which.
    pub fn expect(&mut self, stage: &Stage, pod: &Pod) -> Result<()> {
        let name = &pod.spec().name;
        let directory = directory(pod)?;
        for (direction, attach_type) in DIRECTIONS {
            let pin = pin(stage, pod, direction)?;
            let link = PinnedLink::from_pin(&pin).with_context(|| format!("{name} is not attached to"))?;
            let program = FdLink::from(link).info().context("asking for a link's program")?.program_id();
            let found = effective_programs(&directory, attach_type)?;
            let times = found.iter().filter(|id| **id == program).count();
            ensure!(times == 1, "the {direction} program {program} runs {times} times for {name}, whose are {found:?}");
            self.0.insert(program);
        }
        Ok(())
    }

    /// The pod has no link, and the kernel runs none of the programs that are remembered.
    pub fn expect_none(&self, stage: &Stage, pod: &Pod) -> Result<()> {
        let name = &pod.spec().name;
        let directory = directory(pod)?;
        for (direction, attach_type) in DIRECTIONS {
            ensure!(!pin(stage, pod, direction)?.exists(), "a link for {direction} is pinned for {name}");
            let found = effective_programs(&directory, attach_type)?;
            let ours: Vec<_> = found.iter().filter(|id| self.0.contains(id)).collect();
            ensure!(ours.is_empty(), "the {direction} programs {ours:?} run for {name}");
        }
        Ok(())
    }
}

fn directory(pod: &Pod) -> Result<PathBuf> {
    pod.cgroup().unified().context("the pod has no cgroup in the v2 tree")
}

fn pin(stage: &Stage, pod: &Pod, direction: &str) -> Result<PathBuf> {
    let cgroup = directory(pod)?;
    let inode = std::fs::metadata(&cgroup).with_context(|| format!("looking at {}", cgroup.display()))?.ino();
    Ok(stage.pinned("links").join(format!("{inode}-{direction}")))
}
