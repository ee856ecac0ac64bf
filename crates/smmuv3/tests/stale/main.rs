//! The stale-translation checker: it finds each kind of forgotten command, names it, and accuses nobody else.
//!
//! Drivers here know registers and memory only, as everywhere.

#[path = "../common/mod.rs"]
mod common;

mod atc;
mod correct;
mod planted;

use std::sync::{Arc, Mutex};

use smmuv3::{Stale, StaleRule};

use common::Machine;

/// What the checker has reported.
#[derive(Clone, Default)]
struct Reports(Arc<Mutex<Vec<Stale>>>);

impl Reports {
    /// Turns the checker of a machine on.
    fn of(m: &Machine, rule: StaleRule) -> Self {
        let reports = Self::default();
        let sink = reports.clone();
        m.smmu
            .check_stale(rule, move |stale: &Stale| sink.0.lock().unwrap().push(stale.clone()))
            .expect("it was off");
        reports
    }

    /// The reports since the last call.
    fn take(&self) -> Vec<Stale> {
        std::mem::take(&mut self.0.lock().unwrap())
    }

    /// The one report since the last call.
    #[track_caller]
    fn one(&self) -> Stale {
        let mut reports = self.take();
        assert_eq!(reports.len(), 1, "{reports:#?}");
        reports.remove(0)
    }

    #[track_caller]
    fn none(&self) {
        let reports = self.take();
        assert!(reports.is_empty(), "{}", reports[0]);
    }
}
