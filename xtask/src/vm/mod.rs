//! `cargo xtask vm`: the accuracy cases on other kernels, in QEMU.
//!
//! `mirror` finds Debian's mirror, `kernels` fetches kernels from it, `initramfs` packs the lab as init with
//! the modules and libraries it needs, `qemu` boots it and watches the console.

mod cpio;
mod initramfs;
mod kernels;
mod libraries;
mod modules;
mod qemu;

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use clap::ValueEnum;

use crate::steps::{Done, Steps};
use crate::workspace::Workspace;
use crate::{apt, demo, setup};

pub use kernels::Release;
use qemu::{Guest, Verdict};

/// How long a guest may take for all cases, in seconds.
const TIMEOUT: u64 = 1800;
/// Guests that share the cases, where there are as many processors.
const GUESTS: usize = 2;
/// How much of the console of a guest that failed is shown, in lines.
const SHOWN: usize = 200;

/// Boot other kernels in QEMU and run the accuracy cases there
///
/// The kernels are Debian's (5.10, 6.1, 6.12 and its newest), fetched from the mirror that apt uses here and
/// kept in target/xtask/vm. The guest is an initramfs whose init is observer-lab; it has no disk and no
/// network but what the cases make. No KVM is needed. Its console is in target/xtask/vm/console-*.log.
#[derive(clap::Args)]
pub struct Args {
    /// Which kernel; may be given more than once
    #[arg(long, value_enum, value_name = "KERNEL", default_value = "all")]
    kernel: Vec<Kernel>,
    /// Only cases whose name has this in it
    #[arg(long, value_name = "FILTER", default_value = "")]
    case: String,
    /// The guest's cgroups: pure v2, or v1 with the unified tree as systemd's hybrid mode
    #[arg(long, value_enum, default_value = "v2")]
    cgroup: Cgroup,
    /// Stop a guest after so many seconds
    #[arg(long, value_name = "N", default_value_t = TIMEOUT)]
    timeout: u64,
    /// Share the cases among so many guests that run at the same time; each takes a processor and 2 GiB. Without, two where there are
    /// two processors, and one with --case
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=16))]
    guests: Option<u8>,
    /// Show the guests' consoles while they run
    #[arg(long)]
    console: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kernel {
    #[value(name = "5.10")]
    V5_10,
    #[value(name = "6.1")]
    V6_1,
    #[value(name = "6.12")]
    V6_12,
    /// The newest that the mirror has
    Newest,
    /// All of these
    All,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Cgroup {
    V2,
    Hybrid,
}

/// Runs the command.
pub fn command(args: &Args) -> Result<()> {
    if args.case.contains(char::is_whitespace) {
        bail!("--case `{}`: it becomes a kernel parameter, which cannot have spaces", args.case);
    }
    let workspace = Workspace::find()?;
    setup::ensure(&workspace, &Steps::quiet())?;
    demo::build(&workspace)?;
    let mut releases: Vec<Release> = args.kernel.iter().flat_map(|kernel| kernel.releases()).copied().collect();
    releases.dedup();
    let options = Options {
        filter: &args.case,
        hybrid: args.cgroup == Cgroup::Hybrid,
        timeout: Duration::from_secs(args.timeout),
        // A few cases are not worth a second machine.
        guests: args.guests.map_or_else(|| if args.case.is_empty() { guests() } else { 1 }, usize::from),
        console: args.console,
    };
    boot_all(&workspace, &releases, &options).map(drop)
}

/// Boots these kernels on pure cgroup v2 with the release build that is there.
pub fn boot(workspace: &Workspace, releases: &[Release]) -> Result<String> {
    let timeout = Duration::from_secs(TIMEOUT);
    let options = Options { filter: "", hybrid: false, timeout, guests: guests(), console: false };
    boot_all(workspace, releases, &options)
}

fn guests() -> usize {
    thread::available_parallelism().map_or(1, usize::from).min(GUESTS)
}

struct Options<'a> {
    filter: &'a str,
    hybrid: bool,
    timeout: Duration,
    guests: usize,
    console: bool,
}

fn boot_all(workspace: &Workspace, releases: &[Release], options: &Options) -> Result<String> {
    let steps = Steps::new("Booting other kernels");
    let packages = ["qemu-system-x86", "xz-utils"];
    steps.step("packages", || apt::ensure(workspace, &packages, "cargo xtask vm"))?;
    let mut rows = Vec::new();
    for release in releases {
        let start = Instant::now();
        let row = boot_one(workspace, &steps, *release, options);
        let (version, verdict) = match row {
            Ok((version, verdict)) => (version, verdict),
            Err(error) => (release.to_string(), Verdict::failed(format!("{error:#}"))),
        };
        rows.push((version, verdict, start.elapsed().as_secs_f64()));
    }
    println!("\n  {:<32} {:>7} {:>7}  result", "kernel", "boot s", "all s");
    for (version, verdict, seconds) in &rows {
        let boot = verdict.boot.map_or("-".into(), |boot| format!("{:.1}", boot.as_secs_f64()));
        println!("  {version:<32} {boot:>7} {seconds:>7.1}  {}", short(&verdict.text));
    }
    let failed = rows.iter().filter(|(_, verdict, _)| !verdict.passed).count();
    if failed > 0 {
        bail!("{failed} of {} kernels failed; consoles are in {}", rows.len(), workspace.own("vm").display());
    }
    Ok(format!("{} passed", rows.len()))
}

