//! A kubelet's `/pods` document (a `v1` `PodList`) in a file: the names of pods on machines without an orchestrator.

use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
    time::SystemTime,
};

pub use super::document::parse;
use super::pod::PodIndex;

/// What is read of the file: a thousand times what a node with 110 pods has.
const MAX_BYTES: u64 = 256 << 20;

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PodsFileError {
    /// It cannot be read.
    #[error("cannot read the pods file {path} (--pods.file): {source}; pods keep the names they have")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is not a list of pods.
    #[error(
        "the pods file {path} (--pods.file) is not a kubelet /pods document: {source}; pods keep the names they have"
    )]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong, with line and column.
        source: serde_json::Error,
    },
}

/// The file and the last good version of it.
#[derive(Debug, Default)]
pub struct PodsFile {
    path: Option<PathBuf>,
    seen: Option<Version>,
    pods: PodIndex,
}

/// What changes when a file is written or replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Version {
    modified: Option<SystemTime>,
    inode: u64,
    length: u64,
}

impl PodsFile {
    /// A file to read; `None` for no file.
    #[must_use]
    pub fn new(path: Option<PathBuf>) -> Self {
        Self { path, ..Self::default() }
    }

    /// The pods of the last good version.
    #[must_use]
    pub const fn pods(&self) -> &PodIndex {
        &self.pods
    }

    /// Whether [`PodsFile::refresh`] would read it.
    #[must_use]
    pub fn has_changed(&self) -> bool {
        self.path.as_ref().is_some_and(|path| version(path) != self.seen)
    }

    /// Reads the file again when it has changed since the last call. Says whether it was read.
    ///
    /// # Errors
    ///
    /// See [`PodsFileError`]; the last good version stays. A file that cannot be read fails at every call, one that
    /// cannot be parsed once for each version.
    pub fn refresh(&mut self) -> Result<bool, PodsFileError> {
        let Some(path) = self.path.clone() else { return Ok(false) };
        let path = &path;
        let now = version(path);
        if now.is_some() && now == self.seen {
            return Ok(false);
        }
        let text = read(path).map_err(|source| {
            self.seen = None;
            PodsFileError::Read { path: path.clone(), source }
        })?;
        self.seen = now;
        self.pods = parse(&text).map_err(|source| PodsFileError::Parse { path: path.clone(), source })?;
        Ok(true)
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    // To open a pipe would mean to wait for a writer, and a device has no end.
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    let mut text = Vec::new();
    fs::File::open(path)?.take(MAX_BYTES + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MAX_BYTES {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it has more than {} MiB", MAX_BYTES >> 20)));
    }
    Ok(text)
}

fn version(path: &Path) -> Option<Version> {
    use std::os::unix::fs::MetadataExt;
    let metadata = fs::metadata(path).ok()?;
    Some(Version { modified: metadata.modified().ok(), inode: metadata.ino(), length: metadata.len() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENT: &str = r#"{"items":[{"metadata":{"name":"web","uid":"u1"}}]}"#;

    #[test]
    fn a_broken_file_says_where_and_keeps_the_old_names() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pods.json");
        let mut file = PodsFile::new(Some(path.clone()));
        let error = file.refresh().unwrap_err().to_string();
        assert!(error.contains("pods.json") && error.contains("--pods.file"), "{error}");
        let error = PodsFile::new(Some("/dev/zero".into())).refresh().unwrap_err().to_string();
        assert!(error.contains("not a regular file"), "{error}");
        fs::write(&path, DOCUMENT).unwrap();
        assert!(file.refresh().unwrap());
        assert!(!file.refresh().unwrap(), "not read again");
        fs::write(&path, "{\"items\": [\n 17]}").unwrap();
        let error = file.refresh().unwrap_err().to_string();
        assert!(error.contains("line 2"), "{error}");
        assert_eq!(file.pods()["u1"].name, "web");
    }
}
