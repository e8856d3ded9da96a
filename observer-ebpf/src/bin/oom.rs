//! Who was killed for want of memory.
//!
//! `__oom_kill_process` in mm/oom_kill.c sends the signal to its victim and marks it at once, with a spinlock held. A
//! process that is marked without the signal was dying already (`task_will_free_mem`) and gets only access to reserves:
//! the kernel does not count it, and neither do we. The victim is counted in the cgroup it is in then. What it had is
//! told when it ends. Two agents' programs may run side by side for a moment: the second finds the process dying.

#![no_std]
#![no_main]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

#[path = "../add.rs"]
mod add;
#[path = "../program.rs"]
mod program;

use aya_ebpf::{
    Global,
    bindings::{BPF_F_NO_PREALLOC, BPF_NOEXIST},
    helpers::{bpf_get_current_pid_tgid, bpf_probe_read_kernel},
    macros::{map, raw_tracepoint},
    maps::{HashMap, LruHashMap, PerCpuArray, RingBuf},
    programs::RawTracePointContext,
};
use observer_common::oom::{COMM_LEN, Carried, Kill, NO_ROOM, Place};

// Hash maps, because their keys are ids that the kernel gives. Touched once for each victim.
#[map]
static OOM_KILLS: HashMap<u64, u64> = HashMap::with_max_entries(16_384, BPF_F_NO_PREALLOC);

#[map]
static OOM_CARRIED: HashMap<Place, Carried> = HashMap::with_max_entries(4_096, BPF_F_NO_PREALLOC);

// Forgets the oldest: a process that never ended. It is counted already then.
#[map]
static OOM_DYING: LruHashMap<u32, Dying> = LruHashMap::with_max_entries(1_024, 0);

#[map]
static OOM_EVENTS: RingBuf = RingBuf::with_byte_size(64 * 1024, 0);

// The kill that is under way on this CPU.
#[map]
static OOM_SENT: PerCpuArray<Sent> = PerCpuArray::with_max_entries(1, 0);

#[unsafe(no_mangle)]
static VICTIM_IS_TASK: Global<u8> = Global::new(1);
#[unsafe(no_mangle)]
static TASK_PID: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static TASK_TGID: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static TASK_LEADER: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static TASK_COMM: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static TASK_START: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static TASK_SIGNAL: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static SIGNAL_LIVE: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static SIGNAL_MAXRSS: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static TASK_CGROUPS: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static CSS_SET_CGROUP: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static CGROUP_NODE: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static NODE_ID: Global<u32> = Global::new(0);

/// `SIGKILL`.
const KILL: i32 = 9;
/// `SEND_SIG_PRIV` of include/linux/sched/signal.h: sent by the kernel.
const BY_THE_KERNEL: usize = 1;

/// A signal that ends a process, sent by the kernel.
#[repr(C)]
#[derive(Clone, Copy)]
struct Sent {
    /// The thread in whose context it was sent.
    by: u64,
    /// The `struct task_struct` it was sent to.
    to: u64,
}

/// A process that was killed.
#[repr(C)]
#[derive(Clone, Copy)]
struct Dying {
    /// `start_time` of its first thread.
    start: u64,
    /// The cgroup it was counted in.
    cgroup: u64,
}

/// `signal_generate(int sig, struct kernel_siginfo *info, struct task_struct *task, …)` (`__send_signal_locked` in
/// kernel/signal.c).
#[raw_tracepoint]
pub fn oom_signal(ctx: RawTracePointContext) -> i32 {
    if ctx.arg::<i32>(0) != KILL || ctx.arg::<usize>(1) != BY_THE_KERNEL {
        return 0;
    }
    if let Some(sent) = OOM_SENT.get_ptr_mut(0) {
        // SAFETY: the map gave a valid, aligned pointer, to this CPU's value.
        unsafe { *sent = Sent { by: bpf_get_current_pid_tgid(), to: ctx.arg(2) } };
    }
    0
}

