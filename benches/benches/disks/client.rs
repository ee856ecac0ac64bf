//! A device that is bound, with memory that it reaches behind an IOMMU or behind none.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::event::EventfdFlags;
use rustix::fs::{MemfdFlags, SealFlags};
use uapi::nr;

const CONFIG: u64 = 7 << 40;
const IOVA: u64 = 0x4000_0000;
const RAM: u64 = 64 << 20;
/// Where the memory has data: as many places of 1 MiB.
pub(crate) const DATA: u64 = 0x20_0000;
pub(crate) const SLOTS: u64 = 32;

pub(crate) struct Client {
    device: File,
    _iommu: File,
    /// What the MSI-X vector 1 signals.
    event: File,
    ram: NonNull<AtomicU32>,
    /// Where the memory is for the device.
    base: u64,
}

/// One ioctl with a struct of words.
fn ioctl(file: &File, command: u32, words: &mut [u32]) {
    // SAFETY: the arguments below are the commands' structs, with their sizes.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), command.into(), words.as_mut_ptr()) };
    assert!(result == 0, "{command:#x}: {}", io::Error::last_os_error());
}

fn halves(word: u64) -> [u32; 2] {
    [word as u32, (word >> 32) as u32]
}

impl Client {
    /// `/dev/vfio/devices/vfioN`, behind an IOMMU or `direct`ly at memory.
    pub(crate) fn new(n: u32, direct: bool) -> Self {
        let open = |path: &str| {
            File::options().read(true).write(true).open(path).expect("softiommu's node")
        };
        let (device, iommu) = (open(&format!("/dev/vfio/devices/vfio{n}")), open("/dev/iommu"));
        ioctl(&device, nr::VFIO_DEVICE_BIND_IOMMUFD, &mut [16, 0, iommu.as_raw_fd() as u32, 0]);
        let mut ioas = [12, 0, 0];
        ioctl(&iommu, nr::IOMMU_IOAS_ALLOC, &mut ioas);
        let ioas = ioas[2];
        // As QEMU has a guest's memory: sealed, so that it cannot shrink.
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = File::from(rustix::fs::memfd_create("ram", flags).expect("memory"));
        file.set_len(RAM).expect("memory");
        rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK).expect("memory");
        let ([start, start_high], [len, len_high], [at, at_high]) =
            (halves(0), halves(RAM), halves(IOVA));
        let fd = file.as_raw_fd() as u32;
        let mut map = [40, 7, ioas, fd, start, start_high, len, len_high, at, at_high];
        ioctl(&iommu, nr::IOMMU_IOAS_MAP_FILE, &mut map);
        ioctl(&device, nr::VFIO_DEVICE_ATTACH_IOMMUFD_PT, &mut [12, 0, ioas]);
        let mut base = IOVA;
        if direct {
            let mut get = [40, 0, ioas, 0, at, at_high, len, len_high, 0, 0];
            ioctl(&iommu, nr::IOMMU_IOAS_NOIOMMU_GET_PA, &mut get);
            assert_eq!(u64::from(get[6]) | u64::from(get[7]) << 32, RAM, "it is contiguous");
            base = u64::from(get[8]) | u64::from(get[9]) << 32;
        }
        device.write_all_at(&[0b110, 0], CONFIG + 4).expect("configuration space");
        // SAFETY: a new mapping.
        let ram = unsafe {
            let (protection, flags) =
                (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_POPULATE);
            let fd = file.as_raw_fd();
            libc::mmap(std::ptr::null_mut(), RAM as usize, protection, flags, fd, 0)
        };
        assert_ne!(ram, libc::MAP_FAILED);
        let ram = NonNull::new(ram.cast()).expect("a mapping");
        let flags = EventfdFlags::CLOEXEC;
        let event = File::from(rustix::event::eventfd(0, flags).expect("an eventfd"));
        // MSI-X, one eventfd, trigger.
        let mut set = [24, 1 << 2 | 1 << 5, 2, 1, 1, event.as_raw_fd() as u32];
        ioctl(&device, nr::VFIO_DEVICE_SET_IRQS, &mut set);
        Self { device, _iommu: iommu, event, ram, base }
    }

    /// Where an offset of the memory is for the device.
    pub(crate) fn at(&self, offset: u64) -> u64 {
        self.base + offset
    }

    pub(crate) fn read<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.device.read_exact_at(&mut bytes, at).expect("registers");
        bytes
    }

    pub(crate) fn write(&self, at: u64, bytes: &[u8]) {
        self.device.write_all_at(bytes, at).expect("registers");
    }

    pub(crate) fn write32(&self, at: u64, value: u32) {
        self.write(at, &value.to_le_bytes());
    }

    /// Sleeps until the device has interrupted since the last time.
    pub(crate) fn sleep(&self) {
        let mut count = [0; 8];
        (&self.event).read_exact(&mut count).expect("an eventfd");
    }

    /// Fills memory.
    pub(crate) fn put(&self, offset: u64, bytes: &[u8]) {
        assert!(offset + bytes.len() as u64 <= RAM);
        // SAFETY: inside the mapping; the device looks at it when it is told to.
        unsafe {
            let to = self.ram.as_ptr().cast::<u8>().add(offset as usize);
            to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
        }
    }

    /// Reads 4 aligned bytes that the device writes.
    pub(crate) fn load(&self, offset: u64) -> u32 {
        assert!(offset.is_multiple_of(4) && offset + 4 <= RAM);
        // SAFETY: inside the mapping, aligned, and nobody writes it in another way.
        unsafe { self.ram.add(offset as usize / 4).as_ref() }.load(Ordering::Acquire)
    }
}
