//! Known amounts of block I/O.

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use anyhow::{Context, Result};

/// What direct I/O wants memory, offsets and lengths to be multiples of, on every block device there is.
const ALIGNMENT: usize = 4096;
/// How much is written at once.
const BLOCK: usize = 64 * 1024;

/// Memory at a multiple of [`ALIGNMENT`].
#[repr(C, align(4096))]
struct Aligned([u8; BLOCK]);

const _: () = assert!(align_of::<Aligned>() == ALIGNMENT);

/// Writes over the beginning of a file, past the page cache: what is written is what the device gets, now.
pub(super) fn write(path: &Path, blocks: u32) -> Result<()> {
    let file = File::options()
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(path)
        .with_context(|| format!("opening {} for direct writing", path.display()))?;
    let data = Box::new(Aligned([7; BLOCK]));
    for block in 0..u64::from(blocks) {
        file.write_all_at(&data.0, block * BLOCK as u64).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

/// Reads the beginning of a file past the page cache.
pub(super) fn read(path: &Path, blocks: u32) -> Result<()> {
    let file = File::options()
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(path)
        .with_context(|| format!("opening {} for direct reading", path.display()))?;
    let mut data = Box::new(Aligned([0; BLOCK]));
    for block in 0..u64::from(blocks) {
        file.read_exact_at(&mut data.0, block * BLOCK as u64).with_context(|| format!("reading {}", path.display()))?;
    }
    Ok(())
}
