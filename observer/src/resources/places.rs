//! Where the files of every cgroup are. Pure but for one file, which is read before each reading of cgroups.

use std::path::PathBuf;

use super::{
    CgroupRoots,
    extra::EXTRA_FILES,
    facts::{FILES, Hierarchy},
    files::{Allowance, Buffer, Found, Slot},
};

/// The mount point below which each file is, for those that a cgroup may have.
///
/// A controller is in the v2 tree or in a hierarchy of v1, and no cgroup has one that the root of its tree has not
/// (Documentation/admin-guide/cgroup-v2.rst, "Controllers"): on a hybrid host most files of v2 are nowhere, and looking for
/// them in every cgroup would cost a part of each scrape. It may be moved from one to the other at any time, so the root is
/// asked again before each reading.
#[derive(Debug)]
pub(super) struct Places {
    roots: CgroupRoots,
    /// `cgroup.controllers` of the root of the v2 tree.
    told: Slot,
    controllers: Option<Vec<String>>,
    /// In the order of [`FILES`].
    pub(super) files: [Option<PathBuf>; FILES.len()],
    /// In the order of [`EXTRA_FILES`].
    pub(super) extra: [Option<PathBuf>; EXTRA_FILES.len()],
}

impl Places {
    /// All files that these hierarchies may have.
    pub(super) fn new(roots: CgroupRoots) -> Self {
        let (files, extra) = places(&roots, None);
        Self { roots, told: Slot::default(), controllers: None, files, extra }
    }

    /// Asks which controllers the v2 tree has now. Where it does not tell, all files may be there.
    pub(super) fn learn(&mut self, allowance: &Allowance, buffer: &mut Buffer) {
        let Some(root) = &self.roots.v2 else { return };
        let path = || root.join("cgroup.controllers");
        let controllers = match self.told.read(path, allowance, buffer) {
            Ok(Found::Read | Found::Renewed) => controllers(&buffer.text()),
            Ok(Found::Kept | Found::Absent) | Err(_) => None,
        };
        if controllers != self.controllers {
            (self.files, self.extra) = places(&self.roots, controllers.as_deref());
            self.controllers = controllers;
        }
    }

    /// A hierarchy that every container has a directory in.
    pub(super) const fn roots(&self) -> &CgroupRoots {
        &self.roots
    }
}

type All = ([Option<PathBuf>; FILES.len()], [Option<PathBuf>; EXTRA_FILES.len()]);

fn places(roots: &CgroupRoots, controllers: Option<&[String]>) -> All {
    let place = |hierarchy: Hierarchy| {
        let may_be = match (hierarchy, controllers) {
            (Hierarchy::V2With(controller), Some(there)) => there.iter().any(|there| there == controller),
            _ => true,
        };
        hierarchy.root(roots).filter(|_| may_be).map(PathBuf::from)
    };
    (FILES.map(|(_, hierarchy, _)| place(hierarchy)), EXTRA_FILES.map(|(_, hierarchy, _)| place(hierarchy)))
}

/// The words of a `cgroup.controllers`, which is empty when there are none; `None` when it is cut short.
pub(super) fn controllers(text: &str) -> Option<Vec<String>> {
    (text.is_empty() || text.ends_with('\n')).then(|| text.split_whitespace().map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::resources::{extra::ExtraSource, facts::Source};

    /// The names of v2 files that are looked for.
    fn looked_for(places: &Places) -> Vec<&'static str> {
        let v2 = |root: &Option<PathBuf>| root.is_some() && *root == places.roots.v2;
        let files = FILES.iter().zip(&places.files).filter(|(_, root)| v2(root)).map(|((.., name), _)| *name);
        let extra = EXTRA_FILES.iter().zip(&places.extra).filter(|(_, root)| v2(root)).map(|((.., name), _)| *name);
        files.chain(extra).collect()
    }

    #[test]
    fn files_of_a_controller_are_looked_for_where_the_tree_has_it() {
        let directory = tempfile::tempdir().unwrap();
        let told = directory.path().join("cgroup.controllers");
        let v1 = [("memory".to_owned(), directory.path().join("v1"))].into();
        let mut places = Places::new(CgroupRoots { v2: Some(directory.path().into()), v1 });
        let (allowance, mut buffer) = (Allowance::from(9), Buffer::default());
        let all = looked_for(&places);
        let v1 = |places: &Places| places.files.iter().flatten().filter(|root| root.ends_with("v1")).count();
        let of_v1 = v1(&places);
        assert_eq!((all.len(), of_v1), (17, 6));
        for (text, expected) in [
            // As on a hybrid host: what every cgroup has is still read.
            ("", vec!["cpu.stat", "cpu.pressure", "memory.pressure", "io.pressure"]),
            ("cpuset pids\n", {
                let mut names = vec!["cpu.stat", "pids.current", "pids.max"];
                names.extend(["cpu.pressure", "memory.pressure", "io.pressure"]);
                names
            }),
            ("cpuset cpu io memory pids\n", all.clone()),
            // It may be cut short: `memory` may come.
            ("cpuset mem", all.clone()),
        ] {
            fs::write(&told, text).unwrap();
            places.learn(&allowance, &mut buffer);
            assert_eq!(looked_for(&places), expected, "{text:?}");
            assert_eq!(v1(&places), of_v1);
        }
        fs::write(&told, "").unwrap();
        places.learn(&allowance, &mut buffer);
        assert_eq!(looked_for(&places).len(), 4);
    }

    #[test]
    fn a_tree_that_does_not_tell_may_have_everything() {
        let directory = tempfile::tempdir().unwrap();
        let mut places = Places::new(CgroupRoots { v2: Some(directory.path().into()), ..CgroupRoots::default() });
        let all = looked_for(&places);
        places.learn(&Allowance::from(9), &mut Buffer::default());
        assert_eq!(looked_for(&places), all);
        assert!(FILES.iter().any(|(source, ..)| *source == Source::IoStat) && all.contains(&"io.stat"));
        assert!(
            EXTRA_FILES.iter().any(|(source, ..)| *source == ExtraSource::Reservation) && all.contains(&"memory.min")
        );
    }
}
