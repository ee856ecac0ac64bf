//! A guest: its memory, and what its SMMU driver writes there.

use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileExt;

use crate::Result;

/// Where guest memory is for the guest, and how much: little enough for the locked memory that ordinary users have.
pub(crate) const IPA: u64 = 0x4000_0000;
pub(crate) const RAM: u64 = 4 << 20;

/// Where the driver's structures are, from the beginning of memory: a CD, and one table of each level.
const CD: u64 = 0x1000;
const TABLES: [u64; 3] = [0x2000, 0x3000, 0x4000];
const ASID: u64 = 1;

/// A stage 1 with 39 bits of address in pages of 4 KiB.
const T0SZ: u64 = 64 - 39;
const LEVEL_SHIFTS: [u32; 3] = [30, 21, 12];

/// Descriptors: a table; a page that unprivileged devices read and write, of write-back memory.
const TABLE: u64 = 0b11;
const PAGE: u64 = 0b11 | 1 << 6 | 0b11 << 8 | 1 << 10 | 1 << 11;

pub(crate) struct Guest {
    ram: File,
}

impl Guest {
    pub(crate) fn new() -> Result<Self> {
        // SAFETY: a plain system call with a C string; the descriptor is ours.
        let ram = unsafe {
            let fd = libc::memfd_create(c"guest".as_ptr(), libc::MFD_CLOEXEC);
            if fd < 0 {
                return Err(std::io::Error::last_os_error().into());
            }
            std::os::fd::FromRawFd::from_raw_fd(fd)
        };
        let guest = Self { ram };
        guest.ram.set_len(RAM)?;
        guest.write_word(TABLES[0], (IPA + TABLES[1]) | TABLE)?;
        guest.write_word(TABLES[1], (IPA + TABLES[2]) | TABLE)?;
        Ok(guest)
    }

    pub(crate) fn fd(&self) -> RawFd {
        self.ram.as_raw_fd()
    }

    pub(crate) fn write(&self, at: u64, bytes: &[u8]) -> Result<()> {
        Ok(self.ram.write_all_at(bytes, at)?)
    }

    pub(crate) fn read(&self, at: u64, len: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.ram.read_exact_at(&mut bytes, at)?;
        Ok(bytes)
    }

    fn write_word(&self, at: u64, word: u64) -> Result<()> {
        self.write(at, &word.to_le_bytes())
    }

    /// Where the last-level descriptor of an IOVA below 2 MiB is.
    fn leaf(iova: u64) -> u64 {
        assert_eq!(iova >> LEVEL_SHIFTS[1], 0, "there is one table of each level");
        TABLES[2] + 8 * (iova >> LEVEL_SHIFTS[2])
    }

    /// Maps a page of the device's addresses to a page of guest memory.
    pub(crate) fn map(&self, iova: u64, at: u64) -> Result<()> {
        self.write_word(Self::leaf(iova), (IPA + at) | PAGE)
    }

    pub(crate) fn unmap(&self, iova: u64) -> Result<()> {
        self.write_word(Self::leaf(iova), 0)
    }

    /// Writes the CD; returns the STE's first two words, which lead to it.
    pub(crate) fn write_context(&self) -> Result<[u64; 2]> {
        let walks = 0b01 << 8 | 0b01 << 10 | 0b11 << 12;
        let (epd1, valid, ips_48, aa64) = (1 << 30, 1 << 31, 0b101 << 32, 1 << 41);
        let record_abort_private = 0b111 << 45;
        let first = T0SZ | walks | epd1 | valid | ips_48 | aa64 | record_abort_private | ASID << 48;
        self.write_word(CD, first)?;
        self.write_word(CD + 8, IPA + TABLES[0])?;
        self.write_word(CD + 24, 0xff)?;
        let (valid, stage_1) = (1, 0b101 << 1);
        Ok([valid | stage_1 | (IPA + CD), 0b01 << 2 | 0b01 << 4 | 0b11 << 6])
    }
}

/// `CMD_TLBI_NH_VA` for one page.
pub(crate) fn tlbi_va(iova: u64) -> [u64; 2] {
    let leaf = 1;
    [0x12 | ASID << 48, iova | leaf]
}

/// A descriptor of the DMA engine: a copy.
pub(crate) fn descriptor(from: u64, to: u64, len: usize) -> Vec<u8> {
    [len as u64, from, to, 0, 0, 0, 0, 0].map(u64::to_le_bytes).concat()
}
