//! How long the threads of containers were ready to run and did not.
//!
//! The scheduler keeps the book itself (`sched_info_*` in kernel/sched/stats.h): `last_queued` is when a task was put
//! into a queue, `run_delay` the sum of all waits that ended. `__schedule` calls the tracepoint just before
//! `sched_info_arrive` ends the wait of the next task, so `rq->clock - last_queued` here is to the nanosecond what is
//! added to `run_delay` there. A task that is moved to another CPU's queue while it waits has the first part in
//! `run_delay` already: what the task had when it last ran is remembered, so that the wait is whole.
//!
//! Who ran before (`prev`) is not looked at: a wait behind a thread of the same container is a wait too. The last one to
//! run says little of whom a thread waited for, as many may have run in between, and without these waits the sum would no
//! more be what the scheduler's book says, which is what it is tested against.

#![no_std]
#![no_main]

#[path = "../program.rs"]
mod program;

use aya_ebpf::{
    Global,
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    helpers::bpf_get_smp_processor_id,
    macros::{btf_tracepoint, map},
    maps::{Array, HashMap, LruHashMap},
    programs::BtfTracePointContext,
};
use observer_common::runqueue::{BUCKETS, SLOTS, Waits, bucket};

// A hash map, because its keys are ids that the kernel gives. The agent alone writes it.
#[map]
static RUNQUEUE_OBSERVED: HashMap<u64, u32> = HashMap::with_max_entries(16_384, BPF_F_NO_PREALLOC);

// What a thread had waited in all when it last ran. A hash map, because a node may have four million thread ids. It
// forgets who has not run for longest: the part of that one's next wait on another CPU's queue, if any, is missing.
#[map]
static RUNQUEUE_SEEN: LruHashMap<u32, u64> = LruHashMap::with_max_entries(32_768, 0);

// A row of slots for each CPU, which only that CPU writes; the loader sets the size.
#[map]
static RUNQUEUE_WAITS: Array<Waits> = Array::with_max_entries(SLOTS, BPF_F_MMAPABLE);

#[unsafe(no_mangle)]
static TASK_PID: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static TASK_RUNS: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static TASK_RUN_DELAY: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static TASK_LAST_QUEUED: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static TASK_CFS_RQ: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static CFS_RQ_RQ: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static RQ_CLOCK: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static TASK_CGROUPS: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static CSS_SET_CGROUP: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static CGROUP_NODE: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static NODE_ID: Global<u32> = Global::new(0);

/// `sched_switch(bool preempt, struct task_struct *prev, struct task_struct *next, …)` (`__schedule` in
/// kernel/sched/core.c), with interrupts off.
#[btf_tracepoint(function = "sched_switch")]
pub fn runqueue_switch(ctx: BtfTracePointContext) -> i32 {
    let next: *const u8 = ctx.arg(2);
    let _ = wait_of(next);
    0
}

#[inline(always)]
fn wait_of(task: *const u8) -> Option<()> {
    let pid: u32 = read(task, &TASK_PID);
    // The idle task waits for nothing.
    if pid == 0 {
        return None;
    }
    let set: *const u8 = read(task, &TASK_CGROUPS);
    let cgroup: *const u8 = read(set, &CSS_SET_CGROUP);
    let node: *const u8 = read(cgroup, &CGROUP_NODE);
    let id: u64 = read(node, &NODE_ID);
    // SAFETY: nobody changes the value in place but to another slot.
    let slot = *unsafe { RUNQUEUE_OBSERVED.get(id) }?;
    let queued: u64 = read(task, &TASK_LAST_QUEUED);
    let before: u64 = read(task, &TASK_RUN_DELAY);
    let queue: *const u8 = read(task, &TASK_CFS_RQ);
    let queue: *const u8 = read(queue, &CFS_RQ_RQ);
    let now: u64 = read(queue, &RQ_CLOCK);
    let last = if queued == 0 { 0 } else { now.wrapping_sub(queued) };
    let total = before + last;
    let seen = match RUNQUEUE_SEEN.get_ptr_mut(pid) {
        // SAFETY: the map gave a valid, aligned pointer; a thread runs on one CPU at a time.
        Some(seen) => unsafe { seen.replace(total) },
        None => {
            let _ = RUNQUEUE_SEEN.insert(pid, total, 0);
            before
        }
    };
    // A thread that never ran may have got the id of another.
    let runs: u64 = read(task, &TASK_RUNS);
    let wait = if runs == 0 { total } else { total.wrapping_sub(seen) };
    // SAFETY: the helper has no arguments.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    let waits = RUNQUEUE_WAITS.get_ptr_mut(cpu * SLOTS + slot)?;
    let at = bucket(wait);
    if at < BUCKETS {
        // SAFETY: the map gave a valid, aligned pointer, and only this CPU writes this row, with interrupts off.
        unsafe {
            (*waits).buckets[at] += 1;
            (*waits).sum += wait;
        }
    }
    Some(())
}

/// Reads a field of a kernel structure.
#[inline(always)]
fn read<T>(structure: *const u8, offset: &Global<u32>) -> T {
    // SAFETY: the verifier knows the structure and that the field at this constant offset has this size; the kernel
    // turns a read of what is not there into zero.
    unsafe { structure.add(offset.load() as usize).cast::<T>().read_volatile() }
}
