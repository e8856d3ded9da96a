//! What live connections have carried so far. It is read and told, and nothing is changed by it.

use observer_common::sockets::BATCH;

use crate::{live, own::SOCKETS_ASKED, payload, slot::NONE};

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
/// among those that live before and afterwards. One leaves them before its memory can be anybody else's.
#[inline(never)]
fn one(index: u32) -> u32 {
    let Some(asked) = SOCKETS_ASKED.get_ptr_mut(index) else { return 0 };
    // SAFETY: the map gave a valid, aligned pointer; the agent writes nothing while the program runs.
    let sk = unsafe { (*asked).socket };
    let before = slot_of(sk);
    // A line is never that of a connection that is older than the agent. A base that lies there all the same is an earlier
    // socket's, whose end was missed or not followed any more.
    let base = if live::is_in_line(sk) { None } else { payload::base(sk) }.unwrap_or_default();
    let (all, _) = payload::while_busy(sk);
    let slot = slot_of(sk);
    // SAFETY: as above.
    unsafe {
        (*asked).tx = all.tx.wrapping_sub(base.tx);
        (*asked).rx = all.rx.wrapping_sub(base.rx);
        (*asked).slot = slot;
        (*asked).valid = u32::from(slot != NONE && slot == before);
    }
    0
}

/// The slot of a connection that lives, or [`NONE`].
#[inline(always)]
fn slot_of(sk: u64) -> u32 {
    // SAFETY: the map gave a valid, aligned pointer.
    live::get(sk).map_or(NONE, |connection| unsafe { (&raw const (*connection).slot).read_volatile() })
}
