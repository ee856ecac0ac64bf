//! A VMM with one guest and one device, in one file: what a VMM does for nested translation, with the crates a VMM
//! would use. It knows nothing of softiommu, and would run as it is on an Arm server whose first VFIO device is an
//! Intel DMA engine.
//!
//! The guest owns stage 1: its tables are in its memory, and the VMM hands over where they are and what the guest
//! invalidates. The host owns stage 2: it maps the guest's memory.

mod device;
mod guest;

use std::sync::Arc;

use iommufd_bindings::iommufd as u;
use iommufd_ioctls::{
    IommuFd, IommufdHwptData, IommufdInvalidateData, IommufdIoas, IommufdVDevice,
    IommufdVEventData, IommufdVIommu,
};

use crate::device::Engine;
use crate::guest::{Guest, IPA, RAM};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// What the guest knows the device by.
const VIRTUAL_STREAM_ID: u64 = 0x10;
/// Where the guest's driver lets the device see three pages of its memory.
const DESCRIPTOR: u64 = 0x10_0000;
const SOURCE: u64 = 0x10_1000;
const DESTINATION: u64 = 0x10_2000;
const MESSAGE: &[u8] = b"copied by a device, through two stages";

fn main() -> Result<()> {
    let iommu = Arc::new(IommuFd::new()?);
    let engine = Arc::new(Engine::open("/dev/vfio/devices/vfio0", &iommu)?);
    println!("bound a DMA engine as device {}", engine.id());

    let guest = Guest::new()?;
    let ioas = Arc::new(IommufdIoas::new(iommu)?);
    ioas.map_file(guest.fd(), 0, RAM, IPA, true)?;
    println!("stage 2: {} MiB of guest memory at IPA {IPA:#x}", RAM >> 20);

    let viommu = Arc::new(IommufdVIommu::new(ioas, engine.id(), false)?);
    let mut events = viommu.allocate_veventq(64)?;
    let mut vdevice =
        IommufdVDevice::new(viommu.clone(), engine.clone(), engine.id(), VIRTUAL_STREAM_ID)?;

    // The guest's driver writes a CD and tables, and its STE, which the VMM passes on.
    guest.map(DESCRIPTOR, 0x10000)?;
    guest.map(SOURCE, 0x20000)?;
    guest.map(DESTINATION, 0x30000)?;
    let ste = guest.write_context()?;
    let hwpt = IommufdHwptData::Smmuv3(u::iommu_hwpt_arm_smmuv3 { ste });
    vdevice.install_s1_hwpt(&hwpt)?;
    println!("stage 1: the guest's own, for its stream {VIRTUAL_STREAM_ID:#x}");

    guest.write(0x20000, MESSAGE)?;
    let copy = guest::descriptor(SOURCE, DESTINATION, MESSAGE.len());
    guest.write(0x10000, &copy)?;
    let done = engine.run(DESCRIPTOR)?;
    let found = guest.read(0x30000, MESSAGE.len())?;
    println!(
        "copied {SOURCE:#x} to {DESTINATION:#x}: {done}; guest memory has {:?}",
        String::from_utf8_lossy(&found)
    );

    // The guest unmaps a page and invalidates; the VMM forwards the command.
    guest.unmap(DESTINATION)?;
    let command = guest::tlbi_va(DESTINATION);
    let mut command =
        IommufdInvalidateData::Smmuv3(u::iommu_viommu_arm_smmuv3_invalidate { cmd: command });
    viommu.invalidate(&mut command)?;
    println!("the guest unmapped {DESTINATION:#x}; copied again: {}", engine.run(DESCRIPTOR)?);

    device::wait(&events.as_raw_fd())?;
    for event in events.read_events()? {
        if let Some(IommufdVEventData::Smmuv3(event)) = event.data {
            let [first, _, address, _] = event.evt;
            println!(
                "the guest's Event queue gets event {:#04x} of stream {:#x}: address {address:#x}",
                first as u8,
                first >> 32
            );
        }
    }
    Ok(())
}
