//! Connections whose end no program has seen: the kernel does not run a program that it has interrupted.

use observer_common::{missed::Missed, tcp::Connection};

use crate::{
    connection, live,
    sock::{self, state},
};

/// Ends the connection of the socket at this address if it is over. With `in_line` the agent has taken its line from it, which programs
/// without atomic exchanges cannot, and `line` is what that had; no `Option` of it, which older verifiers find half uninitialised.
/// `over` counts one whose socket is still as it was in the end, and says whether it is; `forget` drops what is kept by its address.
///
/// One that begins has its place while its state is that of the handshake or one after it, and one that ends gives it back before
/// its state is written: in any other state there is none whose end is still to come.
#[inline(always)]
pub fn missed(
    sk: u64,
    in_line: bool,
    line: u64,
    over: impl FnOnce(Connection, bool) -> bool,
    forget: impl FnOnce(),
) -> Missed {
    // In this order: what is read of the state is not from before the connection that has the place.
    let has_line = live::is_in_line(sk);
    let now = sock::state_of_connection(sk);
    if state::was_established(now) || now == state::SYN_SENT || now == state::SYN_RECV {
        if in_line {
            // Another has begun there, and the agent gives it a place again, where no base is its own.
            forget();
        }
        return Missed::Lives;
    }
    let connection = if in_line {
        Connection { slot: line as u32, retransmitted: (line >> 32) as u32 }
    } else if has_line {
        return Missed::InLine;
    } else if let Some(connection) = live::remove(sk, false) {
        connection
    } else {
        return Missed::Lives;
    };
    // In any other state it is another socket, or none.
    if now != state::CLOSE || !over(connection, in_line) {
        forget();
        connection::uncounted(connection);
    }
    Missed::Counted
}