/// A verdict in a table: what went wrong stands above it in full.
fn short(verdict: &str) -> &str {
    let end = verdict.char_indices().nth(72).map_or(verdict.len(), |(at, _)| at);
    let end = verdict.find(": ").unwrap_or(end).min(end);
    &verdict[..end]
}

fn boot_one(workspace: &Workspace, steps: &Steps, release: Release, options: &Options) -> Result<(String, Verdict)> {
    let mut kernel = None;
    steps.step(&format!("kernel {release}"), || {
        let (found, fetched) = kernels::ensure(workspace, release)?;
        let version = found.version.clone();
        kernel = Some(found);
        Ok(if fetched { Done::Now(format!("fetched {version}")) } else { Done::There(version) })
    })?;
    let Some(kernel) = kernel else { bail!("no kernel for {release}") };
    let mut verdict = None;
    steps.step(&format!("boot {}", kernel.version), || {
        let initramfs = initramfs::build(workspace, &kernel)?;
        forget_consoles(&workspace.own("vm"), &kernel.version);
        let shares = thread::scope(|scope| {
            let guests: Vec<_> = (0..options.guests)
                .map(|which| {
                    let (kernel, initramfs) = (&kernel, &initramfs);
                    scope.spawn(move || boot_and_go_on(workspace, kernel, initramfs, which, options))
                })
                .collect();
            guests
                .into_iter()
                .map(|guest| guest.join().map_err(|_| anyhow!("the thread that watches a guest panicked"))?)
                .collect::<Result<Vec<_>>>()
        })?;
        let result = of_shares(shares);
        let (passed, text) = (result.passed, result.text.clone());
        verdict = Some(result);
        Ok(if passed { Done::Now(text) } else { Done::Bad(text.replace("; ", "\n      ")) })
    })?;
    let Some(verdict) = verdict else { bail!("no verdict from {}", kernel.version) };
    Ok((kernel.version, verdict))
}

/// Boots a kernel, and once more where the emulated machine stands still, for the cases that are left: QEMU translates code that
/// a kernel rewrites while other processors run it, and is not always right. A case that does not end on a machine that goes on
/// is told by the guest itself, and has failed.
fn boot_and_go_on(
    workspace: &Workspace,
    kernel: &kernels::Kernel,
    initramfs: &Path,
    which: usize,
    options: &Options,
) -> Result<Verdict> {
    let boot = |after: Option<&str>, suffix: &str| {
        let of = if options.guests == 1 { String::new() } else { format!("-{}", which + 1) };
        let console = workspace.own("vm").join(format!("console-{}{of}{suffix}.log", kernel.version));
        let echo = options.console.then(|| if of.is_empty() { "|".to_owned() } else { format!("{} |", which + 1) });
        let verdict = qemu::run(&Guest {
            kernel: &kernel.image,
            initramfs,
            console: console.clone(),
            filter: options.filter,
            after,
            share: (which, options.guests),
            hybrid: options.hybrid,
            timeout: options.timeout,
            echo,
        })?;
        if !verdict.passed && !options.console {
            show_end(&console);
        }
        anyhow::Ok(verdict)
    };
    let first = boot(None, "")?;
    if !first.stood_still {
        return Ok(first);
    }
    println!("    {}; booting again for the cases that are left", first.text);
    let last = first.cases.last().map(|(name, _)| name.as_str());
    let again = boot(last, "-again")?;
    Ok(together(&first, again))
}

/// The verdict on a machine that stood still and the one on its second boot. What failed before has failed.
fn together(first: &Verdict, again: Verdict) -> Verdict {
    let failed: Vec<&str> = first.cases.iter().filter(|(_, passed)| !passed).map(|(name, _)| name.as_str()).collect();
    let last = first.cases.last().map_or("the first case", |(name, _)| name);
    let mut text = format!("{} after a stand-still behind {last}, {} cases before it", again.text, first.cases.len());
    if !failed.is_empty() {
        text = format!("FAIL {} before a stand-still; then {text}", failed.join(", "));
    }
    Verdict { passed: again.passed && failed.is_empty(), text, boot: first.boot.or(again.boot), ..again }
}

