//! Turning the checker on, and asking it.

use super::check::{Checker, StaleRule, StaleSink, StaleSummary};
use super::report::Stale;
use super::words::{Word, configuration, words};
use crate::explain::Explanation;
use crate::platform::Memory;
use crate::smmu::Smmu;
use crate::sync::Fence;
use crate::wire::Command;

/// The checker is on already; it stays as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("stale translations are being checked for already")]
pub struct AlreadyChecking;

impl<M: Memory, F: Fence> Smmu<M, F> {
    /// Turns on the checker for stale translations, for good: from now on each transaction is also translated
    /// from memory alone, and if a cache made a difference that software should have prevented by a
    /// command, `sink` is told, once for each stream, page and kind of access until that is mended.
    ///
    /// All caches are emptied, so that nothing is used that was not seen to be made. Transactions take several
    /// times as long, and translate in pieces of 4 KiB at most.
    ///
    /// # When a difference is a bug
    ///
    #[doc = include_str!("rule.md")]
    pub fn check_stale(
        &self,
        rule: StaleRule,
        sink: impl StaleSink + 'static,
    ) -> Result<(), AlreadyChecking> {
        let _front = self.front.lock();
        self.checker.set(Checker::new(rule, Box::new(sink))).map_err(|_| AlreadyChecking)?;
        // Ports forget their streams, and take them up again as watched.
        self.tlb.invalidate_all();
        self.tlb.invalidate_all_streams();
        Ok(())
    }

    /// What the checker has done so far; `None` if it is off.
    pub fn stale_summary(&self) -> Option<StaleSummary> {
        self.checker.get().map(Checker::summary)
    }

    /// Differences that transactions met, and that are neither settled nor reported: software may still be about to
    /// invalidate. At the end of a test, when it no longer is, these are findings as well.
    pub fn stale_pending(&self) -> Vec<Stale> {
        self.checker.get().map(Checker::pending).unwrap_or_default()
    }

    /// Tells the checker of a command that was executed.
    #[inline]
    pub(crate) fn watch(&self, command: &Command) {
        if let Some(checker) = self.checker.get() {
            checker.command(command);
        }
    }
}

/// The words of configuration that a walk has read.
pub(crate) fn origin(explanation: &Explanation) -> Vec<Word> {
    configuration(&words(explanation)).to_vec()
}