/// `mark_victim(struct task_struct *task, …)`, before kernel 6.8 `mark_victim(int pid)` (`mark_oom_victim` in
/// mm/oom_kill.c).
#[raw_tracepoint]
pub fn oom_mark(ctx: RawTracePointContext) -> i32 {
    let Some(sent) = OOM_SENT.get(0) else { return 0 };
    let task = sent.to;
    let is_task = VICTIM_IS_TASK.load() == 1;
    let same =
        if is_task { ctx.arg::<u64>(0) == task } else { read::<u32>(task, TASK_PID.load()) == Some(ctx.arg::<u32>(0)) };
    if same && sent.by == bpf_get_current_pid_tgid() {
        let _ = count_victim(task);
    }
    0
}

fn count_victim(task: u64) -> Option<()> {
    let process: u32 = read(task, TASK_TGID.load())?;
    let start = start_of(task)?;
    // SAFETY: nobody changes the value.
    if unsafe { OOM_DYING.get(process) }.is_some_and(|dying| dying.start == start) {
        return None;
    }
    let cgroup = cgroup_of(task)?;
    let _ = OOM_DYING.insert(process, Dying { start, cgroup }, 0);
    if OOM_KILLS.get_ptr_mut(cgroup).is_none() {
        let _ = OOM_KILLS.insert(cgroup, 0, BPF_NOEXIST.into());
    }
    let kills = OOM_KILLS.get_ptr_mut(cgroup).or_else(|| OOM_KILLS.get_ptr_mut(NO_ROOM))?;
    // SAFETY: the map gave a valid, aligned pointer that lives as long as the program runs.
    unsafe { add::add(kills, 1) };
    Some(())
}

/// `sched_process_exit(struct task_struct *p, …)`, in the context of `p` (`do_exit` in kernel/exit.c), for each thread.
#[raw_tracepoint]
pub fn oom_exit(ctx: RawTracePointContext) -> i32 {
    let process = (bpf_get_current_pid_tgid() >> 32) as u32;
    // SAFETY: nobody changes the value.
    let Some(dying) = (unsafe { OOM_DYING.get(process) }) else { return 0 };
    let cgroup = dying.cgroup;
    let start = dying.start;
    let _ = tell(ctx.arg(0), process, cgroup, start);
    0
}

fn tell(task: u64, process: u32, cgroup: u64, start: u64) -> Option<()> {
    let signal: u64 = read(task, TASK_SIGNAL.load())?;
    if start_of(task)? != start || read::<i32>(signal, SIGNAL_LIVE.load())? != 0 {
        return None;
    }
    let _ = OOM_DYING.remove(process);
    let peak_pages = read(signal, SIGNAL_MAXRSS.load())?;
    // The process has the name of its first thread; this one is the last, whichever that is.
    let comm = read(read(task, TASK_LEADER.load())?, TASK_COMM.load()).unwrap_or([0; COMM_LEN]);
    let mut entry = OOM_EVENTS.reserve::<Kill>(0)?;
    entry.write(Kill { cgroup, peak_pages, pid: process, zero: 0, comm });
    entry.submit(0);
    Some(())
}

/// When the task's process started, on the kernel's own clock.
fn start_of(task: u64) -> Option<u64> {
    read(read(task, TASK_LEADER.load())?, TASK_START.load())
}

/// The id of the task's cgroup in the v2 hierarchy.
fn cgroup_of(task: u64) -> Option<u64> {
    let set = read(task, TASK_CGROUPS.load())?;
    let cgroup = read(set, CSS_SET_CGROUP.load())?;
    read(read(cgroup, CGROUP_NODE.load())?, NODE_ID.load())
}

fn read<T>(structure: u64, offset: u32) -> Option<T> {
    // SAFETY: a kernel address that the helper checks; the offset is this kernel's own.
    unsafe { bpf_probe_read_kernel((structure + u64::from(offset)) as *const T) }.ok()
}
