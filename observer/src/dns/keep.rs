//! Keeps what was counted for the next agent.

use super::table::{Client, Table};

/// A place that outlives the agent, by cgroup.
pub trait Keep {
    /// What an earlier agent has counted.
    fn load(&self) -> Vec<(u64, Client)>;
    /// Keeps the counts of a cgroup.
    ///
    /// # Errors
    ///
    /// When there is no room.
    fn put(&mut self, cgroup: u64, client: &Client) -> anyhow::Result<()>;
    /// Forgets a cgroup; one that is not there is no error.
    fn forget(&mut self, cgroup: u64);
}

/// Keeps what has changed. What was emptied goes before others have it, so that an agent that is killed in between leaves it
/// out rather than counting it twice.
///
/// # Errors
///
/// The last of what could not be kept; it is tried again the next time.
pub(super) fn save(table: &mut Table, kept: &mut dyn Keep) -> anyhow::Result<()> {
    let mut outcome = Ok(());
    let mut failed = Vec::new();
    for (cgroup, client) in table.changes() {
        match client {
            None => kept.forget(cgroup),
            Some(client) => {
                if let Err(error) = kept.put(cgroup, client) {
                    failed.push(cgroup);
                    outcome = Err(error);
                }
            }
        }
    }
    failed.into_iter().for_each(|cgroup| table.was_not_kept(cgroup));
    outcome
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use observer_common::dns::Head;

    use super::{
        super::{
            names::{Budget, Names},
            parse::tests::answer,
        },
        *,
    };

    /// Answers by cgroup, with room for so many cgroups.
    #[derive(Default)]
    struct Kept {
        answers: BTreeMap<u64, u64>,
        room: usize,
    }

    impl Keep for Kept {
        fn load(&self) -> Vec<(u64, Client)> {
            Vec::new()
        }

        fn put(&mut self, cgroup: u64, client: &Client) -> anyhow::Result<()> {
            anyhow::ensure!(self.answers.contains_key(&cgroup) || self.answers.len() < self.room, "full");
            self.answers.insert(cgroup, client.responses.values().sum());
            Ok(())
        }

        fn forget(&mut self, cgroup: u64) {
            self.answers.remove(&cgroup);
        }
    }

    fn answered(table: &mut Table, cgroup: u64) {
        let bytes = answer(1, "a.test", 1, 0, &[]);
        let head = Head { cgroup, protocol: 17, length: bytes.len() as u32, ..Head::default() };
        table.take(&head, &bytes, &mut Names::new(Vec::new(), Vec::new(), Budget::default()));
    }

    #[test]
    fn what_is_counted_is_kept_and_what_finds_no_room_tried_again() {
        let (mut table, mut kept) = (Table::default(), Kept { room: 2, ..Kept::default() });
        [7, 7, 8, 9].into_iter().for_each(|cgroup| answered(&mut table, cgroup));
        assert!(save(&mut table, &mut kept).is_err());
        assert_eq!(kept.answers, [(7, 2), (8, 1)].into());
        answered(&mut table, 8);
        assert!(save(&mut table, &mut kept).is_err());
        assert_eq!(kept.answers, [(7, 2), (8, 2)].into());
        // The room of what was handed over is there for the one that waits.
        table.hand_over(7, 8);
        save(&mut table, &mut kept).unwrap();
        assert_eq!(kept.answers, [(8, 4), (9, 1)].into());
        table.forget(9);
        save(&mut table, &mut kept).unwrap();
        assert_eq!(kept.answers, [(8, 4)].into());
    }

    #[test]
    fn the_next_agent_goes_on_with_what_was_counted() {
        let mut before = Table::default();
        [7, 7].into_iter().for_each(|cgroup| answered(&mut before, cgroup));
        let mut kept = Client::default();
        kept.responses = before.clients().next().unwrap().1.responses.clone();
        let mut table = Table::with([(7, kept)]);
        assert!(table.changes().is_empty(), "it is kept already");
        answered(&mut table, 7);
        assert_eq!(table.clients().next().unwrap().1.responses.values().sum::<u64>(), 3);
    }
}
