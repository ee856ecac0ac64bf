//! Waiting for hardware, not forever.

use std::time::{Duration, Instant};

/// How often to look before the processor is offered to somebody else.
const SPINS: u32 = 64;

/// Polls until there is something, or until `timeout` has passed and there still is nothing.
pub(crate) fn until<T>(timeout: Duration, mut poll: impl FnMut() -> Option<T>) -> Option<T> {
    let mut start = None;
    for spins in 0.. {
        if let Some(found) = poll() {
            return Some(found);
        }
        if spins < SPINS {
            std::hint::spin_loop();
        } else if start.get_or_insert_with(Instant::now).elapsed() < timeout {
            std::thread::yield_now();
        } else {
            break;
        }
    }
    // This thread may have been asleep since it looked.
    poll()
}
