//! How a VMM's own test looks with softiommu as a dev-dependency: install the
//! machine once, then use whatever opens `/dev/iommu`.
//!
//! `cargo run -p softiommu --example dev_dependency`

use std::sync::Arc;

use iommufd_ioctls::{IommuFd, IommufdIoas};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    softiommu::install(softiommu::Machine::with(softiommu::Model::Mock))?;

    // From here on nothing knows of softiommu.
    let iommu = Arc::new(IommuFd::new()?);
    let ioas = IommufdIoas::new(iommu.clone())?;
    println!("IOAS {} on a machine with no IOMMU", ioas.id());
    let range = ioas.unmap(0x1000, 0x1000);
    println!("unmapping nothing: {}", range.err().map_or("worked".into(), |e| e.to_string()));
    Ok(())
}
