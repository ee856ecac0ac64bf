//! Namespaces, and the commands that move their data (NVM command set, §6).

use std::io;

use vfio::Bus;

use super::controller::{Controller, Running, Scratch};
use super::spec::{Status, nvm};
use crate::image::Image;
use crate::scatter::Scatter;

/// Bytes of the longest data transfer: `MDTS`.
pub(super) const MAX_TRANSFER: usize = 1 << 20;
/// Bytes between image and memory at a time: what a core's cache holds.
const CHUNK: usize = 64 << 10;

const FORCE_UNIT_ACCESS: u32 = 1 << 30;
const DEALLOCATE: u32 = 1 << 2;
/// All of them.
const BROADCAST: u32 = !0;

/// A disk of an NVMe controller.
pub struct Namespace {
    pub(super) image: Image,
    pub(super) block_log2: u8,
}

impl Namespace {
    /// A disk with blocks of `block` bytes: a power of two, from 512 to 4096. What is no whole block at the end of the
    /// image is not part of it: see [`Image::check_blocks`].
    pub fn new(image: Image, block: u32) -> Self {
        debug_assert!(block.is_power_of_two() && (512..=4096).contains(&block));
        Self { image, block_log2: block.trailing_zeros() as u8 }
    }

    /// Its size in blocks.
    pub(super) fn blocks(&self) -> u64 {
        self.image.size() >> self.block_log2
    }

    /// Where blocks are in the image, in bytes.
    fn range(&self, first: u64, count: u64) -> Result<(u64, u64), Status> {
        let end = first.checked_add(count).filter(|end| *end <= self.blocks());
        end.ok_or(Status::LBA_OUT_OF_RANGE)?;
        Ok((first << self.block_log2, count << self.block_log2))
    }
}

fn read_error(_: io::Error) -> Status {
    Status::UNRECOVERED_READ_ERROR
}

fn write_error(error: io::Error) -> Status {
    match error.kind() {
        io::ErrorKind::ReadOnlyFilesystem => Status::WRITE_PROTECTED,
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Status::CAPACITY_EXCEEDED,
        _ => Status::WRITE_FAULT,
    }
}

impl Controller {
    pub(super) fn namespace(&self, id: u32) -> Result<&Namespace, Status> {
        let index = id.checked_sub(1).ok_or(Status::INVALID_NAMESPACE)?;
        self.namespaces.get(index as usize).ok_or(Status::INVALID_NAMESPACE)
    }

    /// Carries out a command of an I/O queue.
    pub(super) fn io(
        &self,
        bus: &mut Bus,
        scratch: &mut Scratch,
        running: Running<'_>,
    ) -> Result<(), Status> {
        let command = running.command;
        if command.opcode == nvm::FLUSH && command.namespace == BROADCAST {
            return self
                .namespaces
                .iter()
                .try_for_each(|namespace| namespace.image.flush().map_err(write_error));
        }
        let namespace = self.namespace(command.namespace)?;
        let first = u64::from(command.dword(10)) | u64::from(command.dword(11)) << 32;
        let count = u64::from(command.dword(12) & 0xffff) + 1;
        let blocks = || namespace.range(first, count);
        let transfer = || -> Result<_, Status> {
            let (at, len) = blocks()?;
            let len = usize::try_from(len).ok().filter(|len| *len <= MAX_TRANSFER);
            Ok((at, len.ok_or(Status::INVALID_FIELD)?))
        };
        // What was written stays, where there is no cache to lose it from.
        let keep = || {
            let forced = command.dword(12) & FORCE_UNIT_ACCESS != 0;
            if forced || !self.state.lock().features.write_cache {
                namespace.image.flush().map_err(write_error)?;
            }
            Ok(())
        };
        match command.opcode {
            nvm::FLUSH => namespace.image.flush().map_err(write_error),
            nvm::READ => {
                let (at, len) = transfer()?;
                scratch.gather(bus, running, len)?;
                self.log.lock().count_read(len);
                scratch.move_in_chunks(at, len, |data, at, bytes| {
                    let done = data.put_from(bus, namespace.image.part(at, bytes.len()))?;
                    let rest = &mut bytes[done..];
                    namespace.image.read(at + done as u64, rest).map_err(read_error)?;
                    Ok(data.put(bus, rest)?)
                })
            }
            nvm::WRITE => {
                let (at, len) = transfer()?;
                namespace.check_writable()?;
                scratch.gather(bus, running, len)?;
                self.log.lock().count_write(len);
                scratch.move_in_chunks(at, len, |data, at, bytes| {
                    data.take(bus, bytes)?;
                    namespace.image.write(at, bytes).map_err(write_error)
                })?;
                keep()
            }
            nvm::WRITE_ZEROES => {
                let (at, len) = blocks()?;
                namespace.image.zero(at, len).map_err(write_error)?;
                keep()
            }
            nvm::DATASET_MANAGEMENT => namespace.deallocate(bus, scratch, running),
            _ => Err(Status::INVALID_OPCODE),
        }
    }
}

impl Namespace {
    fn deallocate(
        &self,
        bus: &mut Bus,
        scratch: &mut Scratch,
        running: Running<'_>,
    ) -> Result<(), Status> {
        /// Bytes that describe a range.
        const RANGE: usize = 16;
        let command = running.command;
        let count = (command.dword(10) & 0xff) as usize + 1;
        let mut ranges = [0; 256 * RANGE];
        let ranges = &mut ranges[..count * RANGE];
        scratch.gather(bus, running, ranges.len())?;
        scratch.data.take(bus, ranges)?;
        if command.dword(11) & DEALLOCATE == 0 {
            // Hints, which we make no use of.
            return Ok(());
        }
        self.check_writable()?;
        let ranges = ranges.as_chunks::<RANGE>().0.iter().map(|range| {
            let word = u128::from_le_bytes(*range);
            let (first, count) = ((word >> 64) as u64, (word >> 32) as u32);
            self.range(first, count.into())
        });
        // All of them are there, before anything is given up.
        let ranges: Vec<_> = ranges.collect::<Result<_, _>>()?;
        ranges
            .into_iter()
            .try_for_each(|(at, len)| self.image.discard(at, len).map_err(write_error))
    }

    fn check_writable(&self) -> Result<(), Status> {
        if self.image.is_read_only() { Err(Status::WRITE_PROTECTED) } else { Ok(()) }
    }
}

impl Scratch {
    /// Has `each` move `len` bytes of the image, from `at` on, a part at a time.
    fn move_in_chunks(
        &mut self,
        at: u64,
        len: usize,
        mut each: impl FnMut(&mut Scatter, u64, &mut [u8]) -> Result<(), Status>,
    ) -> Result<(), Status> {
        self.bytes.resize(CHUNK, 0);
        let mut done = 0;
        while done < len {
            let part = CHUNK.min(len - done);
            each(&mut self.data, at + done as u64, &mut self.bytes[..part])?;
            done += part;
        }
        Ok(())
    }
}
