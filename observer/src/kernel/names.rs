//! Names that outlive the agent: whose cgroup it was, for edges whose cgroup is gone when the next agent starts.

use aya::maps::{HashMap, MapData, MapError};
use observer_common::record::{ContainerRecord, ID_LEN, KEY_LEN, NAME_LEN, POD_LEN};

use crate::sandbox::{Remembered, SandboxKey};

/// The pinned map of names.
#[derive(Debug)]
pub struct Names {
    map: HashMap<MapData, u64, ContainerRecord>,
}

impl Names {
    pub(super) const fn new(map: HashMap<MapData, u64, ContainerRecord>) -> Self {
        Self { map }
    }

    /// Everything that an earlier agent remembered.
    #[must_use]
    pub fn all(&self) -> Vec<Remembered> {
        self.map.iter().filter_map(Result::ok).map(|(id, record)| read(id, &record)).collect()
    }

    /// Remembers a container.
    ///
    /// # Errors
    ///
    /// When the map is full.
    pub fn remember(&mut self, container: &Remembered) -> Result<(), MapError> {
        self.map.insert(container.cgroup_id, write(container), 0)
    }

    /// Forgets a container; one that is not there is no error.
    pub fn forget(&mut self, cgroup_id: u64) {
        let _ = self.map.remove(&cgroup_id);
    }
}

fn read(cgroup_id: u64, record: &ContainerRecord) -> Remembered {
    let text = |bytes: &[u8]| {
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        String::from_utf8_lossy(&bytes[..end]).into_owned()
    };
    Remembered {
        cgroup_id,
        sandbox: SandboxKey(text(&record.sandbox)),
        namespace: text(&record.namespace),
        pod: text(&record.pod),
        id: text(&record.id),
        name: text(&record.name),
        pause: record.pause != 0,
    }
}

fn write(container: &Remembered) -> ContainerRecord {
    ContainerRecord {
        sandbox: bytes::<KEY_LEN>(&container.sandbox.0),
        namespace: bytes::<NAME_LEN>(&container.namespace),
        pod: bytes::<POD_LEN>(&container.pod),
        id: bytes::<ID_LEN>(&container.id),
        name: bytes::<NAME_LEN>(&container.name),
        pause: u64::from(container.pause),
    }
}

/// As much of the text as fits, cut between characters, and a zero byte.
fn bytes<const N: usize>(text: &str) -> [u8; N] {
    let mut end = text.len().min(N - 1);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let mut bytes = [0; N];
    bytes[..end].copy_from_slice(&text.as_bytes()[..end]);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let container = Remembered {
            cgroup_id: 7,
            sandbox: SandboxKey("0b5e7e57-0000-4000-8000-000000000001".into()),
            namespace: "shop".into(),
            pod: "web".into(),
            id: "ab".repeat(32),
            name: "app".into(),
            pause: false,
        };
        assert_eq!(read(7, &write(&container)), container);
    }

    #[test]
    fn a_long_name_is_cut_between_characters() {
        let bytes = bytes::<8>("abcdefé");
        assert_eq!(&bytes, b"abcdef\0\0");
    }
}
