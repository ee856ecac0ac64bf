//! A lock, and changes to wait for.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// State that threads change and wait for.
///
/// It stands on the standard library's locks and not on `parking_lot`'s: those keep the threads that wait in one table of
/// the process, where a forked child, which a machine may find itself in, still finds threads that it does not have.
#[derive(Debug, Default)]
pub struct Monitor<T> {
    state: Mutex<T>,
    changed: Condvar,
}

impl<T> Monitor<T> {
    /// A monitor of this state.
    pub fn new(state: T) -> Self {
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// The state, to look at and to change.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the state up until somebody has changed it, or for no reason.
    pub fn wait<'a>(&'a self, state: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// The same, but no longer than until `deadline`.
    pub fn wait_until<'a>(
        &'a self,
        state: MutexGuard<'a, T>,
        deadline: Instant,
    ) -> MutexGuard<'a, T> {
        let left = deadline.saturating_duration_since(Instant::now());
        let waited = self.changed.wait_timeout(state, left);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Wakes all who wait.
    pub fn notify(&self) {
        self.changed.notify_all();
    }
}
