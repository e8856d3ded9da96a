//! TCP connections whose end no program has seen.
//!
//! The kernel does not run a program inside of itself (see [`Misses`](crate::kernel::Misses)): an interrupt that ends a connection
//! while the program runs on that CPU passes its end over. Such a connection would be shown as one that lives until another has the
//! memory of its socket. Its socket says that it is closed, and what it has carried, until the kernel uses that memory for anything.

use std::{
    io,
    os::fd::AsFd,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use observer_common::missed::Missed;

use super::{
    super::{Program, sys},
    EdgeTable, lock,
};

/// How often all connections are looked at after something was passed over: an event is told as passed over before the socket says
/// what happened to it.
const LOOKS: u32 = 2;
/// How often all connections are looked at though nothing is told as passed over. Some kernels hide threads of their own from
/// programs at tracepoints, and what a timer ends on top of one is told by nobody.
const AT_LEAST: Duration = Duration::from_secs(300);

/// Finds them, and ends them.
pub(in crate::kernel) struct MissedEnds {
    program: Arc<Program>,
    /// How many events were passed over. `None` where the kernel does not tell: it passes none over then.
    passed_over: Box<dyn Fn() -> Option<u64> + Send + Sync>,
    looks: Mutex<Looks>,
}

/// When connections are looked at.
struct Looks {
    /// Events that were passed over when it was last asked.
    told: Option<u64>,
    /// So often, still.
    left: u32,
    /// When they were last looked at.
    last: Option<Instant>,
}

impl Looks {
    /// An agent before this one may have left some.
    const fn new() -> Self {
        Self { told: None, left: 1, last: None }
    }

    /// Whether it is time to look, when so many events were passed over.
    fn is_time(&mut self, told: Option<u64>, now: Instant) -> bool {
        if self.told != told {
            self.told = told;
            self.left = LOOKS;
        }
        let is_long_ago = self.last.is_some_and(|last| now.duration_since(last) >= AT_LEAST);
        let is_time = self.left > 0 || is_long_ago;
        self.left = self.left.saturating_sub(1);
        if is_time {
            self.last = Some(now);
        }
        is_time
    }
}

impl EdgeTable {
    /// Ends connections whose end was passed over, and tells how many there were. Looks at them only when the kernel has passed
    /// something over, and when it was long ago. Call it on the thread that gives slots back, or before there is one: what ends counts
    /// in its slot.
    ///
    /// # Errors
    ///
    /// When the kernel refuses to tell of connections, or to run the program that looks at them.
    pub fn end_missed(&self) -> io::Result<usize> {
        let Some(missed) = self.missed.get() else { return Ok(0) };
        if !lock(&missed.looks).is_time((missed.passed_over)(), Instant::now()) {
            return Ok(0);
        }
        let mut ended = 0;
        for socket in self.connections.sockets()? {
            let mut outcome = missed.ask([socket, 0, 0])?;
            if outcome == Missed::InLine as u32
                && let Some(connection) = self.connections.take_line(socket)
            {
                outcome = missed.ask([socket, 1, connection])?;
                if outcome == Missed::Lives as u32 {
                    self.connections.give_back(socket, connection);
                }
            }
            ended += usize::from(outcome == Missed::Counted as u32);
        }
        Ok(ended)
    }
}

impl MissedEnds {
    /// With the program that looks at a connection, and what tells how many events were passed over.
    pub(in crate::kernel) fn new(
        program: Arc<Program>,
        passed_over: impl Fn() -> Option<u64> + Send + Sync + 'static,
    ) -> Self {
        Self { program, passed_over: Box::new(passed_over), looks: Looks::new().into() }
    }

    fn ask(&self, arguments: [u64; 3]) -> io::Result<u32> {
        sys::run_raw_tracepoint(self.program.as_fd(), &arguments)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_looked_at_when_something_was_passed_over_and_once_more() {
        let mut looks = Looks::new();
        let now = Instant::now();
        let told = [Some(0), Some(0), Some(0), Some(3), Some(4), Some(4), Some(4)];
        assert_eq!(told.map(|told| looks.is_time(told, now)), [true, true, false, true, true, true, false]);
    }

    #[test]
    fn where_nothing_is_told_connections_are_looked_at_now_and_then() {
        let mut looks = Looks::new();
        let begin = Instant::now();
        let times = [0, 1, 299, 300, 301, 599, 600].map(|seconds| begin + Duration::from_secs(seconds));
        assert_eq!(times.map(|now| looks.is_time(None, now)), [true, false, false, true, false, false, true]);
    }
}
