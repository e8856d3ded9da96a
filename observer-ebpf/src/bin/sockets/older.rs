//! Sockets that are older than the agent: what they have counted before is taken off.

use observer_common::older::Adopted;

use crate::{
    add::add,
    adopt, live,
    own::{SOCKET_BASES, SOCKETS_OLDER},
    pairs, payload, sock,
};

/// Counts for a socket from now on. The arguments are those of [`adopt::adopt`]; with `whatever` a socket that
/// something happens to is not left for another try.
#[inline(always)]
pub fn adopt(sk: u64, other: u64, is_server: bool, whatever: bool) -> Adopted {
    // Its server counts for it when it comes, and it is looked for among those that live only after this: it is never in neither
    // place.
    if pairs::is_waiting(sk) {
        return Adopted::Known;
    }
    if live::get(sk).is_some() && adopt::lives(sk) {
        return Adopted::Known;
    }
    let (now, is_sure) = payload::while_busy(sk);
    if !is_sure && !whatever && adopt::lives(sk) && sock::is_observed(sk) {
        return Adopted::Busy;
    }
    // What is taken off is not less than it is, so that nothing from before is counted; but for a segment that is sent again in this
    // moment.
    let now = if is_sure { now } else { payload::at_most(sk) };
    let note = || {
        if let Some(older) = SOCKETS_OLDER.get_ptr_mut(0) {
            // SAFETY: the map gave a valid, aligned pointer.
            unsafe { add(older, 1) };
        }
        SOCKET_BASES.insert(sk, now, 0).is_ok()
    };
    let forget = || {
        let _ = SOCKET_BASES.remove(sk);
    };
    adopt::adopt(sk, other, is_server, note, forget)
}
