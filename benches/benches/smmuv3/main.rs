//! The SMMUv3 model against floor loops and peers.

// Times are shown with three digits.
#![allow(clippy::cast_precision_loss)]

mod access;
mod invalidate;
mod machine;
mod translate;

use benches::Report;

fn main() {
    let mut report = Report::new("smmuv3", 9);
    translate::hits(&mut report);
    translate::misses(&mut report);
    translate::misses_in_guest_memory(&mut report);
    access::reads(&mut report);
    invalidate::commands(&mut report);
    invalidate::threads(&mut report);
    report.finish();
}
