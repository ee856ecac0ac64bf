//! rust-vmm's `vfio-ioctls`, which Cloud Hypervisor uses, unmodified, in a plain `cargo test`: by an iommufd, and by a
//! container.

use std::path::Path;
use std::sync::{Arc, Once};

use iommufd_ioctls::IommuFd;
use vfio_bindings::bindings::vfio::{
    VFIO_PCI_BAR0_REGION_INDEX, VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_MSIX_IRQ_INDEX,
};
use vfio_ioctls::{VfioContainer, VfioDevice, VfioIommufd, VfioOps};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const MACHINE: &str = r#"
[[iommu]]
model = "smmuv3"

[[device]]
name = "by-iommufd"
model = "ioat"
iommu = "iommu0"
address = "0000:e1:00.0"

[[device]]
name = "by-container"
model = "ioat"
iommu = "iommu0"
address = "0000:e2:00.0"
"#;

const LEN: usize = 0x4000;
const IOVA: u64 = 0x1_0000_0000;

fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        softiommu::install(softiommu::Machine::from_toml(MACHINE).unwrap()).unwrap();
    });
}

/// Memory that a device may write to.
fn memory() -> *mut u8 {
    // SAFETY: a fresh mapping, which stays.
    unsafe {
        let (protection, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
        libc::mmap(std::ptr::null_mut(), LEN, protection, flags, -1, 0).cast()
    }
}

/// Has the DMA engine copy `text` within the memory and interrupt, as its driver does.
fn copies(device: &VfioDevice, memory: *mut u8, text: &[u8]) {
    let event = EventFd::new(EFD_NONBLOCK).unwrap();
    assert_eq!(device.get_irq_info(VFIO_PCI_MSIX_IRQ_INDEX).unwrap().count, 1);
    device.enable_msix(vec![&event]).unwrap();
    // Memory and bus master.
    device.region_write(VFIO_PCI_CONFIG_REGION_INDEX, &0b110_u16.to_le_bytes(), 4);
    let descriptor = [text.len() as u64 | 1 << 32, IOVA + 0x1000, IOVA + 0x2000, 0];
    // SAFETY: inside the memory, which only the device has beside us.
    unsafe {
        let bytes = descriptor.map(u64::to_le_bytes).concat();
        memory.copy_from(bytes.as_ptr(), bytes.len());
        memory.add(0x1000).copy_from(text.as_ptr(), text.len());
    }
    let write = |offset, data: &[u8]| device.region_write(VFIO_PCI_BAR0_REGION_INDEX, data, offset);
    write(0x03, &[1 << 3]);
    write(0x90, &IOVA.to_le_bytes());
    write(0x80, &1_u16.to_le_bytes());
    write(0x86, &1_u16.to_le_bytes());
    while event.read().is_err() {
        std::thread::yield_now();
    }
    let mut status = [0; 8];
    device.region_read(VFIO_PCI_BAR0_REGION_INDEX, &mut status, 0x88);
    assert_eq!(status[0] & 7, 1, "done");
    // SAFETY: as above.
    let found = unsafe { std::slice::from_raw_parts(memory.add(0x2000), text.len()) };
    assert_eq!(found, text);
    device.disable_msix().unwrap();
    device.reset();
    device.region_read(VFIO_PCI_BAR0_REGION_INDEX, &mut status, 0x88);
    assert_eq!(status[0] & 7, 3, "halted, as after a reset");
}

#[test]
fn a_device_is_driven_by_an_iommufd() {
    install();
    let ops = VfioIommufd::new(Arc::new(IommuFd::new().unwrap()), None, None).unwrap();
    let ops = Arc::new(ops);
    let (memory, path) = (memory(), Path::new("/sys/bus/pci/devices/0000:e1:00.0"));
    let device = VfioDevice::new(path, ops.clone() as Arc<dyn VfioOps>, true).unwrap();
    // SAFETY: the memory is only looked at by raw pointers while the device writes to it.
    unsafe { ops.vfio_dma_map(IOVA, LEN, memory).unwrap() };
    copies(&device, memory, b"through an IOAS");
    ops.vfio_dma_unmap(IOVA, LEN).unwrap();
}

#[test]
fn a_device_is_driven_by_a_container() {
    install();
    let ops = Arc::new(VfioContainer::new(None).unwrap());
    let (memory, path) = (memory(), Path::new("/sys/bus/pci/devices/0000:e2:00.0"));
    let device = VfioDevice::new(path, ops.clone() as Arc<dyn VfioOps>, true).unwrap();
    // SAFETY: as above.
    unsafe { ops.vfio_dma_map(IOVA, LEN, memory).unwrap() };
    copies(&device, memory, b"through a container");
    ops.vfio_dma_unmap(IOVA, LEN).unwrap();
}
