//! Split virtqueues (§2.7), as a device goes through them. Whatever the driver has put there is read once and believed
//! as far as it makes sense.

use std::sync::atomic::{Ordering, fence};

use vfio::{Access, Bus, DmaError};

use super::spec::{NO_INTERRUPT, descriptor};
use crate::scatter::Scatter;

/// The longest ring, in descriptors.
pub(super) const MAX_SIZE: u16 = 256;
const DESCRIPTOR: usize = 16;

/// The ring makes no sense, or cannot be reached: the device needs a reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Broken;

impl From<DmaError> for Broken {
    fn from(_: DmaError) -> Self {
        Self
    }
}

/// Where a ring is, and how far the device has come.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ring {
    /// A power of two, at most `MAX_SIZE`.
    pub(super) size: u16,
    pub(super) descriptors: u64,
    pub(super) driver: u64,
    pub(super) device: u64,
    /// Entries of the available ring that were taken; of the used ring that were filled.
    taken: u16,
    used: u16,
}

/// A buffer: what the device reads, and what it writes.
#[derive(Default)]
pub(super) struct Chain {
    pub(super) head: u16,
    pub(super) readable: Scatter,
    pub(super) writable: Scatter,
    /// The table that is being gone through.
    table: Vec<u8>,
}

impl Chain {
    /// Bytes altogether.
    pub(super) fn len(&self) -> u64 {
        self.readable.len().saturating_add(self.writable.len())
    }
}

struct Descriptor {
    address: u64,
    len: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    fn decode(bytes: &[u8; DESCRIPTOR]) -> Self {
        let word = u128::from_le_bytes(*bytes);
        Self {
            address: word as u64,
            len: (word >> 64) as u32,
            flags: (word >> 96) as u16,
            next: (word >> 112) as u16,
        }
    }
}

impl Ring {
    pub(super) fn new() -> Self {
        let (descriptors, driver, device) = (0, 0, 0);
        Self { size: MAX_SIZE, descriptors, driver, device, taken: 0, used: 0 }
    }

    /// Its parts are where they may be (§2.7).
    pub(super) fn is_aligned(&self) -> bool {
        self.descriptors.is_multiple_of(16)
            && self.driver.is_multiple_of(2)
            && self.device.is_multiple_of(4)
    }

    /// The entries of the used ring that were filled so far.
    pub(super) fn used(&self) -> u16 {
        self.used
    }

    /// How many buffers the driver has made available.
    fn available(&self, bus: &mut Bus) -> Result<u16, Broken> {
        let index = half(bus, self.driver, 2)?;
        // What belongs to it was written before, and is read after.
        fence(Ordering::Acquire);
        let available = index.wrapping_sub(self.taken);
        if available > self.size { Err(Broken) } else { Ok(available) }
    }

    /// Takes the next buffer that the driver has made available; whether there is one.
    pub(super) fn pop(&mut self, bus: &mut Bus, chain: &mut Chain) -> Result<bool, Broken> {
        if self.available(bus)? == 0 {
            return Ok(false);
        }
        let slot = u64::from(self.taken & (self.size - 1));
        chain.head = half(bus, self.driver, 4 + 2 * slot)?;
        self.taken = self.taken.wrapping_add(1);
        self.walk(bus, chain)?;
        Ok(true)
    }

    /// Follows a chain of descriptors: at most as many as the ring has, and one that leads to a table of them.
    fn walk(&self, bus: &mut Bus, chain: &mut Chain) -> Result<(), Broken> {
        chain.readable.clear();
        chain.writable.clear();
        let (mut next, mut indirect) = (chain.head, false);
        for _ in 0..=self.size {
            let descriptor = if indirect {
                let descriptors = chain.table.as_chunks().0;
                Descriptor::decode(descriptors.get(usize::from(next)).ok_or(Broken)?)
            } else {
                if next >= self.size {
                    return Err(Broken);
                }
                let at = self.descriptors.wrapping_add(u64::from(next) * DESCRIPTOR as u64);
                let mut bytes = [0; DESCRIPTOR];
                bus.read(Access::at(at), &mut bytes)?;
                Descriptor::decode(&bytes)
            };
            let Descriptor { address, len, flags, .. } = descriptor;
            if flags & descriptor::INDIRECT != 0 {
                // One table, which is the end of the chain.
                let len = len as usize;
                let entries = len / DESCRIPTOR;
                let whole =
                    len.is_multiple_of(DESCRIPTOR) && (1..=self.size.into()).contains(&entries);
                if indirect || !whole || flags & descriptor::NEXT != 0 {
                    return Err(Broken);
                }
                chain.table.resize(len, 0);
                bus.read(Access::at(address), &mut chain.table)?;
                (next, indirect) = (0, true);
                continue;
            }
            if flags & descriptor::WRITE != 0 {
                chain.writable.add(address, len.into());
            } else if chain.writable.len() > 0 {
                // What is written comes last.
                return Err(Broken);
            } else {
                chain.readable.add(address, len.into());
            }
            if flags & descriptor::NEXT == 0 {
                return Ok(());
            }
            next = descriptor.next;
        }
        // Longer than the ring, or without an end.
        Err(Broken)
    }

    /// Gives a buffer back, of which `len` bytes were written.
    pub(super) fn push(&mut self, bus: &mut Bus, head: u16, len: u32) -> Result<(), Broken> {
        let slot = u64::from(self.used & (self.size - 1));
        let at = self.device.wrapping_add(4 + 8 * slot);
        let entry = u64::from(head) | u64::from(len) << 32;
        bus.write(Access::at(at), &entry.to_le_bytes())?;
        // The index makes it the driver's.
        fence(Ordering::Release);
        self.used = self.used.wrapping_add(1);
        bus.write(Access::at(self.device.wrapping_add(2)), &self.used.to_le_bytes())?;
        Ok(())
    }

    /// Asks to be told of the next buffer, if the driver tells by index; whether there is one already.
    pub(super) fn ask(&self, bus: &mut Bus, by_index: bool) -> Result<bool, Broken> {
        if by_index {
            let at = self.device.wrapping_add(4 + 8 * u64::from(self.size));
            bus.write(Access::at(at), &self.taken.to_le_bytes())?;
            // The driver looks at what it is asked for after it has made a buffer available, we the other way round.
            fence(Ordering::SeqCst);
        }
        Ok(self.available(bus)? > 0)
    }

    /// Whether the driver wants to be told of what was used since there were `before`.
    pub(super) fn is_wanted(
        &self,
        bus: &mut Bus,
        before: u16,
        by_index: bool,
    ) -> Result<bool, Broken> {
        if before == self.used {
            return Ok(false);
        }
        fence(Ordering::SeqCst);
        if by_index {
            let event = half(bus, self.driver, 4 + 2 * u64::from(self.size))?;
            let since = self.used.wrapping_sub(event).wrapping_sub(1);
            return Ok(since < self.used.wrapping_sub(before));
        }
        Ok(half(bus, self.driver, 0)? & NO_INTERRUPT == 0)
    }
}

/// Reads 2 bytes in one piece.
fn half(bus: &mut Bus, base: u64, offset: u64) -> Result<u16, Broken> {
    let mut bytes = [0; 2];
    bus.read(Access::at(base.wrapping_add(offset)), &mut bytes)?;
    Ok(u16::from_le_bytes(bytes))
}
