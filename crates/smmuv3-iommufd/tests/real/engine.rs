//! A DMA engine (Intel CB3) behind a VFIO file, driven through `pread` and `pwrite`.

use std::fs::File;
use std::os::unix::fs::FileExt;

/// Configuration space in the file, and registers of the engine's channel in BAR 0.
const COMMAND: u64 = (7 << 40) + 4;
const CHANCMD: u64 = 0x84;
const DMACOUNT: u64 = 0x86;
const CHANSTS: u64 = 0x88;
const CHAINADDR: u64 = 0x90;
const CHANERR: u64 = 0xa8;

/// How a chain of descriptors ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Done,
    /// With `CHANERR`.
    Halted(u32),
}

/// Memory space and bus master: after the device was bound.
pub(crate) fn enable(file: &File) {
    file.write_all_at(&0b110u16.to_le_bytes(), COMMAND).unwrap();
}

/// Has the engine work off the one descriptor at an address.
pub(crate) fn run(file: &File, descriptor: u64) -> Outcome {
    file.write_all_at(&[1 << 5], CHANCMD).unwrap();
    file.write_all_at(&descriptor.to_le_bytes(), CHAINADDR).unwrap();
    file.write_all_at(&1u16.to_le_bytes(), DMACOUNT).unwrap();
    let (mut status, mut error) = ([0; 8], [0; 4]);
    loop {
        file.read_exact_at(&mut status, CHANSTS).unwrap();
        // Active.
        if status[0] & 7 != 0 {
            break;
        }
        std::thread::yield_now();
    }
    file.read_exact_at(&mut error, CHANERR).unwrap();
    match status[0] & 7 {
        1 => Outcome::Done,
        3 => Outcome::Halted(u32::from_le_bytes(error)),
        other => panic!("CHANSTS {other}"),
    }
}
