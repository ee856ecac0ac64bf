//! The locks of this crate. In its unit tests `shuttle` schedules them, so that
//! `interleavings` can explore the orders in which threads take them.

#[cfg(test)]
pub(crate) use shuttle::sync::{Mutex, MutexGuard};
#[cfg(not(test))]
pub(crate) use std::sync::{Mutex, MutexGuard};
