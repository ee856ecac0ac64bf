//! A DMA engine (Intel CB3) behind a VFIO file.

use std::fmt;
use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileExt;

use iommufd_ioctls::{AttachHwpt, IommuFd};
use vmm_sys_util::ioctl::ioctl_with_mut_ref;

use crate::Result;

const VFIO_DEVICE_BIND_IOMMUFD: u64 = 0x3b76;
const VFIO_DEVICE_ATTACH_IOMMUFD_PT: u64 = 0x3b77;
const VFIO_DEVICE_DETACH_IOMMUFD_PT: u64 = 0x3b78;

/// Regions of the file: BAR 0, and configuration space.
const CONFIG: u64 = 7 << 40;
const COMMAND: u64 = CONFIG + 4;
const MEMORY_AND_MASTER: u16 = 0b110;
/// Registers of the engine's channel.
const CHANCMD: u64 = 0x84;
const DMACOUNT: u64 = 0x86;
const CHANSTS: u64 = 0x88;
const CHAINADDR: u64 = 0x90;
const CHANERR: u64 = 0xa8;
const RESET: u8 = 1 << 5;

/// The engine, bound to an iommufd.
pub(crate) struct Engine {
    file: File,
    id: u32,
}

/// How a chain of descriptors ended.
pub(crate) struct Outcome {
    status: u64,
    error: u32,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.status {
            1 => f.write_str("done"),
            3 => write!(f, "halted, CHANERR = {:#x}", self.error),
            status => write!(f, "status {status}"),
        }
    }
}

fn ioctl<const N: usize>(file: &File, cmd: u64, words: &mut [u32; N]) -> std::io::Result<()> {
    // SAFETY: each command below reads and writes as many words as the first one says.
    match unsafe { ioctl_with_mut_ref(file, cmd, words) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

impl Engine {
    pub(crate) fn open(path: &str, iommu: &IommuFd) -> Result<Self> {
        let file = File::options().read(true).write(true).open(path)?;
        let mut bind = [16, 0, iommu.as_raw_fd() as u32, 0];
        ioctl(&file, VFIO_DEVICE_BIND_IOMMUFD, &mut bind)?;
        file.write_all_at(&MEMORY_AND_MASTER.to_le_bytes(), COMMAND)?;
        Ok(Self { file, id: bind[3] })
    }

    /// Its id in the iommufd.
    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    /// Has it work off the one descriptor at an IOVA.
    pub(crate) fn run(&self, descriptor: u64) -> Result<Outcome> {
        self.file.write_all_at(&[RESET], CHANCMD)?;
        self.file.write_all_at(&descriptor.to_le_bytes(), CHAINADDR)?;
        self.file.write_all_at(&1u16.to_le_bytes(), DMACOUNT)?;
        let (mut status, mut error) = ([0; 8], [0; 4]);
        loop {
            self.file.read_exact_at(&mut status, CHANSTS)?;
            // The low bits: 0 is active.
            if status[0] & 7 != 0 {
                break;
            }
            std::thread::yield_now();
        }
        self.file.read_exact_at(&mut error, CHANERR)?;
        let status = u64::from_le_bytes(status) & 7;
        Ok(Outcome { status, error: u32::from_le_bytes(error) })
    }
}

impl AttachHwpt for Engine {
    fn attach_hwpt(&self, pt_id: u32) -> std::io::Result<()> {
        ioctl(&self.file, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &mut [12, 0, pt_id])
    }

    fn detach_hwpt(&self) -> std::io::Result<()> {
        ioctl(&self.file, VFIO_DEVICE_DETACH_IOMMUFD_PT, &mut [8, 0])
    }
}

/// Waits until a descriptor can be read.
pub(crate) fn wait(fd: &RawFd) -> Result<()> {
    let mut poll = libc::pollfd { fd: *fd, events: libc::POLLIN, revents: 0 };
    // SAFETY: one pollfd, for as long as it takes.
    match unsafe { libc::poll(&raw mut poll, 1, -1) } {
        1 => Ok(()),
        _ => Err(std::io::Error::last_os_error().into()),
    }
}
