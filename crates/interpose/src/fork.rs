//! Forks: the parent keeps the state, the child forgets it.

/// Called once, with the first state of a process.
pub(crate) fn register() {}
