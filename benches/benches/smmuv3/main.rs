//! The SMMUv3 model against floor loops and peers.

mod machine;
mod translate;

use benches::Report;

fn main() {
    let mut report = Report::new("smmuv3", 9);
    translate::hits(&mut report);
    translate::misses(&mut report);
    report.finish();
}
