//! cargo-deny: licences, sources and known vulnerabilities of the dependencies.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::run;
use crate::steps::doing;
use crate::workspace::Workspace;

/// The version that `deny.toml` is written for.
const VERSION: &str = "0.19.0";

/// Checks the dependencies by `deny.toml`; says what was checked.
pub fn check(workspace: &Workspace) -> Result<String> {
    let deny = ensure(workspace)?;
    let command = |what: &[&str]| {
        let mut command = Command::new(&deny);
        command.current_dir(&workspace.root).args(["--workspace", "--log-level", "warn", "check"]).args(what);
        command
    };
    run::aloud(&mut command(&["licenses", "bans", "sources"]))
        .context("check the dependencies' licences and sources")?;
    let database = run::log_path(workspace, "deny-fetch");
    let fetch = {
        let mut fetch = Command::new(&deny);
        fetch.current_dir(&workspace.root).args(["fetch", "db"]);
        run::quietly(workspace, "deny-fetch", &mut fetch, Duration::from_mins(1))
    };
    if fetch.is_err() {
        println!("  the advisory database cannot be reached from here ({}): not checked", database.display());
        return Ok("licences, bans, sources; not advisories".into());
    }
    run::aloud(command(&["advisories"]).arg("--disable-fetch"))
        .context("check the dependencies for known vulnerabilities")?;
    Ok("licences, bans, sources, advisories".into())
}

/// The pinned version is compiled once, into the target directory.
fn ensure(workspace: &Workspace) -> Result<PathBuf> {
    let root = workspace.own(format!("tools/cargo-deny-{VERSION}"));
    let binary = root.join("bin/cargo-deny");
    if binary.is_file() {
        return Ok(binary);
    }
    doing(&format!("cargo install cargo-deny {VERSION} into {} (a few minutes, once)", root.display()));
    let mut command = run::cargo(workspace);
    command.args(["install", "cargo-deny", "--version", VERSION, "--locked", "--no-default-features", "--root"]);
    command.arg(&root).env_remove("CARGO_TARGET_DIR");
    // A quick compile beats a quick program that runs for a second.
    for (name, value) in [("CARGO_PROFILE_RELEASE_OPT_LEVEL", "0"), ("CARGO_PROFILE_RELEASE_LTO", "off")] {
        command.env(name, value);
    }
    run::quietly(workspace, "cargo-deny", &mut command, Duration::from_mins(30)).context("compile cargo-deny")?;
    Ok(binary)
}
