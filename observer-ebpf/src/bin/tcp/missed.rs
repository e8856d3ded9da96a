//! Connections whose end no program has seen: the kernel does not run a program that it has interrupted.

use observer_common::{missed::Missed, tcp::Connection};

use crate::{
    connection, live,
    sock::{self, state},
};

/// Ends the connection of the socket at this address if it is over. `taken` is what its line had, if the agent has taken that from
/// it: programs without atomic exchanges cannot. `over` counts one whose socket is still as it was in the end; `forget` drops what
/// is kept by its address.
///
/// One that begins has its place while its state is that of the handshake or one after it, and one that ends gives it back before
/// its state is written: in any other state there is none whose end is still to come.
#[inline(always)]
pub fn missed(
    sk: u64,
    taken: Option<Connection>,
    over: impl FnOnce(Connection, bool),
    forget: impl FnOnce(),
) -> Missed {
    let in_line = taken.is_some();
    // In this order: what is read of the state is not from before the connection that has the place.
    let has_line = live::is_in_line(sk);
    let now = sock::state_of(sk);
    if state::was_established(now) || now == state::SYN_SENT || now == state::SYN_RECV {
        if in_line {
            // Another has begun there, and the agent gives it a place again, where no base is its own.
            forget();
        }
        return Missed::Lives;
    }
    let connection = match taken {
        Some(connection) => connection,
        None if has_line => return Missed::InLine,
        None => match live::remove(sk, false) {
            Some(connection) => connection,
            None => return Missed::Lives,
        },
    };
    // In any other state it is another socket.
    if now == state::CLOSE && sock::is_tcp(sk) {
        over(connection, in_line);
    } else {
        forget();
        connection::uncounted(connection);
    }
    Missed::Counted
}

/// What the agent says that it has taken.
#[inline(always)]
pub fn taken(is_taken: bool, line: u64) -> Option<Connection> {
    is_taken.then_some(Connection { slot: line as u32, retransmitted: (line >> 32) as u32 })
}
