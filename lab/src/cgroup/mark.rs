//! A mark on every cgroup directory that the lab makes: who made it.
//!
//! It is an extended attribute, so that it lives exactly as long as the directory, whatever happens to
//! the process that made it.

use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::{XattrFlags, getxattr, removexattr, setxattr};

use crate::owner::Owner;

const OWNER: &str = "trusted.observer-lab";
const ENABLED: &str = "trusted.observer-lab.enabled";

/// Marks a directory as made by this process.
pub(super) fn set(directory: &Path) -> Result<()> {
    put(directory, OWNER, &Owner::me().to_string())
}

/// Who made a directory; nobody of the lab when it has no mark.
pub(crate) fn owner_of(directory: &Path) -> Option<Owner> {
    get(directory, OWNER)?.parse().ok()
}

/// Remembers which controllers were switched on at the root.
pub(super) fn set_enabled(root: &Path, controllers: &str) -> Result<()> {
    put(root, ENABLED, controllers)
}

/// Which controllers the lab has switched on at the root.
pub(super) fn enabled(root: &Path) -> Option<String> {
    get(root, ENABLED)
}

/// Forgets them.
pub(super) fn clear_enabled(root: &Path) {
    // The attribute may be gone already: another run has cleared it.
    let _ = removexattr(root, ENABLED);
}

fn put(directory: &Path, name: &str, value: &str) -> Result<()> {
    setxattr(directory, name, value.as_bytes(), XattrFlags::empty())
        .with_context(|| format!("setting the attribute {name} of {} (needs CAP_SYS_ADMIN)", directory.display()))
}

fn get(directory: &Path, name: &str) -> Option<String> {
    let mut value = [0_u8; 128];
    let length = getxattr(directory, name, &mut value).ok()?;
    String::from_utf8(value.get(..length)?.to_vec()).ok()
}
