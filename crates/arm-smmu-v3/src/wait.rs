//! Waiting for hardware, not forever.

use std::time::{Duration, Instant};

/// How often to look before the processor is offered to somebody else.
const SPINS: u32 = 64;

/// Polls until there is something, or until `timeout` has passed and there still is nothing.
pub(crate) fn until<T>(timeout: Duration, mut poll: impl FnMut() -> Option<T>) -> Option<T> {
    for _ in 0..SPINS {
        if let Some(found) = poll() {
            return Some(found);
        }
        std::hint::spin_loop();
    }
    let start = Instant::now();
    while start.elapsed() < timeout {
        if let Some(found) = poll() {
            return Some(found);
        }
        std::thread::yield_now();
    }
    // This thread may have been asleep since it looked.
    poll()
}
