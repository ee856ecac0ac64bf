//! What the SMMU remembers: combined translations, stage 2 translations, the last-level tables
//! that walks ended in.
//!
//! Transactions read all of it without a lock and without writing shared memory; see
//! [`slot`] for how, and [`generation`] for how whole address spaces are forgotten at once.

mod array;
pub(crate) mod generation;
pub(crate) mod in_flight;
#[cfg(all(test, loom))]
mod loom;
pub(crate) mod slot;
pub(crate) mod tlb;
