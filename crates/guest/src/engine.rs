//! The device that does the DMA: an I/OAT engine behind a VFIO file, driven by its registers, as the guest's driver
//! does through the VMM.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use arm_smmu_v3::Error as SmmuError;

use crate::ram::GuestRam;

const CONFIG: u64 = 7 << 40;
const COMMAND: u64 = CONFIG + 4;
const MEMORY_AND_MASTER: u16 = 0b110;
const INTRCTRL: u64 = 0x03;
const CHANCTRL: u64 = 0x80;
const CHANCMD: u64 = 0x84;
const DMACOUNT: u64 = 0x86;
const CHANSTS: u64 = 0x88;
const CHAINADDR: u64 = 0x90;
const CHANERR: u64 = 0xa8;
const RESET: u8 = 1 << 5;
const SET_IRQS: u64 = 0x3b6e;
const DEVICE_RESET: u64 = 0x3b6f;
/// Where a descriptor says on whose behalf it is: the engine's extension.
const PROCESS: u64 = 32;

/// How a copy ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Copied {
    /// It is done.
    Done,
    /// An access was refused: `CHANERR`.
    Refused(u32),
}

/// A DMA engine.
pub struct Engine {
    file: Arc<File>,
}

impl Engine {
    /// An engine whose file is bound to an iommufd.
    pub fn new(file: Arc<File>) -> io::Result<Self> {
        file.write_all_at(&MEMORY_AND_MASTER.to_le_bytes(), COMMAND)?;
        Ok(Self { file })
    }

    /// The VFIO file.
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Copies memory, all addresses being the device's: `descriptor` has room for 64 bytes, which the caller has filled
    /// ([`descriptor`]). Waits for the end.
    pub fn run(&self, descriptor: u64) -> io::Result<Copied> {
        self.start(descriptor)?;
        self.wait()
    }

    /// As [`run`](Self::run), without waiting.
    pub fn start(&self, descriptor: u64) -> io::Result<()> {
        self.file.write_all_at(&[RESET], CHANCMD)?;
        self.file.write_all_at(&[1 << 3], INTRCTRL)?;
        self.file.write_all_at(&1u16.to_le_bytes(), CHANCTRL)?;
        self.file.write_all_at(&descriptor.to_le_bytes(), CHAINADDR)?;
        self.file.write_all_at(&1u16.to_le_bytes(), DMACOUNT)
    }

    /// How what was started ended, if it has.
    pub fn poll(&self) -> io::Result<Option<Copied>> {
        let (mut status, mut error) = ([0; 8], [0; 4]);
        self.file.read_exact_at(&mut status, CHANSTS)?;
        self.file.read_exact_at(&mut error, CHANERR)?;
        Ok(match status[0] & 7 {
            0 => None,
            1 => Some(Copied::Done),
            _ => Some(Copied::Refused(u32::from_le_bytes(error))),
        })
    }

    fn wait(&self) -> io::Result<Copied> {
        loop {
            if let Some(end) = self.poll()? {
                return Ok(end);
            }
            std::thread::yield_now();
        }
    }

    /// Resets the function, as a VMM does for its guest: what is under way ends, whatever it waits for.
    pub fn reset(&self) -> io::Result<()> {
        // SAFETY: the command has no argument.
        if unsafe { libc::ioctl(self.file.as_raw_fd(), DEVICE_RESET) } != 0 {
            return Err(io::Error::last_os_error());
        }
        self.file.write_all_at(&MEMORY_AND_MASTER.to_le_bytes(), COMMAND)
    }

    /// Has the engine's one MSI-X vector signal an eventfd.
    pub fn enable_interrupt(&self, eventfd: &impl AsRawFd) -> io::Result<()> {
        // MSI-X, one eventfd, trigger.
        let mut set = [24, 1 << 2 | 1 << 5, 2, 0, 1, eventfd.as_raw_fd() as u32];
        // SAFETY: a struct of as many bytes as its first word says.
        match unsafe { libc::ioctl(self.file.as_raw_fd(), SET_IRQS, set.as_mut_ptr()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// Writes a descriptor into guest memory at `at`: copy `len` bytes, at most 1 MiB, and interrupt at the end if asked to.
pub fn descriptor(
    ram: &GuestRam,
    at: u64,
    from: u64,
    to: u64,
    len: u32,
    interrupt: bool,
) -> Result<(), SmmuError> {
    let words = [u64::from(len) | u64::from(interrupt) << 32, from, to, 0, 0, 0, 0, 0];
    for (word, at) in words.into_iter().zip((at..).step_by(8)) {
        ram.store(at, word).map_err(|_| SmmuError::Unsupported("a descriptor outside memory"))?;
    }
    Ok(())
}

/// Has the descriptor at `at` copy on behalf of a PASID, or of none. For engines that have PASIDs.
pub fn set_pasid(ram: &GuestRam, at: u64, pasid: Option<u32>) -> Result<(), SmmuError> {
    let process = pasid.map_or(0, |pasid| 1 << 31 | u64::from(pasid));
    ram.store(at + PROCESS, process)
        .map_err(|_| SmmuError::Unsupported("a descriptor outside memory"))
}
