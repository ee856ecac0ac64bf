//! Requests of block devices (§5.2.6).

use std::io;

use vfio::{Bus, DmaError};

use super::ring::{Broken, Chain};
use super::spec::block;
use crate::image::Image;

/// Bytes of what stands before the data of a request, and of the unit of its addresses.
const HEADER: u64 = 16;
const SECTOR: u64 = 512;
/// Bytes of an answer to `GET_ID`.
const ID: usize = 20;
/// Ranges of a request to discard or to zero, and sectors of each.
pub(super) const MAX_RANGES: u32 = 32;
pub(super) const MAX_RANGE: u32 = 1 << 19;
/// Bytes of a range, and its flag that allows to give room back.
const RANGE: usize = 16;
const UNMAP: u32 = 1;
/// Bytes between image and memory at a time: what a core's cache holds.
const CHUNK: usize = 64 << 10;

/// A request was not carried out.
pub(super) enum Failed {
    Unsupported,
    Error,
    /// The device was reset meanwhile.
    Stopped,
}

impl From<DmaError> for Failed {
    fn from(_: DmaError) -> Self {
        Self::Error
    }
}

impl From<io::Error> for Failed {
    fn from(_: io::Error) -> Self {
        Self::Error
    }
}

/// The disk behind a device.
pub(super) struct Disk {
    pub(super) image: Image,
    /// What it says if asked who it is.
    pub(super) id: String,
}

/// The thread's own.
#[derive(Default)]
pub(super) struct Scratch {
    pub(super) chain: Chain,
    bytes: Vec<u8>,
}

impl Disk {
    /// Carries out the request in `scratch.chain`: bytes that were written for the driver, the status among them. `None`
    /// if `alive` said that nobody waits for it any more. `cached`: what is written may wait for a flush.
    pub(super) fn execute(
        &self,
        bus: &mut Bus,
        scratch: &mut Scratch,
        cached: bool,
        alive: &dyn Fn() -> bool,
    ) -> Result<Option<u32>, Broken> {
        let (readable, writable) = (scratch.chain.readable.len(), scratch.chain.writable.len());
        // There must be a place to say how it went.
        let room = writable.checked_sub(1).ok_or(Broken)?;
        if readable < HEADER {
            return Err(Broken);
        }
        let result = self.carry_out(bus, scratch, readable - HEADER, room, cached, alive);
        let (status, len) = match result {
            Ok(len) => (block::OK, len),
            Err(Failed::Unsupported) => (block::UNSUPP, 0),
            Err(Failed::Error) => (block::IOERR, 0),
            Err(Failed::Stopped) => return Ok(None),
        };
        scratch.chain.writable.seek(room);
        scratch.chain.writable.put(bus, &[status])?;
        Ok(Some(u32::try_from(len + 1).unwrap_or(u32::MAX)))
    }

    /// How many bytes were written for the driver. `data` is how many there are to be read; `room` how many may be
    /// written.
    fn carry_out(
        &self,
        bus: &mut Bus,
        scratch: &mut Scratch,
        data: u64,
        room: u64,
        cached: bool,
        alive: &dyn Fn() -> bool,
    ) -> Result<u64, Failed> {
        let mut header = [0; HEADER as usize];
        scratch.chain.readable.seek(0);
        scratch.chain.readable.take(bus, &mut header)?;
        scratch.chain.writable.seek(0);
        let header = u128::from_le_bytes(header);
        let (kind, sector) = (header as u32, (header >> 64) as u64);
        let keep = || if cached { Ok(()) } else { self.image.flush() };
        match kind {
            block::IN => {
                let at = self.range(sector, room)?;
                scratch.move_in_chunks(at, room, alive, |chain, at, bytes| {
                    let done = chain.writable.put_from(bus, self.image.part(at, bytes.len()))?;
                    let rest = &mut bytes[done..];
                    self.image.read(at + done as u64, rest)?;
                    Ok(chain.writable.put(bus, rest)?)
                })?;
                Ok(room)
            }
            block::OUT => {
                let at = self.range(sector, data)?;
                self.check_writable()?;
                scratch.move_in_chunks(at, data, alive, |chain, at, bytes| {
                    chain.readable.take(bus, bytes)?;
                    Ok(self.image.write(at, bytes)?)
                })?;
                keep()?;
                Ok(0)
            }
            block::FLUSH => {
                self.image.flush()?;
                Ok(0)
            }
            block::GET_ID => {
                let mut id = [0; ID];
                id.iter_mut().zip(self.id.bytes()).for_each(|(to, byte)| *to = byte);
                let len = ID.min(usize::try_from(room).unwrap_or(ID));
                scratch.chain.writable.put(bus, &id[..len])?;
                Ok(len as u64)
            }
            block::DISCARD | block::WRITE_ZEROES => {
                let zero = kind == block::WRITE_ZEROES;
                self.change_ranges(bus, scratch, data, zero, alive)?;
                keep()?;
                Ok(0)
            }
            _ => Err(Failed::Unsupported),
        }
    }

    fn change_ranges(
        &self,
        bus: &mut Bus,
        scratch: &mut Scratch,
        data: u64,
        zero: bool,
        alive: &dyn Fn() -> bool,
    ) -> Result<(), Failed> {
        let count = data / RANGE as u64;
        if count == 0 || !data.is_multiple_of(RANGE as u64) || count > MAX_RANGES.into() {
            return Err(Failed::Error);
        }
        self.check_writable()?;
        for _ in 0..count {
            let mut range = [0; RANGE];
            scratch.chain.readable.take(bus, &mut range)?;
            let range = u128::from_le_bytes(range);
            let (sector, sectors, flags) =
                (range as u64, (range >> 64) as u32, (range >> 96) as u32);
            // Giving room back is what a discard is.
            if flags & !UNMAP != 0 || !zero && flags != 0 {
                return Err(Failed::Unsupported);
            }
            if sectors > MAX_RANGE {
                return Err(Failed::Error);
            }
            let len = u64::from(sectors) * SECTOR;
            let at = self.range(sector, len)?;
            if !alive() {
                return Err(Failed::Stopped);
            }
            if zero {
                self.image.zero(at, len)?;
            } else {
                self.image.discard(at, len)?;
            }
        }
        Ok(())
    }

    /// Where the data of a request is in the image: whole sectors, inside it.
    fn range(&self, sector: u64, len: u64) -> Result<u64, Failed> {
        let at = sector.checked_mul(SECTOR).filter(|_| len.is_multiple_of(SECTOR));
        let inside = |at: &u64| at.checked_add(len).is_some_and(|end| end <= self.image.size());
        at.filter(inside).ok_or(Failed::Error)
    }

    fn check_writable(&self) -> Result<(), Failed> {
        if self.image.is_read_only() { Err(Failed::Error) } else { Ok(()) }
    }
}

impl Scratch {
    /// Has `each` move `len` bytes of the image, from `at` on, a part at a time.
    fn move_in_chunks(
        &mut self,
        at: u64,
        len: u64,
        alive: &dyn Fn() -> bool,
        mut each: impl FnMut(&mut Chain, u64, &mut [u8]) -> Result<(), Failed>,
    ) -> Result<(), Failed> {
        self.bytes.resize(CHUNK, 0);
        let mut done = 0;
        while done < len {
            // A request may be as long as the disk, and a reset does not wait for that.
            if !alive() {
                return Err(Failed::Stopped);
            }
            let part = (len - done).min(CHUNK as u64);
            each(&mut self.chain, at + done, &mut self.bytes[..part as usize])?;
            done += part;
        }
        Ok(())
    }
}
