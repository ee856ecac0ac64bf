//! Nested translation, from a device to memory, and what guests and hosts do to it.

mod dma;
mod guest;
mod vm;

use benches::Report;

fn main() {
    let mut report = Report::new("nested", 9);
    dma::reads(&mut report);
    dma::stage_2(&mut report);
    guest::cycles(&mut report);
    report.finish();
}
