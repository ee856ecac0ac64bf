//! Fault injection: the nth fallible step of a thread fails.
//!
//! Every step that can fail in earnest (an allocation, a pin, a copy, a driver's
//! call, a new descriptor) asks [`point`] first. Off, that is one load.

use std::cell::Cell;
use std::sync::atomic::{AtomicU32, Ordering};

/// How many threads have a step ahead that is to fail.
static ARMED: AtomicU32 = AtomicU32::new(0);

thread_local! {
    /// Steps of this thread until one fails; 0 is never.
    static LEFT: Cell<u32> = const { Cell::new(0) };
}

/// Lets the calling thread's `nth` fallible step from now on fail, counting from
/// 1; 0 lets none.
pub fn set_nth(nth: u32) {
    let was = LEFT.replace(nth);
    match (was, nth) {
        (0, 0) => {}
        (0, _) => {
            ARMED.fetch_add(1, Ordering::Relaxed);
        }
        (_, 0) => {
            ARMED.fetch_sub(1, Ordering::Relaxed);
        }
        _ => {}
    }
}

/// How many more steps the calling thread has until one fails: 0 if none will,
/// or one has.
pub fn nth() -> u32 {
    LEFT.get()
}

/// Whether this step is to fail.
#[inline]
pub fn point() -> bool {
    ARMED.load(Ordering::Relaxed) != 0 && count()
}

#[cold]
fn count() -> bool {
    match LEFT.get() {
        0 => false,
        1 => {
            set_nth(0);
            true
        }
        left => {
            LEFT.set(left - 1);
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_nth_step_of_this_thread_fails() {
        set_nth(3);
        let other = std::thread::spawn(point).join();
        assert!(!other.unwrap_or(true));
        assert_eq!([point(), point(), point(), point()], [false, false, true, false]);
        assert_eq!(nth(), 0);
        set_nth(2);
        set_nth(0);
        assert!(!point() && !point());
    }
}
