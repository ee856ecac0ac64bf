//! A machine file's device that is behind no IOMMU, and the physical addresses
//! that its owner may ask for.

use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::Arc;

use iommufd_ioctls::{IommuFd, IommufdIoas};

const MACHINE: &str = r#"
grant = ["sys-rawio"]

[[iommu]]
model = "mock"

[[device]]
name = "nic0"
iommu = "none"
"#;

/// `IOMMU_IOAS_NOIOMMU_GET_PA`: the physical address, and the contiguous bytes.
fn get_pa(iommu: &IommuFd, ioas: u32, iova: u64, length: u64) -> Option<(u64, u64)> {
    let mut cmd = [40, u64::from(ioas), iova, length, 0];
    // SAFETY: the ioctl reads and writes these 40 bytes.
    let done = unsafe { libc::ioctl(iommu.as_raw_fd(), 0x3b95, cmd.as_mut_ptr()) };
    (done == 0).then_some((cmd[4], cmd[3]))
}

#[test]
fn two_views_of_a_page_are_at_one_physical_address() {
    softiommu::install(softiommu::Machine::from_toml(MACHINE).unwrap()).unwrap();
    let iommu = Arc::new(IommuFd::new().unwrap());
    let ioas = IommufdIoas::new(iommu.clone()).unwrap();
    // SAFETY: a plain system call with a C string; the descriptor is ours.
    let ram = unsafe {
        std::fs::File::from_raw_fd(libc::memfd_create(c"ram".as_ptr(), libc::MFD_CLOEXEC))
    };
    ram.set_len(1 << 20).unwrap();
    ioas.map_file(ram.as_raw_fd(), 0, 1 << 20, 0x4000_0000, true).unwrap();
    ioas.map_file(ram.as_raw_fd(), 0x8000, 0x2000, 0x8000_0000, false).unwrap();
    assert_eq!(get_pa(&iommu, ioas.id(), 0x4000_0000, 4096), None, "nothing is attached");

    // What binding a VFIO file and attaching it will do.
    let mut cmd = [0u32; 18];
    cmd[..3].copy_from_slice(&[72, 1 << 31, ioas.id()]);
    // SAFETY: the ioctl reads and writes these 72 bytes.
    assert_eq!(unsafe { libc::ioctl(iommu.as_raw_fd(), 0x3ba0, cmd.as_mut_ptr()) }, 0);

    let (pa, length) = get_pa(&iommu, ioas.id(), 0x4000_0000, u64::MAX).unwrap();
    assert_eq!(length, 1 << 20, "a memory file is contiguous");
    let other = get_pa(&iommu, ioas.id(), 0x8000_0123, 0x1000);
    assert_eq!(other, Some((pa + 0x8123, 0x1000)));
    ioas.unmap(0x4000_0000, 1 << 20).unwrap();
    assert_eq!(get_pa(&iommu, ioas.id(), 0x4000_0000, 4096), None);
}
