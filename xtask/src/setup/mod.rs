//! `cargo xtask setup`: the toolchain of the kernel programs, found or installed.
//!
//! `facts` looks at the machine, `plan` decides, `act` installs.

mod act;
mod facts;
mod plan;
#[path = "../../../observer-ebpf/toolchain.rs"]
#[allow(dead_code, reason = "shared with observer/build.rs, which uses the rest")]
pub mod toolchain;

use anyhow::Result;

use crate::steps::{Done, Steps};
use crate::workspace::Workspace;

/// bpf-linker, of the version that was tried with the pinned compilers.
pub const BPF_LINKER_VERSION: &str = "0.13.0";
/// The LLVM that bpf-linker is linked with: that of the pinned compilers.
pub const LLVM_MAJOR: &str = "22";

/// Set up what builds the kernel programs; a second run only looks
///
/// Compiling for the kernel takes a Rust toolchain with its library source, and bpf-linker. Set-up uses
/// what is there, else it installs, in this order: a pinned nightly with rust-src by rustup; Debian's Rust
/// with its source, linked into rustup as `bpf`; else it says what to install. After it, a plain
/// `cargo build --release` makes the agent. Without it, cargo check, clippy and editors work as well.
///
/// OBSERVER_EBPF_TOOLCHAIN=NAME chooses one of rustup's toolchains instead.
#[derive(clap::Args)]
pub struct Args {
    /// Get a toolchain this way, even if another one is there
    #[arg(long, value_enum, value_name = "WAY")]
    only: Option<plan::Way>,
}

/// Runs the command.
pub fn command(args: &Args) -> Result<()> {
    let workspace = Workspace::find()?;
    let steps = Steps::new("Setting up the toolchain of the kernel programs");
    set_up(&workspace, &steps, args.only)?;
    println!("Done in {}. `cargo build --release` makes target/release/observer.", steps.total());
    Ok(())
}

/// Makes sure that the toolchain is there, for commands that build.
pub fn ensure(workspace: &Workspace, steps: &Steps) -> Result<()> {
    set_up(workspace, steps, None)
}

fn set_up(workspace: &Workspace, steps: &Steps, only: Option<plan::Way>) -> Result<()> {
    let mut changed = false;
    steps.step("compiler", || {
        let facts = facts::gather(workspace);
        let done = act::compiler(workspace, &plan::compiler(&facts, only)?)?;
        changed |= matches!(done, Done::Now(_));
        Ok(done)
    })?;
    steps.step("bpf-linker", || {
        let done = act::linker(workspace, &plan::linker(&facts::gather(workspace))?)?;
        changed |= matches!(done, Done::Now(_));
        Ok(done)
    })?;
    if changed {
        act::rebuild_the_stub(workspace)?;
    }
    Ok(())
}
