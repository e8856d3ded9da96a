//! Names that outlive the agent: whose cgroup it was, for edges whose cgroup is gone when the next agent starts.

use aya::maps::{HashMap, MapData, MapError};
use observer_common::record::{ContainerRecord, ID_LEN, KEY_LEN, NAME_LEN, POD_LEN};

use super::text;
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
    Remembered {
        cgroup_id,
        sandbox: SandboxKey(text::read(&record.sandbox).to_owned()),
        namespace: text::read(&record.namespace).to_owned(),
        pod: text::read(&record.pod).to_owned(),
        id: text::read(&record.id).to_owned(),
        name: text::read(&record.name).to_owned(),
        pause: record.pause != 0,
    }
}

fn write(container: &Remembered) -> ContainerRecord {
    ContainerRecord {
        sandbox: text::bytes::<KEY_LEN>(&container.sandbox.0),
        namespace: text::bytes::<NAME_LEN>(&container.namespace),
        pod: text::bytes::<POD_LEN>(&container.pod),
        id: text::bytes::<ID_LEN>(&container.id),
        name: text::bytes::<NAME_LEN>(&container.name),
        pause: u64::from(container.pause),
    }
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
}