/// The verdict on a kernel whose cases several guests have shared.
fn of_shares(shares: Vec<Verdict>) -> Verdict {
    let passed = shares.iter().all(|share| share.passed);
    let said = shares.iter().filter(|share| share.passed == passed).map(|share| share.text.as_str());
    Verdict {
        passed,
        text: said.collect::<Vec<_>>().join(if passed { ", " } else { "; " }),
        boot: shares.iter().filter_map(|share| share.boot).max(),
        stood_still: shares.iter().any(|share| share.stood_still),
        cases: shares.into_iter().flat_map(|share| share.cases).collect(),
    }
}

/// Shows how a console ends, for who has no other sight of this machine.
fn show_end(console: &Path) {
    let bytes = fs::read(console).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    // At once: another guest's may be shown at the same time.
    let mut out = std::io::stdout().lock();
    for line in &lines[lines.len().saturating_sub(SHOWN)..] {
        // Nobody reads it where this fails, and the file has it.
        drop(writeln!(out, "    | {line}"));
    }
}

/// Removes the consoles of earlier boots of a kernel: fewer guests, or a boot that does not stand still, would leave them.
fn forget_consoles(directory: &Path, version: &str) {
    let prefix = format!("console-{version}");
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let ours = name.to_str().and_then(|name| name.strip_prefix(&prefix)?.strip_suffix(".log"));
        if ours.is_some_and(|rest| rest.is_empty() || rest.starts_with('-')) {
            // One that stays is only older than what is shown.
            drop(fs::remove_file(entry.path()));
        }
    }
}

impl Kernel {
    fn releases(self) -> &'static [Release] {
        match self {
            Self::V5_10 => &[Release::Bullseye],
            Self::V6_1 => &[Release::Bookworm],
            Self::V6_12 => &[Release::Trixie],
            Self::Newest => &[Release::Newest],
            Self::All => &[Release::Bullseye, Release::Bookworm, Release::Trixie, Release::Newest],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn consoles_of_this_kernel_alone_are_forgotten() {
        let directory = std::env::temp_dir().join(format!("observer-xtask-consoles-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let (ours, others) = (
            ["console-6.1.0-5-amd64.log", "console-6.1.0-5-amd64-1.log", "console-6.1.0-5-amd64-2-again.log"],
            ["console-6.1.0-50-amd64.log", "console-6.1.0-5-amd64.txt", "initramfs-6.1.0-5-amd64.cpio"],
        );
        for name in ours.iter().chain(&others) {
            fs::write(directory.join(name), "").unwrap();
        }
        forget_consoles(&directory, "6.1.0-5-amd64");
        let left = |names: [&str; 3]| names.into_iter().filter(|name| directory.join(name).exists()).count();
        let (ours_left, others_left) = (left(ours), left(others));
        fs::remove_dir_all(&directory).unwrap();
        assert_eq!((ours_left, others_left), (0, 3));
    }

    #[test]
    fn a_table_has_short_verdicts() {
        assert_eq!(short("PASS 12"), "PASS 12");
        assert_eq!(short("FAIL 1 of 12: ipv6: 3 bytes too many"), "FAIL 1 of 12");
        assert_eq!(short(&"é".repeat(100)).chars().count(), 72);
    }

    #[test]
    fn what_failed_before_a_stand_still_has_failed() {
        let verdict = |passed, text: &str, cases: &[(&str, bool)]| Verdict {
            passed,
            text: text.to_owned(),
            boot: None,
            cases: cases.iter().map(|(name, passed)| ((*name).to_owned(), *passed)).collect(),
            stood_still: false,
        };
        let good = together(&verdict(false, "still", &[("a", true), ("b", true)]), verdict(true, "PASS 3", &[]));
        assert!(good.passed);
        assert_eq!(good.text, "PASS 3 after a stand-still behind b, 2 cases before it");
        let bad = together(&verdict(false, "still", &[("a", false), ("b", true)]), verdict(true, "PASS 3", &[]));
        assert!(!bad.passed && bad.text.starts_with("FAIL a before"), "{}", bad.text);
        assert!(!together(&verdict(false, "still", &[]), verdict(false, "FAIL 1 of 3", &[])).passed);
    }

    #[test]
    fn a_kernel_passes_when_all_its_guests_do() {
        let verdict = |passed, text: &str| Verdict { passed, ..Verdict::failed(text.to_owned()) };
        let good = of_shares(vec![verdict(true, "PASS 4"), verdict(true, "PASS 3")]);
        assert!(good.passed && good.text == "PASS 4, PASS 3", "{good:?}");
        let bad = of_shares(vec![verdict(true, "PASS 4"), verdict(false, "FAIL 1 of 3: ipv6: too many")]);
        assert!(!bad.passed && bad.text == "FAIL 1 of 3: ipv6: too many", "{bad:?}");
    }
}
