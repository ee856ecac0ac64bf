//! The stale-translation checker: does a device still use what software has changed?
//!
//! While it is on, each transaction is served as ever, by the caches if they hold it, and walked once more from
//! `STRTAB_BASE` on, in memory, without caches and without side effects: the walk that [`Smmu::explain`](crate::Smmu::explain)
//! shows. Output address, attributes, and whether the access is permitted at all must be the same. Addresses that ATS has
//! translated are held against what the device was told, and that against the tables.
//!
//! `check` compares, and finds what differs; `words` knows which words of memory a translation is made from, `scope` which
//! commands invalidate it; `ledger` remembers; `atc` does the same for devices' own caches; `report` tells people.
//!
//! Off, it costs nothing: a port remembers watched streams under a key that no transaction has, so that the path of a
//! hit is what it always was, and misses.
//!
//! # When a difference is a bug of the software
//!
#![doc = include_str!("rule.md")]

mod atc;
mod check;
mod control;
mod ledger;
mod report;
mod scope;
mod words;

pub(crate) use check::{Checker, Served};
pub use check::{StaleRule, StaleSink, StaleSummary};
pub use control::AlreadyChecking;
pub(crate) use control::origin;
pub use report::{Miss, Proof, Stale, StaleCache};
pub(crate) use words::Word;
pub use words::{Change, Place};
