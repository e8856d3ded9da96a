//! What live connections have carried so far. It is read and told, and nothing is changed by it.

use observer_common::sockets::{BATCH, Base};

use crate::{
    live,
    own::SOCKETS_ASKED,
    payload,
    slot::NONE,
    sock::{self, state},
};

/// Answers for the first `count` of the sockets that are asked for.
#[inline(always)]
pub fn read(count: u64) {
    for index in 0..BATCH {
        if u64::from(index) >= count {
            return;
        }
        one(index);
    }
}

/// The address may be that of a socket that is gone by now, or of another one: what is read is right if the connection is
/// among those that live before and afterwards. One leaves them before its memory can be anybody else's, unless its end was missed.
#[inline(never)]
fn one(index: u32) -> u32 {
    let Some(asked) = SOCKETS_ASKED.get_ptr_mut(index) else { return 0 };
    // SAFETY: the map gave a valid, aligned pointer; the agent writes nothing while the program runs.
    let sk = unsafe { (*asked).socket };
    let before = slot_of(sk);
    let base = base_of(sk);
    let (all, _) = payload::while_busy(sk);
    // Of a connection whose end was missed the memory may be anything by now.
    let is_there = match sock::state_of_connection(sk) {
        0 => false,
        state::CLOSE => payload::is_of_connection(sk),
        _ => true,
    };
    let slot = slot_of(sk);
    // The same slot may be that of the next connection at this address, but no base goes from one to the other.
    let is_same = slot == before && base_of(sk) == base;
    // SAFETY: as above.
    unsafe {
        // A socket that something happens to may show less than it has.
        (*asked).tx = all.tx.saturating_sub(base.tx);
        (*asked).rx = all.rx.saturating_sub(base.rx);
        (*asked).slot = slot;
        (*asked).valid = u32::from(slot != NONE && is_same && is_there);
    }
    0
}

/// What the socket of a connection had counted before it was followed. A line is never that of a connection that is older than the
/// agent: a base that lies there all the same is an earlier socket's, whose end was missed or not followed any more.
#[inline(always)]
fn base_of(sk: u64) -> Base {
    if live::is_in_line(sk) { None } else { payload::base(sk) }.unwrap_or_default()
}

/// The slot of a connection that lives, or [`NONE`].
#[inline(always)]
fn slot_of(sk: u64) -> u32 {
    // SAFETY: the map gave a valid, aligned pointer.
    live::get(sk).map_or(NONE, |connection| unsafe { (&raw const (*connection).slot).read_volatile() })
}
